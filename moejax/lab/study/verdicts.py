"""The verdicts of a study: its runs as arms, and what is known of them in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moejax.config.measure import Measure
from moejax.lab.study.results import Comparison, Outcome
from moejax.lab.study.statistics import (
    ERROR,
    Arm,
    Verdict,
    find_best,
    judge,
    judge_all_pairs,
)
from moejax.runs.metric_lines import last
from moejax.runtime.number_words import count

MARK = "†"
"""In a table, after what cannot be told from the best."""


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What is decided in a comparison, and what is not."""

    against: Mapping[str, Verdict]
    """Each run against the baseline; empty without one."""
    pairs: Mapping[tuple[str, str], Verdict]
    """Each run against each that comes after it."""
    best: frozenset[str]
    """The runs that cannot be told from the best; empty where no run has two seeds."""
    finished: int
    """Of how many runs, those with a seed that has finished."""
    looks: int
    margin: float | None

    @property
    def level(self) -> str:
        """How sure an interval is: `95 %`."""
        return f"{100 * (1 - ERROR / self.looks):g} %"


def make_verdicts(comparison: Comparison) -> Verdicts:
    """Compare the runs with each other, and with the baseline if it has finished."""
    arms = make_arms(comparison.every_seed())
    looks, margin = 1 + bool(comparison.more_seeds), comparison.margin
    base = comparison.baseline
    finished = [name for name, arm in arms.items() if arm.values]
    decidable = any(len(arms[name].values) > 1 for name in finished) and len(finished) > 1
    return Verdicts(
        against=judge(arms, base.name, looks=looks, margin=margin) if base else {},
        pairs=judge_all_pairs(arms, looks=looks, margin=margin),
        best=frozenset(find_best(arms, looks=looks)) if decidable else frozenset(),
        finished=len(finished),
        looks=looks,
        margin=margin,
    )


def make_arms(runs: Mapping[str, Sequence[Outcome]]) -> dict[str, Arm]:
    """The measure of every run by seed. One that has finished without a finite measure counts as
    diverged.
    """
    arms = {}
    for name, outcomes in runs.items():
        found = {
            one.seed: last(one.run.validation, one.measure.key)
            for one in outcomes
            if one.run and one.status == "finished"
        }
        values = {seed: value for seed, value in found.items() if math.isfinite(value)}
        diverged = {one.seed for one in outcomes if one.status == "diverged"}
        done = diverged | found.keys()
        arms[name] = Arm(
            values=values,
            diverged=diverged | (found.keys() - values.keys()),
            missing={one.seed for one in outcomes} - done,
        )
    return arms


def describe(verdict: Verdict, measure: Measure, margin: float | None = None) -> str:
    """A verdict in words: `better by 0.0340 (0.0210 to 0.0470)`; a dash where nothing is known."""
    if not verdict.seeds:
        return "–"
    sign, plain, seeds = measure.difference, measure.digits, len(verdict.seeds)
    mean, edges = sign(verdict.mean), f" ({sign(verdict.low)} to {sign(verdict.high)})"
    if not math.isfinite(verdict.low):
        edges = ""
    low, high = sorted((abs(verdict.low), abs(verdict.high)))
    match verdict.kind:
        case "better" | "worse":
            return f"{verdict.kind} by {plain(abs(verdict.mean))} ({plain(low)} to {plain(high)})"
        case "same":
            within = f"{measure.scale * (margin or 0.0):g}{'%' * measure.percent}"
            return f"the same within {within}: {mean}{edges}"
        case "equal":
            return f"equal with all {count(seeds, 'seed')}"
        case "waiting":
            return f"not decided yet: {mean}"
    return f"{_say_why(verdict)}: {mean}{edges}"


def _say_why(verdict: Verdict) -> str:
    """Why a verdict is not decided, if more can be said than that the interval has 0 in it."""
    for lost, who in ((verdict.lost, "it"), (verdict.lost_other, "the other")):
        if lost:
            return f"not decided, {who} diverged with {name_seeds(lost)}"
    if len(verdict.seeds) == 1:
        return "one seed: not decided"
    if not math.isfinite(verdict.low):
        return "not decided, no spread to judge by"
    alone = verdict.low > 0 or verdict.high < 0
    return "not decided after Holm" if alone else "not decided"


def name_seeds(seeds: Sequence[int]) -> str:
    """`seed 1`, or `seeds 1, 2`."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def write_notes(verdicts: Verdicts, comparison: Comparison) -> list[str]:
    """How to read the verdicts of a table: a sentence or two for each kind that it has."""
    notes = []
    base, measure = comparison.baseline, comparison.measure
    if base and verdicts.against:
        notes.append(
            f"Against {base.name}: the mean difference of {measure.name} with the same seed, and"
            f" its {verdicts.level} interval over seeds (Student's t) as a single comparison. The"
            f" verdicts are after Holm's correction over"
            f" {count(len(verdicts.against), 'comparison')} at {100 * ERROR:g} %."
        )
    if verdicts.against and verdicts.margin is not None:
        notes.append(
            "The same: the interval lies within the margin, after the same correction; so it does"
            " not matter whether 0 lies in it."
        )
    if verdicts.looks > 1:
        first, more = map(name_seeds, (comparison.first_seeds, comparison.more_seeds))
        notes.append(
            f"Two looks: what {first} did not decide was also trained with {more}, as was the"
            f" baseline. Each look has half of the {100 * ERROR:g} %. All other columns are of"
            f" {first}."
        )
    if verdicts.best and len(verdicts.best) > 1:
        others = verdicts.finished - 1
        notes.append(
            f"{MARK} cannot be told from the best: no other run is known to be better than it"
            f" ({count(others, 'comparison')}, {100 * ERROR:g} % in all)."
        )
    elif not verdicts.best and verdicts.finished > 1:
        notes.append("No run has two seeds that have finished: they cannot be told apart.")
    return notes
