"""Settings of the engine."""

from dataclasses import dataclass

from moejax.config.checks import check, check_sizes
from moejax.models.kv_cache import CacheType


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How many texts run at once, and how the cache that they share is cut into pages."""

    seats: int = 32
    """Texts that run at once, on all devices together; others wait."""
    max_queue: int = 1024
    """Texts that may wait; more are refused."""
    page: int | None = None
    """Positions of a page of the cache: small ones waste less, as the last page of a text is half
    empty on average, and large ones are quicker. By default 4, 8 or 16, by the length of texts."""
    pages: int | None = None
    """Pages on each device; by default as many as --memory-share holds, and no more than texts of
    the longest kind on all seats could fill."""
    memory_share: float | None = None
    """Of the memory that a device has left when the model is there, so much is for pages; by
    default 0.9, and 0.5 of what is free in the machine where its CPU is the device."""
    chunk: int | None = None
    """Tokens of a prompt that are read in one call (and up to whole pages): larger ones read
    prompts sooner, and hold up running texts longer. By default 64, and 256 where a text may have
    512 positions or more."""
    prompt_rows: int = 4
    """Prompts that one call reads, at most, on each device."""
    prompt_calls: int = 1
    """Calls that read prompts between two that add a token to each running text: with more, new
    texts begin sooner, and running ones are held up longer."""
    share_prefixes: bool = True
    """Texts that begin alike, by whole pages, have these pages together, and pages of texts that
    have ended are kept until there is need of them."""
    window: int | None = None
    """Positions that a position sees, itself included, and the longest prompt in tokens; by default
    as many as the model was trained on."""
    cache: CacheType | None = None
    """Type of the cache of keys and values; by default that of the activations."""

    def __post_init__(self) -> None:
        check_sizes("", self, "seats", "max_queue", "page", "pages", "chunk", "window")
        check_sizes("", self, "prompt_rows", "prompt_calls")
        check(
            self.memory_share is None or 0 < self.memory_share <= 1,
            f"--memory-share must lie in (0, 1], not {self.memory_share}.",
        )
        check(
            self.pages is None or self.pages > 1,
            f"--pages must be at least 2, not {self.pages}: one of them is kept for padding.",
        )
