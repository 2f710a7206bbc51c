"""Limits of what a client may ask for."""

from dataclasses import dataclass

from moejax.config.checks import check_positive, check_sizes
from moejax.config.json_files import MEBIBYTE


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may ask for."""

    max_body: int = 4 * MEBIBYTE
    """Bytes of a request's body."""
    max_prompt: int | None = None
    """Tokens of a prompt; by default as many as the model sees (--window)."""
    max_time: float = 600.0
    """Seconds from a request to the end of its answer."""

    def __post_init__(self) -> None:
        check_sizes("", self, "max_body", "max_prompt")
        check_positive("", self, "max_time")
