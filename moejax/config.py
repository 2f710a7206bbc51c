"""The one tree of settings: frozen dataclasses, their checks, and how a run's settings are loaded.

A config file is Python with a function ``get_config() -> Config``; every field can be overridden on
the command line (``--model.moe.num-experts 16``). A bad value raises ``ConfigError`` here, before
anything is compiled or written.
"""

import dataclasses
import difflib
import importlib.util
import json
import math
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moejax.errors import ConfigError
from moejax.routing.routers import ROUTERS, Router


def check(condition: bool, message: str) -> None:
    """Raise ``ConfigError(message)`` unless ``condition``."""
    if not condition:
        raise ConfigError(message)


def check_types(prefix: str, settings: object) -> None:
    """Every field must have the type of its hint: a config file is not checked by anyone else."""
    for name, hint in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if typing.get_origin(hint) is Literal:
            choices = ", ".join(map(str, typing.get_args(hint)))
            ok, wanted = value in typing.get_args(hint), f"one of {choices}"
        else:
            kinds = typing.get_args(hint) or (hint,)
            # An int will do for a float, but a bool is no number.
            ok = type(value) in (*kinds, *((int,) if float in kinds else ()))
            wanted = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        check(ok, f"{flag(prefix, name)} must be {wanted}, not {value!r}.".replace("--.", "--"))


def check_positive(prefix: str, settings: object, *names: str) -> None:
    """Every named number must be finite and greater than zero; ``prefix`` completes its flag."""
    for name in names:
        value = getattr(settings, name)
        check(
            value is None or (math.isfinite(value) and value > 0),
            f"{flag(prefix, name)} must be greater than 0, not {value}.",
        )


def check_not_negative(prefix: str, settings: object, *names: str) -> None:
    """Every named number must be finite and at least zero; ``prefix`` completes its flag."""
    for name in names:
        value = getattr(settings, name)
        check(
            value is None or (math.isfinite(value) and value >= 0),
            f"{flag(prefix, name)} must be at least 0, not {value}.",
        )


