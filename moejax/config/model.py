"""Settings of a model."""

from dataclasses import dataclass, field
from typing import Literal

from moejax.config.attention import AttentionConfig, AttentionKind, RopeConfig
from moejax.config.checks import (
    check,
    check_at_most,
    check_not_negative,
    check_positive,
    check_sizes,
    check_types,
    make_tuples,
)
from moejax.config.delta import DeltaConfig, DeltaSizes
from moejax.config.images import ImageConfig
from moejax.config.material import Material, find_material
from moejax.config.moe import MoEConfig

FloatType = Literal["float32", "bfloat16"]
"""Types that models are computed in."""
Keepable = Literal[
    "queries_keys_values",
    "attention_heads",
    "attention_output",
    "router_logits",
    "expert_inputs",
    "hidden",
    "expert_outputs",
]
"""What layers compute and may keep, by name."""
Remat = Literal["none", "layer", "attention", "experts", "offload"]
"""What the backward pass computes again; see ``ModelConfig.remat``."""
MOST_LAYERS, MOST_HEAD_SIZE = 100_000, 2**20
MOST_NEXT_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer, or a classifier of images."""

    kind: Literal["decoder", "vit", "mlp"] = "decoder"
    """`decoder`: a language model. Of images: `vit`, a vision transformer, whose tokens are
    patches; `mlp`, feed-forward layers alone, in which an image is one token."""
    image: ImageConfig = field(default_factory=ImageConfig)
    num_layers: int = 3
    """Layers (L)."""
    width: int = 128
    """Width of the residual stream (D)."""
    num_heads: int = 4
    """Attention heads (H)."""
    num_kv_heads: int | None = None
    """Heads of keys and values, for grouped-query attention; by default as many as heads."""
    head_size: int | None = None
    """Width of one head; by default width / num_heads."""
    qk_norm: bool = True
    """RMSNorm on queries and keys."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embedding."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    delta: DeltaConfig = field(default_factory=DeltaConfig)
    activation: Literal["swiglu", "geglu", "gelu", "relu", "clamped_swiglu"] = "swiglu"
    """The feed-forward function of experts, shared experts and dense layers; `clamped_swiglu` is
    that of gpt-oss."""
    dense_hidden_size: int | None = None
    """Hidden width of dense layers; by default the active width of a routed one, which is
    top_k * hidden_size and that of the shared experts."""
    vocab_size: int | None = None
    """Size of the vocabulary (V), by default the tokenizer's; or the number of classes, by default
    those of the data set."""
    tie_embeddings: bool = False
    """Use the embedding matrix as the output head, too."""
    embedding_scale: float = 1.0
    """Multiplies the embedding (Granite)."""
    residual_scale: float = 1.0
    """Multiplies what each layer adds to the residual stream (Granite)."""
    logit_scale: float | None = None
    """Multiplies the logits; by default 1, or width**-0.5 where the embedding is the head."""
    norm_place: Literal["pre", "post", "sandwich", "pre_and_experts"] = "pre"
    """Where a layer has RMSNorms: `pre`, on what attention and the feed-forward network read;
    `post`, on what they give, before it is added (OLMo 2); `sandwich`, on both; `pre_and_experts`,
    on what they read, and on what routed layers give (A.X-K1)."""
    norm_epsilon: float = 1e-6
    """Added to the mean square in RMSNorm."""
    zero_centred_norm: bool = False
    """Norms multiply by 1 plus their parameter, which begins at 0 (Gemma, Qwen3-Next)."""
    dtype: FloatType = "float32"
    """Type of activations and matrix products; parameters and routers are float32 always."""
    remat: Remat = "none"
    """What the backward pass computes again instead of keeping it: `layer`, all of a layer but its
    input and --model.remat-keep; `attention`, that or the memory in its place; `experts`, the
    feed-forward network, routed or not. `offload`: as `layer`, and what is kept waits in the host's
    memory (TPUs and GPUs)."""
    remat_keep: tuple[Keepable, ...] = ()
    """What --model.remat layer (or offload) keeps beside the layers' inputs. `expert_inputs` and
    `expert_outputs` spare the exchanges between devices; `hidden` is what activation functions
    get."""
    unroll: bool | None = None
    """Unroll the scan over layers; by default on CPU, where it is faster to run. If True, that over
    chunks of tokens in the loss, too."""
    next_tokens: int = 0
    """Modules above the last layer (P), each of which predicts the token one further ahead than the
    one before it: multi-token prediction. DeepSeek-V3 has one."""
    moe: MoEConfig = field(default_factory=MoEConfig)

    def __post_init__(self) -> None:
        at = "model"
        make_tuples(self, "remat_keep")
        check_types(at, self)
        check_sizes(at, self, "num_layers", "width", "num_heads", "num_kv_heads", "head_size")
        check_sizes(at, self, "dense_hidden_size", "vocab_size")
        check_positive(at, self, "rope_theta", "norm_epsilon")
        check_positive(at, self, "embedding_scale", "residual_scale", "logit_scale")
        check_at_most(MOST_LAYERS, at, self, "num_layers")
        check_not_negative(at, self, "next_tokens")
        check_at_most(MOST_NEXT_TOKENS, at, self, "next_tokens")
        check(
            self.material.language or self.next_tokens == 0,
            f"--model.next-tokens is for texts: leave it out with --model.kind {self.kind}.",
        )
        check(
            self.query_head_size <= MOST_HEAD_SIZE,
            f"a head must be at most {MOST_HEAD_SIZE:,} wide, not {self.query_head_size:,}: look at"
            f" --model.head-size, or --model.width / --model.num-heads.",
        )
        self._check_total()
        form = self.attention.form if self.kind == "vit" else "auto"
        check(
            self.material.language or self.attention == AttentionConfig(form=form),
            f"--model.attention.* is for texts{', but for its form' * (self.kind == 'vit')}: leave"
            f" it as it is with --model.kind {self.kind}.",
        )
        check(
            self.kind != "vit" or self.image.size % self.image.patch_size == 0,
            f"--model.image.patch-size {self.image.patch_size} does not divide --model.image.size"
            f" {self.image.size}: an image is cut into whole patches.",
        )
        check(
            self.head_size is not None or self.kind == "mlp" or self.width % self.num_heads == 0,
            f"--model.width {self.width} is not divisible by --model.num-heads {self.num_heads}:"
            f" make it a multiple, or give --model.head-size.",
        )
        check(
            self.rotary_size % 2 == 0 or self.kind == "mlp",
            f"rotary positions need an even head size, not {self.rotary_size}"
            f" (--model.width / --model.num-heads, or --model.head-size).",
        )
        check(
            self.rotary_size <= self.query_head_size,
            f"--model.attention.rotary-size {self.rotary_size} is more than a head has:"
            f" {self.query_head_size} (--model.width / --model.num-heads, or --model.head-size).",
        )
        check(
            len(self.attention.kinds) <= self.num_layers,
            f"--model.attention.kinds has {len(self.attention.kinds)} entries, more than the"
            f" --model.num-layers {self.num_layers}: a pattern is repeated, but not cut.",
        )
        check(
            not self.is_latent or (not self.qk_norm and self.key_value_heads == self.num_heads),
            "--model.attention.kv-rank (latent attention) norms its latent vectors, and each head"
            " has keys and values of its own: set --model.qk-norm False, and leave"
            " --model.num-kv-heads out.",
        )
        check(
            self.num_heads % self.key_value_heads == 0,
            f"--model.num-heads {self.num_heads} is not divisible by --model.num-kv-heads"
            f" {self.num_kv_heads}.",
        )
        sizes = self.delta_sizes
        check(
            sizes.value_heads % sizes.key_heads == 0,
            f"--model.delta.value-heads {sizes.value_heads} is not divisible by"
            f" --model.delta.key-heads {sizes.key_heads}.",
        )
        check(
            self.moe.every == 0 or True in self.routed_layers,
            f"no layer is routed: --model.moe.first-dense {self.moe.first_dense} and"
            f" --model.moe.every {self.moe.every} leave none of the {self.num_layers} layers."
            f" For a dense model say --model.moe.every 0.",
        )

    def _check_total(self) -> None:
        """Every array must have a size that can be written down, and about that the whole model."""
        D, H, moe = self.width, self.num_heads, self.moe
        heads = H * (self.query_head_size + self.value_head_size) + (self.attention.kv_rank or 0)
        J, values, size, value_size, _ = self.delta_sizes
        heads += J * size + values * value_size
        layer = D * (moe.num_experts * moe.hidden_size + self.dense_hidden + heads)
        total = (
            (self.num_layers + self.next_tokens) * layer
            + (self.vocab_size or 0) * D
            + self.image.size**2 * D
        )
        check(
            total < 2**60,
            f"a model of these sizes has more than {float(total):.1e} parameters: look at"
            f" --model.width, --model.num-layers, --model.vocab-size, --model.moe.num-experts and"
            f" --model.moe.hidden-size.",
        )

    @property
    def material(self) -> Material:
        """What it reads."""
        return find_material(self.kind)

    @property
    def patch_side(self) -> int:
        """Height and width of what is one token, in pixels: a patch, or the whole image."""
        return self.image.patch_size if self.kind == "vit" else self.image.size

    @property
    def image_tokens(self) -> int:
        """Tokens of an image (N)."""
        return (self.image.size // self.patch_side) ** 2

    @property
    def is_latent(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return self.attention.kv_rank is not None

    @property
    def plain_head_size(self) -> int:
        """Width of a head; in latent attention, of its part without positions."""
        return self.head_size or self.width // self.num_heads

    @property
    def rotary_size(self) -> int:
        """Width of the part of a head that positions rotate."""
        settings = self.attention
        if self.is_latent:
            return settings.rope_head_size
        return settings.rotary_size or self.plain_head_size

    @property
    def query_head_size(self) -> int:
        """Width of a head's queries and keys (A)."""
        return self.plain_head_size + self.rotary_size * self.is_latent

    @property
    def value_head_size(self) -> int:
        """Width of a head's values (U)."""
        return self.attention.value_head_size or self.plain_head_size

    @property
    def attention_kinds(self) -> tuple[AttentionKind, ...]:
        """For each layer, what its positions see."""
        settings, every = self.attention, self.attention.full_every
        pattern: list[AttentionKind] = list(settings.kinds)
        if not pattern and settings.window is not None:
            pattern += ["window"] * (every - 1 if every else 1)
        if not settings.kinds and (every or settings.window is None):
            pattern.append("full")
        return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer, how many positions a position sees, or None for all before it."""
        window = self.attention.window
        return tuple(window if kind == "window" else None for kind in self.attention_kinds)

    @property
    def rotations(self) -> tuple[tuple[float, RopeConfig] | None, ...]:
        """For each layer, the base of its rotary positions and how they are stretched; None for one
        without.
        """
        settings, usual = self.attention, (self.rope_theta, self.rope)
        theta, of_kind = settings.window_rope_theta, {"full": usual, "window": usual}
        if theta is not None:
            of_kind["window"] = (theta, RopeConfig())
        there = {"all": ("full", "window"), "window": ("window",), "none": ()}[settings.rotary_in]
        return tuple(of_kind[kind] if kind in there else None for kind in self.attention_kinds)

    @property
    def delta_sizes(self) -> DeltaSizes:
        """The sizes of a layer with a memory."""
        settings = self.delta
        keys, size = settings.key_heads or self.num_heads, settings.key_size or self.plain_head_size
        return DeltaSizes(
            keys,
            settings.value_heads or keys,
            size,
            settings.value_size or size,
            settings.convolution,
        )

    @property
    def logit_multiplier(self) -> float:
        """What logits are multiplied by."""
        return self.logit_scale or (self.width**-0.5 if self.tie_embeddings else 1.0)

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values (J)."""
        return self.num_kv_heads or self.num_heads

    @property
    def dense_hidden(self) -> int:
        """Hidden width of a dense feed-forward layer."""
        active = self.moe.top_k * self.moe.hidden_size + self.moe.shared_width
        return self.dense_hidden_size or active

    @property
    def routed_layers(self) -> tuple[bool, ...]:
        """For each layer, whether it is routed."""
        every, first = self.moe.every, self.moe.first_dense
        return tuple(
            every > 0 and i >= first and (i - first) % every == every - 1
            for i in range(self.num_layers)
        )

    @property
    def routed_blocks(self) -> tuple[bool, ...]:
        """For each layer, and then for the block of each module that predicts a further token,
        whether it is routed. Those blocks are as the last layer.
        """
        return self.routed_layers + self.routed_layers[-1:] * self.next_tokens
