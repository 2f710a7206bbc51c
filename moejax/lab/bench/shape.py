"""The layer that a benchmark measures: its settings and the size of its input."""

from dataclasses import dataclass
from typing import Any, Literal

from moejax.config.checks import check, check_sizes
from moejax.config.errors import ConfigError
from moejax.config.moe import MoEConfig

GROUP = 256
"""Tokens in a group of einsum and gather, by default."""

FLAGS = {
    "--model.moe.num-experts": "--experts",
    "--model.moe.hidden-size": "--hidden",
    "--model.moe.": "--",
}
"""Flags of a config, and their names here."""


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A routed layer and its input."""

    tokens: int = 8192
    """Tokens (T)."""
    experts: int = 8
    """Experts (E)."""
    top_k: int = 2
    """Experts a token chooses (K)."""
    width: int = 512
    """Width (D)."""
    hidden: int = 1024
    """Hidden width of an expert (F); the dense layer has K * F."""
    activation: Literal["swiglu", "geglu", "gelu", "relu"] = "swiglu"
    """The feed-forward function."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations and products."""
    router: str = "top_k"
    """The router."""
    dispatch: Literal["auto", "einsum", "gather", "grouped"] = "auto"
    """The form of dispatch."""
    group_size: int | None = None
    """Tokens that compete for slots together; by default 256, or all if nothing is dropped."""
    capacity_factor: float | None = None
    """Slots divided by the fair share; None drops nothing (einsum and gather then take 1.25)."""

    def __post_init__(self) -> None:
        check_sizes("", self, "tokens", "experts", "top_k", "width", "hidden")
        check(
            self.tokens % self.group == 0,
            f"--group-size {self.group} does not divide --tokens {self.tokens}.",
        )
        self.moe()

    @property
    def slots(self) -> float | None:
        """The capacity factor in force."""
        if self.capacity_factor is None and self.dispatch in ("einsum", "gather"):
            return 1.25
        return self.capacity_factor

    @property
    def group(self) -> int:
        """The group size in force."""
        return self.group_size or (self.tokens if self.slots is None else min(GROUP, self.tokens))

    def moe(self) -> MoEConfig:
        """The settings of the routed layer. Raises ``ConfigError``, which names the flags here."""
        settings: dict[str, Any] = {
            "num_experts": self.experts,
            "top_k": self.top_k,
            "hidden_size": self.hidden,
            "router": self.router,
            "dispatch": self.dispatch,
            "group_size": self.group,
            "capacity_factor": self.slots,
        }
        try:
            return MoEConfig(**settings)
        except ConfigError as error:
            message = str(error)
            for there, here in FLAGS.items():
                message = message.replace(there, here)
            raise ConfigError(message) from error


def check_groups(flag: str, tokens: int) -> None:
    """Raise ``ConfigError`` if the tokens cannot be cut into groups of ``GROUP``."""
    check(
        tokens % min(GROUP, tokens) == 0,
        f"--{flag} must be a multiple of {GROUP}, the groups of einsum and gather, or fewer, not"
        f" {tokens}.",
    )