def flag(prefix: str, name: str) -> str:
    """The command-line flag of a field: ``flag("model.moe", "top_k") == "--model.moe.top-k"``."""
    return f"--{prefix}.{name}".replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """What keeps the experts evenly loaded. Losses are added over the routed layers."""

    loss_weight: float = 0.01
    """Coefficient (alpha) of the load-balancing loss of Switch Transformers and GShard."""
    scope: Literal["batch", "device", "sequence"] = "batch"
    """Over which tokens that loss wants an even load: the `batch` of one step, over all devices and
    accumulated micro-batches; each `device`'s part of a micro-batch; each `sequence`."""
    convention: Literal["switch", "hf"] = "switch"
    """`switch`: the loss is 1 at perfect balance in each layer. `hf`: K at balance, from pooled
    layers, so that coefficients of models in Hugging Face's format carry over."""
    z_loss_weight: float = 0.0
    """Coefficient of the router z-loss of ST-MoE."""
    importance_loss_weight: float = 0.0
    """Coefficient of Shazeer's importance loss (squared coefficient of variation of weights)."""
    load_loss_weight: float = 0.0
    """Coefficient of Shazeer's load loss; needs the noise of --model.moe.router noisy_top_k."""
    device_loss_weight: float = 0.0
    """Coefficient of DeepSeek-V2's balance over groups of experts (--model.moe.expert-groups)."""
    communication_loss_weight: float = 0.0
    """Coefficient of DeepSeek-V2's balance of what groups of experts receive."""
    bias_update: Literal["none", "sign", "proportional", "quantile"] = "none"
    """How the selection bias of the loss-free balance moves after each step: by a fixed `sign`ed
    amount, in `proportion` to the lack, or at once to where the load of the step would have been
    even (`quantile`)."""
    bias_rate: float = 0.001
    """How far it moves, an amount added to scores (u in Wang et al. 2024)."""
    bias_centred: bool = False
    """Keep the mean of the bias at 0."""

    def __post_init__(self) -> None:
        at = "model.moe.balance"
        check_types(at, self)
        names = [f.name for f in dataclasses.fields(self) if f.name.endswith("_weight")]
        check_not_negative(at, self, *names)
        check_positive(at, self, "bias_rate")
        check(
            self.convention == "switch" or self.scope == "batch",
            f"--{at}.convention hf pools the layers of a batch: it goes with --{at}.scope batch,"
            f" not {self.scope}.",
        )


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """The routed feed-forward layers."""

    num_experts: int = 8
    """Experts in a routed layer (E)."""
    top_k: int = 2
    """Experts that a token chooses (K), or gets on average where experts choose."""
    hidden_size: int = 128
    """Hidden width of one expert (F)."""
    router: str = "top_k"
    """How tokens meet experts, by name; the README has a table of them. `top_k`: K experts, weights
    sum to 1; `switch`: one expert, weighted by its probability; `deepseek_v3`, `soft`, ..."""
    renormalise: bool | None = None
    """Divide a token's weights by their sum; by default as the router does."""
    weight_scale: float | None = None
    """Multiplies the weights; by default the router's."""
    expert_groups: int | None = None
    """Groups of consecutive experts, one for each device or node (DeepSeek's n_group)."""
    kept_expert_groups: int | None = None
    """A token chooses from its best groups only, so many (DeepSeek's topk_group)."""
    max_experts_per_token: int | None = None
    """For expert_choice: no token gets more experts than this."""
    identity_experts: int = 0
    """Experts that give the token back, to choose from besides the others."""
    null_experts: int = 0
    """Experts that give 0, to choose from besides the others."""
    router_jitter: float = 0.0
    """In training, multiply the router's input by uniform noise in [1 - jitter, 1 + jitter]."""
    router_dropout: float = 0.0
    """In training, zero this share of the router's input."""
    expert_dropout: float = 0.0
    """In training, zero this share of the experts' hidden numbers."""
    every: int = 1
    """Every n-th layer is routed; 0 makes every layer dense (the dense twin of equal active size).
    """
    first_dense: int = 0
    """This many layers at the bottom stay dense."""
    shared_experts: int = 0
    """Experts that every token passes through besides the chosen ones, as one dense layer."""
    shared_gate: bool = False
    """Multiply the shared experts' output by a learned sigmoid gate (Qwen2-MoE)."""
    group_size: int = 128
    """Tokens that compete for an expert's slots together (S): divides the sequence length, or is a
    multiple of it."""
    capacity_factor: float = 1.25
    """Slots of an expert in a group, over its fair share S*K/E, in training."""
    eval_capacity_factor: float = 2.0
    """The same in evaluation and generation; where experts choose, the training one holds."""
    seating: Literal["position", "priority"] = "position"
    """Who gets a slot: all first choices in the order of the tokens, then the second ones; or the
    tokens of largest weight first (batch-prioritised routing, not causal)."""
    dispatch: Literal["einsum"] = "einsum"
    """How tokens travel to experts and back. `einsum`: the one-hot tensors of GShard and Switch."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)

    def __post_init__(self) -> None:
        at = "model.moe"
        check_types(at, self)
        check_positive(at, self, "num_experts", "top_k", "hidden_size", "group_size")
        check_positive(at, self, "capacity_factor", "eval_capacity_factor", "weight_scale")
        check_positive(at, self, "expert_groups", "kept_expert_groups", "max_experts_per_token")
        check_not_negative(at, self, "every", "first_dense", "shared_experts")
        check_not_negative(at, self, "identity_experts", "null_experts")
        for name in ("router_jitter", "router_dropout", "expert_dropout"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{flag(at, name)} must lie in [0, 1), not {value}.")
        check_router(self)
        check_balance(self)

    @property
    def num_choices(self) -> int:
        """All that a router chooses among: experts and zero-computation experts."""
        return self.num_experts + self.identity_experts + self.null_experts

    @property
    def built_router(self) -> Router:
        """The router with this config's settings."""
        settings = {name: getattr(self, name) for name in ROUTER_SETTINGS}
        return ROUTERS[self.router].override(self.router, settings)


# Settings of MoEConfig that override a field of the router's rule.
ROUTER_SETTINGS = (
    "renormalise",
    "weight_scale",
    "expert_groups",
    "kept_expert_groups",
    "max_experts_per_token",
)


