"""Which runs of a study are better than another, by how much, and what is not decided.

Pure functions of numbers; less is better. A seed gives all runs the same batches, so runs are
compared by their differences with the same seed: what a seed adds to all runs is not in them.

Intervals and p are Student's, of paired differences. A bootstrap is no help with so few seeds: of
three numbers there are ten resamples, and the interval from their percentiles has the true mean in
three of four cases, not in 95 of 100 (``tests/test_study_statistics.py`` counts it). A test by
signs can decide nothing before the sixth seed.

Letters: A: comparisons; N: seeds.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

ERROR = 0.05
"""The share of studies in which one verdict or more may be false."""
NO_SPREAD = 1e-9
"""Differences that vary by less, as a share of their mean, are one number and its rounding."""

Kind = Literal["better", "worse", "same", "equal", "undecided", "waiting", "unknown"]
"""``same``: within the margin. ``equal``: to the last digit, with every seed. ``waiting``: some
seeds are still to be trained. ``unknown``: there is nothing to compare."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one run came to with each of its seeds."""

    values: Mapping[int, float]
    """Its measure by seed, where it has finished."""
    diverged: Collection[int] = ()
    missing: Collection[int] = ()
    """Seeds that are still to be trained."""

    @property
    def seeds(self) -> set[int]:
        """All that it has or will have."""
        return {*self.values, *self.diverged, *self.missing}


@dataclass(frozen=True, kw_only=True)
class TTest:
    """What differences over seeds say of their mean; NaN where nothing can be said."""

    mean_A: np.ndarray
    low_A: np.ndarray
    high_A: np.ndarray
    p_A: np.ndarray
    """Of a mean of 0, two-sided."""
    p_same_A: np.ndarray
    """Of a mean as far from 0 as the margin, or farther."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of a run less another one."""

    kind: Kind
    seeds: tuple[int, ...]
    """With which both have finished."""
    mean: float
    low: float
    """The edges of the interval of this comparison alone."""
    high: float
    p: float
    """After the correction for all comparisons and looks: the difference is decided if this is at
    most ``ERROR``."""
    p_same: float
    """The same of ``same``."""
    lost: tuple[int, ...] = ()
    """Seeds with which this run diverged: it is not said to be better, then, or the same."""
    lost_other: tuple[int, ...] = ()
    """The same of the other."""

    def turned(self) -> "Verdict":
        """The same, of the other one less this."""
        kinds: dict[Kind, Kind] = {"better": "worse", "worse": "better"}
        return replace(
            self,
            kind=kinds.get(self.kind, self.kind),
            mean=0.0 - self.mean,  # and not -0.0
            low=0.0 - self.high,
            high=0.0 - self.low,
            lost=self.lost_other,
            lost_other=self.lost,
        )


def t_test(
    difference_AN: np.ndarray, *, error: float = ERROR, margin: float | None = None
) -> TTest:
    """Student's t test and its interval, which misses the mean with probability ``error``.

    ``p_same_A`` is at most ``error`` where the interval lies within ``margin`` on either side of 0:
    two one-sided tests (Schuirmann 1987), each at half of ``error``, so that what is said to be the
    same is what the interval shows. Differences that are all 0 are ``equal``: the interval is 0,
    and p is 1. Other differences without a spread, such as of one image more with every seed, tell
    nothing of it: NaN, as is everything but the mean of a single one.
    """
    count = difference_AN.shape[-1]
    unknown_A = np.full(difference_AN.shape[:-1], math.nan)
    if count < 2:
        mean_A = difference_AN[..., 0] if count else unknown_A
        return TTest(
            mean_A=mean_A, low_A=unknown_A, high_A=unknown_A, p_A=unknown_A, p_same_A=unknown_A
        )
    mean_A, spread_A = difference_AN.mean(-1), difference_AN.std(-1, ddof=1)
    equal_A = (difference_AN == 0).all(-1)
    scale_A = np.where(spread_A > NO_SPREAD * np.abs(mean_A), spread_A / math.sqrt(count), math.nan)
    half_A = np.where(equal_A, 0.0, stdtrit(count - 1, 1 - error / 2) * scale_A)
    p_A = 2 * stdtr(count - 1, -np.abs(mean_A) / scale_A)
    beyond_A = (np.abs(mean_A) - (margin or 0.0)) / scale_A
    p_same_A = np.minimum(2 * stdtr(count - 1, beyond_A), 1.0)
    return TTest(
        mean_A=mean_A,
        low_A=mean_A - half_A,
        high_A=mean_A + half_A,
        p_A=np.where(equal_A, 1.0, p_A),
        p_same_A=np.where(equal_A, float(margin is None), p_same_A),
    )


