"""Which source each sequence is of, in a mixture: a pure function of its number.

The sequences of a run are numbered: batch b of B sequences has the numbers from b B on. Of the
first k of them, n_i(k) are of source i: with whole parts w_i of W = sum w_i,

    r_0 = k,  W_0 = W;   r_{i+1} = floor(r_i (W_i - w_i) / W_i + 1/2),  W_{i+1} = W_i - w_i
    n_i(k) = r_i - r_{i+1}

Each n_i lies within a few of k w_i / W for every k, never falls, and one of them alone grows from k
to k + 1. So a batch has n_i((b + 1) B) - n_i(b B) sequences of source i; which rows they are is
drawn for each batch anew, from the seed and b, so that no row, device or stream of
``--data.shards`` always has the same source. Nothing depends on processes, or on what was read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moejax.config.checks import check

WHOLE = 2**48
"""W: shares are rounded to parts of it."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How much of a source is wanted; see ``config.mixture.SourceConfig``."""

    name: str
    weight: float | None
    epochs: float | None
    rows: float | None = None
    """Sequences in an epoch; known where there are ``epochs``."""

    @property
    def total(self) -> float:
        """Sequences in all its epochs."""
        assert self.epochs is not None and self.rows is not None
        return self.epochs * self.rows


@dataclass(frozen=True)
class Stretch:
    """A stretch of the run in which shares stay the same."""

    begin: int
    """The number of its first sequence."""
    before: tuple[int, ...]
    """Sequences of each source before it."""
    parts: tuple[int, ...]
    """w_i."""

    def count(self, number: int) -> list[int]:
        """n_i: how many of the first ``number`` sequences are of each source."""
        return [
            taken + n
            for taken, n in zip(
                self.before, count_rows(number - self.begin, self.parts), strict=True
            )
        ]


@dataclass(frozen=True)
class Plan:
    """Of which source each sequence is."""

    names: tuple[str, ...]
    stretches: tuple[Stretch, ...]
    most: tuple[int | None, ...]
    """Sequences of each source after which its part goes to others."""

    def count(self, number: int) -> list[int]:
        """n_i: how many of the first ``number`` sequences are of each source."""
        return next(s for s in reversed(self.stretches) if s.begin <= number).count(number)

    def draw(self, batch: int, size: int, seed: int) -> np.ndarray:
        """The source of each row of a batch, the first being 0: int32 [B]."""
        begin, end = self.count(batch * size), self.count((batch + 1) * size)
        counts = [after - before for before, after in zip(begin, end, strict=True)]
        sources_B = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        # Raw bits, as the methods of numpy's generators may change from version to version.
        bits_B = np.random.Philox(key=[seed, batch]).random_raw(size)
        return sources_B[np.argsort(bits_B, kind="stable")]

    def takes(self, source: int) -> bool:
        """Whether the source of this number gives any sequence."""
        return any(stretch.parts[source] for stretch in self.stretches)

    def describe(self) -> dict[str, str]:
        """By name: all that the order of sources depends on, but for the seed and the steps."""
        parts = self.stretches[0].parts
        return {
            name: f"{part / sum(parts)!r} of the sequences"
            + (f", {most} at most" if most is not None else "")
            for name, part, most in zip(self.names, parts, self.most, strict=True)
        }

    def shares(self, rows: int) -> list[float]:
        """The share of each source in so many sequences."""
        return [count / rows for count in self.count(rows)]


def count_rows(number: int, parts: Sequence[int]) -> list[int]:
    """n_i of the equation above, for whole ``parts``."""
    left, whole, counts = number, sum(parts), []
    for part in parts:
        after = (left * (whole - part) + whole // 2) // whole if whole else left
        counts.append(left - after)
        left, whole = after, whole - part
    return counts


def make_plan(wanted: Sequence[Wanted], steps: int, batch_size: int) -> Plan:
    """The plan for a run of so many steps. Raises ``ConfigError`` if epochs and steps do not fit.

    A source with epochs alone has its sequences spread evenly over all steps. Weights share what is
    left. A source with both has its weight until its epochs are over.
    """
    rows = steps * batch_size
    names = tuple(one.name for one in wanted)
    fixed = [one.total / rows if one.weight is None else 0.0 for one in wanted]
    weights = [one.weight or 0.0 for one in wanted]
    needs = math.fsum(fixed)
    if not any(weights):
        _check_alone(wanted, needs * rows, steps, batch_size)
        stretch = Stretch(0, (0,) * len(names), _round(fixed))
        return Plan(names, (stretch,), (None,) * len(names))
    _check_room(wanted, needs, steps)
    most = tuple(_most(one) if one.weight and one.epochs is not None else None for one in wanted)
    stretches: list[Stretch] = []
    begin, before = 0, [0] * len(names)
    while begin < rows:
        open_weights = [
            weight if end is None or taken < end else 0.0
            for weight, end, taken in zip(weights, most, before, strict=True)
        ]
        whole = math.fsum(open_weights)
        check(whole > 0, _say_used_up(wanted, begin // batch_size, steps))
        shares = [f + (1 - needs) * w / whole for f, w in zip(fixed, open_weights, strict=True)]
        stretch = Stretch(begin, tuple(before), _round(shares))
        stretches.append(stretch)
        begin = min([rows, *_find_ends(stretch, most)])
        before = stretch.count(begin)
    return Plan(names, tuple(stretches), most)


def _most(one: Wanted) -> int:
    """Sequences after which the epochs of a source with a weight are over."""
    return max(1, math.ceil(one.total))


def _find_ends(stretch: Stretch, most: Sequence[int | None]) -> list[int]:
    """The numbers of sequences at which sources that are taken have all of their epochs."""
    ends = []
    for i, end in enumerate(most):
        if end is None or not stretch.parts[i]:
            continue
        low, step = stretch.begin, 1
        while stretch.count(low + step)[i] < end:
            step *= 2
        high = low + step
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if stretch.count(middle)[i] < end else (low, middle)
        ends.append(high)
    return ends


def _round(shares: Sequence[float]) -> tuple[int, ...]:
    """Whole parts, about ``WHOLE`` together, in proportion to shares; what has some keeps some."""
    whole = math.fsum(shares)
    return tuple(max(1, round(share / whole * WHOLE)) if share else 0 for share in shares)


def _check_alone(wanted: Sequence[Wanted], rows: float, steps: int, batch_size: int) -> None:
    """Epochs alone say how many steps there are."""
    right = max(1, round(rows / batch_size))
    names = ", ".join(one.name for one in wanted if one.weight is None)
    check(
        abs(steps - rows / batch_size) <= 1,
        f"the epochs of {names} are {right:,} steps, and --run.steps is {steps:,}: write"
        f" --run.steps {right}, or give a source a weight instead of epochs.",
    )


def _check_room(wanted: Sequence[Wanted], needs: float, steps: int) -> None:
    """Weights share what epochs leave."""
    names = ", ".join(one.name for one in wanted if one.weight is None)
    least = math.floor(needs * steps) + 1
    check(
        needs < 1,
        f"the epochs of {names} need all of --run.steps {steps:,}, which leaves nothing for sources"
        f" with weights: write --run.steps {least} or more, or fewer epochs.",
    )


def _say_used_up(wanted: Sequence[Wanted], step: int, steps: int) -> str:
    names = ", ".join(one.name for one in wanted if one.weight)
    return (
        f"the epochs of {names} are over after step {step:,}, and no source with a weight is left"
        f" for the others of --run.steps {steps:,}: write --run.steps {step}, more epochs, or a"
        f" weight without epochs for one of them."
    )