def check_router(moe: MoEConfig) -> None:
    """The router must exist, and K, the groups and the zero-computation experts must suit it."""
    near = difflib.get_close_matches(moe.router, ROUTERS, n=1, cutoff=0.5)
    check(
        moe.router in ROUTERS,
        f"--model.moe.router {moe.router} is not known."
        + (f" Did you mean {near[0]}?" if near else "")
        + f" There are: {', '.join(sorted(ROUTERS))}.",
    )
    router, K, E = moe.built_router, moe.top_k, moe.num_choices
    check(
        K <= E,
        f"--model.moe.top-k {K} asks for more experts than there are: it can be at most"
        f" --model.moe.num-experts, {moe.num_experts}"
        + (f", and {E - moe.num_experts} without computation." if moe.num_experts < E else "."),
    )
    wanted = E if router.top_k == "num_experts" else router.top_k
    check(
        wanted in (None, K),
        f"--model.moe.router {moe.router} gives a token {wanted} expert{'s' * (wanted != 1)}, but"
        f" --model.moe.top-k is {K}: set it to {wanted}, or choose another router, such as top_k.",
    )
    check(
        not getattr(router.rule, "renormalise", False) or K > 1 or E == 1,
        f"--model.moe.router {moe.router} with --model.moe.top-k 1 gives every chosen expert the"
        f" same weight, from which the router learns nothing: choose --model.moe.router switch, or"
        f" --model.moe.renormalise False.",
    )
    check(
        moe.num_experts == E or not router.experts_choose,
        f"--model.moe.router {moe.router} has no use for experts without computation:"
        f" --model.moe.identity-experts and --model.moe.null-experts must be 0.",
    )
    check(
        moe.seating == "position" or not router.experts_choose,
        f"--model.moe.seating priority orders the tokens' choices, but with --model.moe.router"
        f" {moe.router} tokens do not choose: leave it at position.",
    )
    check_expert_groups(moe)


def check_expert_groups(moe: MoEConfig) -> None:
    """Groups must divide the experts, and those kept must hold K of them."""
    groups, kept = moe.expert_groups, moe.kept_expert_groups
    if groups is None:
        check(kept is None, "--model.moe.kept-expert-groups needs --model.moe.expert-groups.")
        return
    check(
        moe.num_choices % groups == 0,
        f"--model.moe.expert-groups {groups} does not divide the {moe.num_choices} experts"
        f" (--model.moe.num-experts, with those without computation).",
    )
    check(
        kept is None or kept <= groups,
        f"--model.moe.kept-expert-groups {kept} is more than --model.moe.expert-groups {groups}.",
    )
    room = (kept or groups) * moe.num_choices // groups
    check(
        moe.top_k <= room,
        f"--model.moe.kept-expert-groups {kept} leaves a token {room} experts to choose from, fewer"
        f" than --model.moe.top-k {moe.top_k}.",
    )


