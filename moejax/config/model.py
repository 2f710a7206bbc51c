"""Settings of a model."""

from dataclasses import dataclass, field
from typing import Literal

from moejax.config.checks import check, check_positive, check_types
from moejax.config.moe import MoEConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer."""

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
    """RMSNorm on the queries and keys of every head."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embedding."""
    activation: Literal["swiglu", "geglu", "gelu", "relu"] = "swiglu"
    """The feed-forward function of experts, shared experts and dense layers."""
    dense_hidden_size: int | None = None
    """Hidden width of dense layers; by default the active width of a routed one, which is
    (top_k + shared_experts) * hidden_size."""
    vocab_size: int | None = None
    """Size of the vocabulary (V); by default the tokenizer's."""
    tie_embeddings: bool = False
    """Use the embedding matrix as the output head, too."""
    norm_epsilon: float = 1e-6
    """Added to the mean square in RMSNorm."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products; parameters and routers are float32 always."""
    remat: Literal["none", "layer"] = "none"
    """`layer`: keep only each layer's input for the backward pass and compute the rest again."""
    unroll: bool | None = None
    """Unroll the scan over layers; by default on CPU, where it is faster to run."""
    moe: MoEConfig = field(default_factory=MoEConfig)

    def __post_init__(self) -> None:
        at = "model"
        check_types(at, self)
        check_positive(at, self, "num_layers", "width", "num_heads", "num_kv_heads", "head_size")
        check_positive(at, self, "dense_hidden_size", "vocab_size", "rope_theta", "norm_epsilon")
        check(
            self.head_size is not None or self.width % self.num_heads == 0,
            f"--model.width {self.width} is not divisible by --model.num-heads {self.num_heads}:"
            f" make it a multiple, or give --model.head-size.",
        )
        check(
            self.attention_head_size % 2 == 0,
            f"rotary positions need an even head size, not {self.attention_head_size}"
            f" (--model.width / --model.num-heads, or --model.head-size).",
        )
        check(
            self.num_heads % self.key_value_heads == 0,
            f"--model.num-heads {self.num_heads} is not divisible by --model.num-kv-heads"
            f" {self.num_kv_heads}.",
        )
        check(
            self.moe.every == 0 or True in self.routed_layers,
            f"no layer is routed: --model.moe.first-dense {self.moe.first_dense} and"
            f" --model.moe.every {self.moe.every} leave none of the {self.num_layers} layers."
            f" For a dense model say --model.moe.every 0.",
        )

    @property
    def attention_head_size(self) -> int:
        """Width of one attention head (A)."""
        return self.head_size or self.width // self.num_heads

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values (J)."""
        return self.num_kv_heads or self.num_heads

    @property
    def dense_hidden(self) -> int:
        """Hidden width of a dense feed-forward layer."""
        active = (self.moe.top_k + self.moe.shared_experts) * self.moe.hidden_size
        return self.dense_hidden_size or active

    @property
    def routed_layers(self) -> tuple[bool, ...]:
        """For each layer, whether it is routed."""
        every, first = self.moe.every, self.moe.first_dense
        return tuple(
            every > 0 and i >= first and (i - first) % every == every - 1
            for i in range(self.num_layers)
        )
