"""What the engine says about itself. Letters: Q: devices that hold experts."""

from bisect import bisect_left
from dataclasses import dataclass, field, replace

import numpy as np

from moejax.moe.parallel.placement import balancedness
from moejax.moe.parallel.replan import weigh_layers

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

    def add(self, value: float, times: int = 1) -> None:
        """Count a value that came so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

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
    drafted: int = 0
    """Drafts that were checked."""
    accepted: int = 0
    """Those of them that were right, and came before the end of their text."""
    ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDINGS, 0))
    first: Counter = field(default_factory=lambda: Counter(FIRST_SECONDS))
    next: Counter = field(default_factory=lambda: Counter(NEXT_SECONDS))


@dataclass(frozen=True, kw_only=True)
class Balance:
    """The load of the devices that hold experts, while these follow it: choices, by layer."""

    now_LQ: np.ndarray
    """Of the last interval, with experts where they were then; 0 before there was any load."""
    before_LQ: np.ndarray | None = None
    """The load of the last minutes by which experts moved the last time, where they had been."""
    after_LQ: np.ndarray | None = None
    """The same load where they have been since."""
    moves: int = 0
    """How often experts moved."""
    copied: int = 0
    """Experts that were copied to another place, by all moves, in all layers."""

    def at(self, now_LQ: np.ndarray) -> "Balance":
        """With a new interval."""
        return replace(self, now_LQ=now_LQ)

    def moved(self, before_LQ: np.ndarray, after_LQ: np.ndarray, copied: int) -> "Balance":
        """With one more move."""
        return replace(
            self,
            before_LQ=before_LQ,
            after_LQ=after_LQ,
            moves=self.moves + 1,
            copied=self.copied + copied,
        )

    def shares(self) -> dict[str, tuple[float, np.ndarray]]:
        """Mean over largest load of the devices, ``now``, and ``before`` and ``after`` the last
        move: of all layers together (see ``weigh_layers``), and of each.
        """
        loads = {"now": self.now_LQ, "before": self.before_LQ, "after": self.after_LQ}
        return {
            when: (weigh_layers(load_LQ), balancedness(load_LQ))
            for when, load_LQ in loads.items()
            if load_LQ is not None
        }


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
    drafted: int
    """Drafts that were checked."""
    accepted: int
    """Those of them that texts got: tokens for which the model was not called."""
    ended: dict[str, int]
    """Texts by how they ended (``ENDINGS``)."""
    first_seconds: Histogram
    """From when a text was asked for to its first token."""
    next_seconds: Histogram
    """From one token of a text to the next one."""
    load_LE: np.ndarray | None
    """Choices that were asked of each expert, by layer; None: the model routes nothing."""
    balance: Balance | None = None
    """How the devices share the load; None: experts stay where they are."""
    failed: str | None = None
    """The error that stopped the engine."""