def check_balance(moe: MoEConfig) -> None:
    """Losses and bias updates must find in the router what they act on."""
    at, balance, router = "--model.moe.balance", moe.balance, moe.built_router
    rule = router.rule
    check(
        balance.load_loss_weight == 0 or getattr(rule, "noise", None) == "learned",
        f"{at}.load-loss-weight needs the noise of --model.moe.router noisy_top_k: without it the"
        f" load has no gradient.",
    )
    for name, needed in (("device_loss", "expert_groups"), ("communication_loss", "expert_groups")):
        check(
            getattr(balance, f"{name}_weight") == 0 or getattr(moe, needed) is not None,
            f"{flag(at[2:], name + '_weight')} needs {flag('model.moe', needed)}.",
        )
    if balance.bias_update == "none":
        return
    check(
        router.selection_bias,
        f"{at}.bias-update {balance.bias_update}: --model.moe.router {moe.router} has no selection"
        f" bias; leave it at none.",
    )
    check(
        balance.bias_update != "quantile"
        or (moe.kept_expert_groups is None and moe.top_k < moe.num_choices)
        and getattr(rule, "score", None) in ("softmax", "sigmoid"),
        f"{at}.bias-update quantile needs scores in [0, 1] (softmax or sigmoid), fewer choices than"
        f" experts, and no --model.moe.kept-expert-groups: take sign.",
    )


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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, and how it becomes batches."""

    source: Literal["stdlib", "tfds", "files"] = "stdlib"
    """`stdlib`: the Python standard library of this interpreter. `tfds`: a TensorFlow Datasets text
    data set by name. `files`: local files by glob."""
    tfds_name: str | None = None
    """Name of the TFDS data set, such as `lm1b` or `tiny_shakespeare`."""
    tfds_text_field: str = "text"
    """The feature of the TFDS data set that holds the text."""
    tfds_train_split: str = "train"
    """The split to train on, in TFDS's notation (`train[:99%]`)."""
    tfds_validation_split: str = "validation"
    """The split held out, in TFDS's notation (`train[99%:]`)."""
    directory: str | None = None
    """Where prepared data sets are kept; by default TFDS's own, `~/tensorflow_datasets`."""
    files: str | None = None
    """Glob of the text files to train on, such as `'books/**/*.txt'`."""
    validation_files: str | None = None
    """Glob of the text files held out; by default `validation_percent` of `files`."""
    validation_percent: float = 5.0
    """Share of `files` held out, chosen by a stable hash of the path."""
    tokenizer: str = "bytes"
    """`bytes`, or the path of a Hugging Face `tokenizer.json`."""
    sequence_length: int = 128
    """Positions in a sequence (N)."""
    batch_size: int = 16
    """Sequences in one optimizer step (B), over all devices and accumulated micro-batches."""
    eval_batch_size: int = 64
    """Sequences in one evaluation batch, over all devices."""
    seed: int = 0
    """Seed of the shuffle."""
    shuffle_window: int = 8192
    """Pieces of documents (of at most a sequence each) that are shuffled together."""
    prefetch: int = 4
    """Batches prepared ahead in a background thread."""

    def __post_init__(self) -> None:
        at = "data"
        check_types(at, self)
        check_positive(at, self, "sequence_length", "batch_size", "eval_batch_size")
        check_positive(at, self, "shuffle_window", "prefetch")
        check(0 <= self.seed < 2**31, f"--data.seed must lie in [0, 2**31), not {self.seed}.")
        check(
            0 < self.validation_percent < 100,
            f"--data.validation-percent must lie between 0 and 100, not {self.validation_percent}.",
        )
        check(
            self.source != "tfds" or bool(self.tfds_name),
            "--data.source tfds needs --data.tfds-name, such as lm1b or tiny_shakespeare.",
        )
        check(
            self.source != "files" or bool(self.files),
            "--data.source files needs --data.files, a glob such as 'books/**/*.txt'.",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw` for every parameter; or `muon` for the matrices inside the layers, with AdamW for the
    rest (embedding, head, norms, routers)."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.03
    """Peak learning rate of Muon."""
    muon_iterations: int = 3
    """Newton-Schulz iterations of Muon."""
    router_learning_rate: float | None = None
    """Peak learning rate of the routers; by default AdamW's."""
    warmup_fraction: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: `cosine` decay, or `wsd`, warm-up-stable-decay: constant, then linear."""
    decay_fraction: float = 0.2
    """Share of the steps over which `wsd` decays at the end."""
    final_fraction: float = 0.0
    """Learning rate at the end, over its peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices alone."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; `None` for no clipping."""
    accumulate: int = 1
    """Micro-batches that one step adds up; the update is that of the whole batch."""

    def __post_init__(self) -> None:
        at = "optim"
        check_types(at, self)
        check_positive(at, self, "learning_rate", "muon_learning_rate", "router_learning_rate")
        check_positive(at, self, "clip_norm", "accumulate", "muon_iterations")
        check_not_negative(at, self, "weight_decay", "warmup_fraction", "final_fraction")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            check(0 <= value < 1, f"--optim.{name} must lie in [0, 1), not {value}.")
        decay = self.decay_fraction if self.schedule == "wsd" else 0.0
        check(
            self.warmup_fraction + decay <= 1 and decay >= 0,
            f"--optim.warmup-fraction {self.warmup_fraction} and --optim.decay-fraction"
            f" {self.decay_fraction} must be shares of the run that sum to at most 1.",
        )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The devices: tokens are spread over all of them, experts over the expert axis."""

    data: int | None = None
    """Devices on the data axis; by default all that the expert axis leaves."""
    expert: int = 1
    """Devices on the expert axis; the number of experts must divide by it."""

    def __post_init__(self) -> None:
        check_types("mesh", self)
        check_positive("mesh", self, "data", "expert")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long to train, what to write, and where."""

    directory: str | None = None
    """Where the run is written; by default `runs/` and the name of the config file."""
    steps: int = 1000
    """Optimizer steps."""
    seed: int = 0
    """Seed of the initial parameters."""
    log_every: int = 50
    """Steps between two lines of training metrics."""
    eval_every: int = 500
    """Steps between two evaluations; there is always one at the end."""
    eval_batches: int | None = None
    """Batches of an evaluation; by default all of the validation text."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Latest checkpoints kept, besides the best one."""
    max_skipped_in_a_row: int = 10
    """Stop after so many updates in a row that were skipped because they were not finite."""
    sample_prompt: str = "def "
    """The text that the sample in the report begins with."""
    sample_tokens: int = 400
    """Tokens generated for the report; 0 for none."""
    sample_temperature: float = 0.7
    """Temperature of the sample; 0 takes the most probable token each time."""

    def __post_init__(self) -> None:
        at = "run"
        check_types(at, self)
        check(0 <= self.seed < 2**31, f"--run.seed must lie in [0, 2**31), not {self.seed}.")
        check_positive(at, self, "steps", "log_every", "eval_every", "eval_batches")
        check_positive(at, self, "checkpoint_every", "keep_checkpoints", "max_skipped_in_a_row")
        check_not_negative(at, self, "sample_tokens", "sample_temperature")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check_types("", self)
        length = self.data.sequence_length
        # A dense model has no groups.
        group = self.model.moe.group_size if self.model.moe.every else 1
        check(
            length % group == 0 or group % length == 0,
            f"--model.moe.group-size {group} must divide --data.sequence-length {length}, or be a"
            f" multiple of it.",
        )
        accumulate, batch = self.optim.accumulate, self.data.batch_size
        check(
            batch % accumulate == 0,
            f"--data.batch-size {batch} is not divisible by --optim.accumulate {accumulate}.",
        )
        for name, rows in (
            ("--data.batch-size / --optim.accumulate", batch // accumulate),
            ("--data.eval-batch-size", self.data.eval_batch_size),
        ):
            check(
                rows * length % group == 0,
                f"--model.moe.group-size {group} does not divide the {rows * length} tokens of a"
                f" batch of {name} = {rows} sequences of {length}.",
            )
        check(
            self.model.moe.every == 0 or self.model.moe.num_experts % self.mesh.expert == 0,
            f"--model.moe.num-experts {self.model.moe.num_experts} is not divisible by"
            f" --mesh.expert {self.mesh.expert}.",
        )

    @property
    def sequences_per_group(self) -> int:
        """Whole sequences that must stay together: a routing group's, or 1 where it is a part of
        one; a dense model has no groups.
        """
        if not self.model.moe.every:
            return 1
        return max(1, self.model.moe.group_size // self.data.sequence_length)


def to_dict(config: Any) -> dict[str, Any]:
    """The settings as nested dicts of plain values, as written to ``config.json``."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict[str, Any], at: str = "") -> Any:
    """The inverse of ``to_dict``: a dataclass from nested dicts; unknown fields are errors."""
    check(isinstance(values, dict), f"{at or 'the whole'} should be an object, not {values!r}.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    check(not unknown, f"unknown settings: {', '.join(at + name for name in unknown)}.")
    nested = {
        name: from_dict(hints[name], value, f"{at}{name}.")
        if dataclasses.is_dataclass(hints[name])
        else value
        for name, value in values.items()
    }
    return cls(**nested)


def load_config_file(path: str | Path) -> Config:
    """Run ``get_config()`` of a config file. Raises ``ConfigError`` when there is none, or it
    fails.
    """
    path = Path(path)
    check(path.suffix == ".py", f"--config {path} is not a Python file (configs/quickstart.py is).")
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise ConfigError(
            f"no config file {path}." + (f" There are: {', '.join(near)}." * bool(near))
        )
    module = _run_file(path)
    check(hasattr(module, "get_config"), f"{path} has no function get_config() -> Config.")
    try:
        config = module.get_config()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path}: get_config() failed: {error!r}.") from error
    check(
        isinstance(config, Config),
        f"{path}: get_config() must return a moejax.config.Config, not {type(config).__name__}.",
    )
    return config


def _run_file(path: Path) -> types.ModuleType:
    """Import one file, without leaving a module of its name behind for others to find."""
    spec = importlib.util.spec_from_file_location(f"moejax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # a config may build on the one beside it
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} cannot be run: {error!r}.") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def read_config_json(path: Path) -> Config:
    """The settings of a run directory."""
    try:
        return from_dict(Config, json.loads(path.read_text(encoding="utf-8")))
    except (ConfigError, json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged: {error}.") from error


def differences(old: Any, new: Any, at: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields that differ between two configs: ``{"optim.learning_rate": (old, new)}``."""
    found: dict[str, tuple[Any, Any]] = {}
    for item in dataclasses.fields(old):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if dataclasses.is_dataclass(before):
            found |= differences(before, after, f"{at}{item.name}.")
        elif before != after:
            found[at + item.name] = (before, after)
    return found
