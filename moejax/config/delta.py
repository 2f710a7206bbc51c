"""Settings of layers with a memory of fixed size in attention's place (Gated DeltaNet)."""

from dataclasses import dataclass
from typing import NamedTuple

from moejax.config.checks import check_at_most, check_sizes, check_types

MOST_CONVOLUTION = 1024


class DeltaSizes(NamedTuple):
    """The sizes of such a layer, with defaults filled in."""

    key_heads: int
    """J."""
    value_heads: int
    """H, a multiple of J."""
    key_size: int
    """Width of a head's queries and keys (A)."""
    value_size: int
    """Width of a head's values (U)."""
    convolution: int


@dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """The `delta` layers of --model.attention.kinds: Gated DeltaNet (Yang, Kautz & Hatamizadeh
    2024)."""

    key_heads: int | None = None
    """Heads of queries and keys; by default as many as --model.num-heads."""
    value_heads: int | None = None
    """Heads of values, a multiple of the key heads; by default as many as these."""
    key_size: int | None = None
    """Width of a head's queries and keys; by default --model.head-size."""
    value_size: int | None = None
    """Width of a head's values; by default that of its keys."""
    convolution: int = 4
    """Positions that the short convolution looks at, the own included."""

    def __post_init__(self) -> None:
        at = "model.delta"
        check_types(at, self)
        check_sizes(at, self, "key_heads", "value_heads", "key_size", "value_size", "convolution")
        check_at_most(MOST_CONVOLUTION, at, self, "convolution")
