"""What the engine says about itself."""

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

FIRST_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
NEXT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

ENDINGS = ("end", "stop", "length", "cancelled", "failed")
"""How texts end; `failed`: the tokenizer could not make text of its tokens."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often values fell between bounds, as Prometheus has it."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    """Values up to each bound and above the one before it, and those above the last: one more
    number than bounds."""
    sum: float
    """Of all values."""


class Counter:
    """Values that become a histogram."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> Histogram:
        """All values so far."""
        return Histogram(bounds=self._bounds, counts=tuple(self._counts), sum=self._sum)


@dataclass
class Tally:
    """What has been counted since the start."""

    prompt_tokens: int = 0
    """Tokens of the prompts of texts that have begun."""
    drawn_tokens: int = 0
    """Tokens that texts have got."""
    prompt_calls: int = 0
    decode_calls: int = 0
    rows: int = 0
    """Tokens that were drawn, those included that came too late to be of use."""
    lost_rows: int = 0
    """Those that came too late: of texts that had ended, or had been cancelled."""
    ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDINGS, 0))
    first: Counter = field(default_factory=lambda: Counter(FIRST_SECONDS))
    next: Counter = field(default_factory=lambda: Counter(NEXT_SECONDS))


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """The engine between two calls of the model. Counts are since the start."""

    seats: int
    running: int
    """Texts that have a seat."""
    waiting: int
    pages: int
    """Pages of all lanes that texts can have."""
    pages_used: int
    pages_shared: int
    """Those of them that several texts have."""
    pages_kept: int
    """Free pages with a content that is known, so that a text that begins with it need not read
    it."""
    waste: float
    """Of the slots of used pages, so much holds nothing that a later token sees."""
    prompt_tokens: int
    drawn_tokens: int
    prefix_hits: int
    """How often a text found pages that it could share."""
    prefix_tokens: int
    """Tokens that were not read because of it."""
    put_back: int
    """How often a text gave up its pages for others, to go on later."""
    prompt_calls: int
    decode_calls: int
    rows: int
    """Tokens that were drawn."""
    lost_rows: int
    """Those of them that came after the end of a text: what it costs not to wait for tokens."""
    ended: dict[str, int]
    """Texts by how they ended (``ENDINGS``)."""
    first_seconds: Histogram
    """From when a text was asked for to its first token."""
    next_seconds: Histogram
    """From one token of a text to the next one."""
    load_LE: np.ndarray | None
    """Choices that were asked of each expert, by layer; None: the model routes nothing."""
    failed: str | None = None
    """The error that stopped the engine."""
