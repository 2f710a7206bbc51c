"""Settings of attention: its form beside the numbers of heads, and its rotary positions."""

from dataclasses import dataclass
from typing import Literal

from moejax.config.checks import (
    check,
    check_positive,
    check_sizes,
    check_types,
    flag,
    make_tuples,
)

AttentionKind = Literal["full", "window", "delta"]
"""What the positions of a layer see: all that is before them, or the last ones of it; or a memory
of it."""
AttentionForm = Literal["auto", "dense", "blockwise", "splash", "cudnn"]
"""How scores of pairs of positions are computed."""


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """How rotary positions are stretched beyond the length that a model was first trained on."""

    scaling: Literal["none", "linear", "yarn", "llama3"] = "none"
    """`linear` (Chen et al. 2023): positions over the factor. `yarn` (Peng et al. 2023): slow pairs
    only. `llama3` (Llama 3.1's code): slow pairs, with a smooth border."""
    factor: float = 1.0
    """How many times as long."""
    original_length: int = 4096
    """The length at first, in positions (`yarn`, `llama3`)."""
    beta_fast: float = 32.0
    """`yarn`: pairs that turn at least so often over the original length stay as they are."""
    beta_slow: float = 1.0
    """`yarn`: pairs that turn less often are stretched by the whole factor."""
    truncate: bool = True
    """`yarn`: round the border between them to whole pairs."""
    amplitude: float | None = None
    """`yarn`: multiplies rotated queries and keys; by default 0.1 ln(factor) + 1 (Eq. 22)."""
    low_frequency_factor: float = 1.0
    """`llama3`: pairs whose wavelength is more than the original length over this are stretched."""
    high_frequency_factor: float = 4.0
    """`llama3`: pairs whose wavelength is less than the original length over this are not."""

    def __post_init__(self) -> None:
        at = "model.rope"
        check_types(at, self)
        check_sizes(at, self, "original_length")
        check_positive(at, self, "factor", "beta_fast", "beta_slow", "amplitude")
        check_positive(at, self, "low_frequency_factor", "high_frequency_factor")
        check(
            self.low_frequency_factor < self.high_frequency_factor,
            f"--{at}.low-frequency-factor {self.low_frequency_factor} must be less than"
            f" --{at}.high-frequency-factor {self.high_frequency_factor}.",
        )


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The form of attention. With `kv_rank` it is multi-head latent attention (DeepSeek-V2)."""

    form: AttentionForm = "auto"
    """How it is computed; all forms give the same. `dense`: all scores of pairs of positions at
    once. `blockwise`: block by block, so that memory grows with the length and not with its square;
    blocks that no query sees are left out. `splash` and `cudnn`: likewise, by libraries' kernels
    for TPUs and for NVIDIA GPUs; what these cannot carry, `blockwise` does. `auto` takes what is
    quickest on the platform."""
    kv_rank: int | None = None
    """Width of the latent vector from which all heads' keys and values are made; None: grouped
    queries."""
    query_rank: int | None = None
    """Latent attention: width of the vector from which queries are made; None: from the residual
    stream."""
    rope_head_size: int = 64
    """Latent attention: width of a head's rotated part, beside --model.head-size without
    positions."""
    rotary_size: int | None = None
    """Grouped queries: only so many numbers of a head, the first ones, have rotary positions; by
    default all."""
    value_head_size: int | None = None
    """Latent attention: width of a head's values; by default --model.head-size."""
    bias: Literal["none", "qkv", "all"] = "none"
    """Biases on queries, keys and values (Qwen2), or on the output, too (gpt-oss)."""
    qk_norm_over: Literal["head", "width"] = "head"
    """With --model.qk-norm: over each head, or over all of them together (OLMoE)."""
    qk_norm_place: Literal["before_rotation", "after_rotation"] = "before_rotation"
    """With --model.qk-norm: on queries and keys without positions, or with them (Hunyuan), which
    then tell more than how far apart two are."""
    output_gate: bool = False
    """Multiply what heads find, number by number, by a sigmoid of a product of the layer's input
    (Qiu et al. 2025), before it is multiplied back to the model's width."""
    sinks: bool = False
    """A learned logit in each head's softmax that takes weight and gives nothing (gpt-oss)."""
    window: int | None = None
    """Positions that a position sees, itself included; None: all before it."""
    kinds: tuple[AttentionKind, ...] = ()
    """What the layers see, from the first: a pattern that is repeated, `window window full` say, or
    an entry for each layer. `full`: all positions before; `window`: those of the window; `delta`: a
    memory of fixed size in attention's place (--model.delta). By default all layers are alike."""
    full_every: int = 0
    """Every n-th layer sees all positions in spite of the window; 0: none does. It is short for
    kinds: n - 1 times `window`, then `full`."""
    rotary_in: Literal["all", "window", "none"] = "all"
    """Which kinds of layers have rotary positions. Those without (NoPE, Kazemnejad et al. 2023)
    know the order of positions by the causal mask alone."""
    window_rope_theta: float | None = None
    """Base of the rotary positions of layers with a window, which are not stretched then; by
    default they are as in the others."""
    longest: int | None = None
    """The longest text that may be read, in tokens: beyond it a released model computes something
    else, which is not here (DeepSeek-V3.2 chooses what it looks at)."""
    scale: float | None = None
    """Multiplies the scores; by default 1 / sqrt(width of a query head)."""

    def __post_init__(self) -> None:
        at = "model.attention"
        make_tuples(self, "kinds")
        check_types(at, self)
        check_sizes(
            at, self, "kv_rank", "query_rank", "rope_head_size", "value_head_size", "window"
        )
        check_sizes(at, self, "rotary_size", "longest")
        check_positive(at, self, "scale", "window_rope_theta")
        check(self.full_every >= 0, f"--{at}.full-every must be at least 0, not {self.full_every}.")
        check(
            not self.kinds or self.full_every == 0,
            f"--{at}.full-every {self.full_every} and --{at}.kinds {' '.join(self.kinds)} both say"
            f" which layers see all positions: leave one of them out (0 for --{at}.full-every).",
        )
        check(
            "window" not in self.kinds or self.window is not None,
            f"--{at}.kinds {' '.join(self.kinds)} has layers with a window: give --{at}.window,"
            f" too, the number of positions that they see.",
        )
        for name in ("rope_head_size", "rotary_size"):
            size = getattr(self, name)
            check(size is None or size % 2 == 0, f"{flag(at, name)} must be even, not {size}.")
        if self.kv_rank is None:
            for name in ("query_rank", "value_head_size"):
                check(
                    getattr(self, name) is None,
                    f"--{at}.{name.replace('_', '-')} is of latent attention: give --{at}.kv-rank,"
                    f" too, or leave it out.",
                )
            return
        check(
            self.bias == "none" and not self.sinks,
            f"--{at}.kv-rank (latent attention) has no --{at}.bias and no --{at}.sinks: leave them"
            f" out.",
        )
        check(
            self.rotary_size is None,
            f"--{at}.rotary-size {self.rotary_size} is of grouped queries: in latent attention"
            f" (--{at}.kv-rank) give --{at}.rope-head-size.",
        )


def check_length(settings: AttentionConfig, length: int, named: str) -> None:
    """Raise ``ConfigError`` if a text of so many tokens, ``named`` so, is too long to be read."""
    longest = settings.longest or length
    check(
        length <= longest,
        f"{named}: the model reads at most {longest:,} tokens (--model.attention.longest). Beyond"
        f" them it was released with arithmetic that is not here: give no longer texts.",
    )