def correct_for_all(p_A: np.ndarray) -> np.ndarray:
    """Holm's correction over the last axis: what is at most ``ERROR`` may be called decided, and
    one or more of what is so called are false with probability ``ERROR`` at most, however the
    comparisons depend on each other. NaN, of which nothing is known, counts as a comparison.

    Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    known_A = np.where(np.isnan(p_A), 1.0, p_A)
    order_A = np.argsort(known_A, axis=-1)
    steps_A = np.take_along_axis(known_A, order_A, -1) * np.arange(p_A.shape[-1], 0, -1)
    found_A = np.empty_like(known_A)
    np.put_along_axis(
        found_A, order_A, np.maximum.accumulate(np.minimum(steps_A, 1.0), axis=-1), -1
    )
    return np.where(np.isnan(p_A), math.nan, found_A)


def judge(
    arms: Mapping[str, Arm], baseline: str, *, looks: int = 1, margin: float | None = None
) -> dict[str, Verdict]:
    """Each arm but ``baseline`` against it.

    ``looks``: how often the study looks at its results before it ends, if some arms may then have
    more seeds. Each look has its share of ``ERROR`` (Bonferroni): p is ``looks`` times as large,
    and the intervals are as much surer. That holds whatever is done after a look, and with any
    number of seeds; Pocock's levels (1977), 2.9 % for each of two looks, take a spread that is
    known and looks that are equally far apart. ``margin``: a difference that would matter.

    Differences and samenesses are two families with a correction each: a mean that is 0 can be
    called different by mistake, one beyond the margin the same, and no mean is both.
    """
    others = [name for name in arms if name != baseline]
    pairs = [(arms[name], arms[baseline]) for name in others]
    return dict(zip(others, _judge_pairs(pairs, looks, margin), strict=True))


def judge_all_pairs(
    arms: Mapping[str, Arm], *, looks: int = 1, margin: float | None = None
) -> dict[tuple[str, str], Verdict]:
    """Each arm against each that comes after it, corrected over all pairs."""
    names = list(itertools.combinations(arms, 2))
    pairs = [(arms[one], arms[other]) for one, other in names]
    return dict(zip(names, _judge_pairs(pairs, looks, margin), strict=True))


def _judge_pairs(
    pairs: Sequence[tuple[Arm, Arm]], looks: int, margin: float | None
) -> list[Verdict]:
    alone = [_compare(one, other, looks, margin) for one, other in pairs]
    p_A, same_A = (
        correct_for_all(np.minimum(looks * np.array(ps), 1.0))
        for ps in ([one.p for one in alone], [one.p_same for one in alone])
    )
    return [
        _decide(verdict, p, same)
        for verdict, p, same in zip(alone, p_A.tolist(), same_A.tolist(), strict=True)
    ]


def _compare(one: Arm, other: Arm, looks: int, margin: float | None) -> Verdict:
    """The difference by itself, not yet decided."""
    planned = one.seeds & other.seeds
    seeds = sorted(one.values.keys() & other.values.keys())
    difference_N = np.array([one.values[seed] - other.values[seed] for seed in seeds], float)
    found = t_test(difference_N, error=ERROR / looks, margin=margin)
    waits = bool(planned & {*one.missing, *other.missing})
    return Verdict(
        kind="waiting" if waits else "undecided" if seeds else "unknown",
        seeds=tuple(seeds),
        mean=float(found.mean_A),
        low=float(found.low_A),
        high=float(found.high_A),
        p=math.nan if waits else float(found.p_A),
        p_same=math.nan if waits else float(found.p_same_A),
        lost=tuple(sorted(planned & {*one.diverged})),
        lost_other=tuple(sorted(planned & {*other.diverged})),
    )


def _decide(alone: Verdict, p: float, p_same: float) -> Verdict:
    """The verdict on a difference, by the p that are corrected for all comparisons."""
    kind, lost = alone.kind, alone.lost + alone.lost_other
    if kind == "undecided":
        if alone.low == alone.high == 0 and not lost:
            kind = "equal"
        elif p_same <= ERROR and not lost:
            kind = "same"
        elif p <= ERROR and alone.mean < 0 and not alone.lost:
            kind = "better"
        elif p <= ERROR and alone.mean > 0 and not alone.lost_other:
            kind = "worse"
    return replace(alone, kind=kind, p=p, p_same=p_same)


def choose_for_more_seeds(
    arms: Mapping[str, Arm], baseline: str, *, margin: float | None = None
) -> tuple[str, ...]:
    """The runs that are not decided against the baseline by the first of two looks, and it itself;
    none until all first seeds are trained, since each counts in the correction.

    ``arms``: with their first seeds only, so that the answer stays the same while more are trained.
    A run that diverged with one of them gets no more: it cannot be called better any longer.
    """
    verdicts = judge(arms, baseline, looks=2, margin=margin)
    if any(verdict.kind == "waiting" for verdict in verdicts.values()):
        return ()
    names = [name for name, one in verdicts.items() if one.kind == "undecided" and not one.lost]
    return (baseline, *names) if names else ()


def find_best(arms: Mapping[str, Arm], *, looks: int = 1) -> set[str]:
    """The arms than which no other is known to be better: the best of all is among them with
    probability 1 - ``ERROR``.

    An arm is out if a one-sided test says that another is better, at ``ERROR`` by the number of the
    others. A subset selection (Gupta 1965), with Bonferroni's bound in the place of a spread that
    all arms have in common.
    """
    there = {name: arm for name, arm in arms.items() if arm.values}
    worse = set()
    for one, other in itertools.combinations(there, 2):
        found = _compare(there[one], there[other], looks, None)
        if looks * (len(there) - 1) * found.p / 2 <= ERROR:  # false for NaN
            loses, lost = (one, found.lost_other) if found.mean > 0 else (other, found.lost)
            worse |= set() if lost else {loses}
    return there.keys() - worse
