"""A part of a tensor that is stored in several."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """What one of them must be."""

    suffix: str
    """Added to the name of the whole tensor."""
    kinds: tuple[str, ...]
    """Types on disk that it may have; the first is written."""
    shape: tuple[int, ...]
