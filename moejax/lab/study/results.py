"""The runs of a study in figures: what each came to, over its seeds.

A figure is a number of ``compute_figures``. One that a run does not have (a dense model's drops,
the measure of a run that diverged) is NaN here, null in JSON and a dash in the table. The steps of
a run that never reaches the baseline are infinite here, null in JSON, and `never` in the table.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from moejax.config.measure import BITS_PER_BYTE, Measure
from moejax.lab.study.baseline import Baseline, count_training_seconds, reach
from moejax.runs.metric_lines import column, last, number
from moejax.runs.records import Run

Status = Literal["finished", "diverged", "not finished", "not trained"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of a study with one of its seeds, and what there is of it."""

    name: str
    seed: int
    label: str
    """The name of its directory: the run's, with the seed when there are several."""
    status: Status
    run: Run | None = None
    message: str = ""
    """Why it diverged."""
    baseline: Baseline | None = None
    """What it is held against; None for the baseline itself."""
    measure: Measure = BITS_PER_BYTE
    setting: dict[str, Any] = field(default_factory=dict)
    """What was tuned, by field."""
    number: int | None = None
    """Of the setting, from 1; None where nothing is tuned, or not yet."""
    command: str = ""
    """What trains it alone."""
    place: str = ""
    """The directory of the training; empty where it is not known which it will be."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """How the setting of a run was chosen."""

    status: Literal["tuned", "not tuned", "diverged"]
    """Diverged: with every setting."""
    seed: int
    outcomes: tuple[Outcome, ...]
    """One for each setting."""
    chosen: int | None = None
    """The number of the best one, from 1."""
    edges: tuple[str, ...] = ()
    """Where the best one lies at the edge of its range, in words that say what to widen."""
    taken_from: str | None = None
    """The run whose setting it takes instead of being tuned itself."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A study and its outcomes, in the order of its runs and seeds; those that tuned are apart."""

    title: str
    question: str
    command: str
    outcomes: tuple[Outcome, ...]
    settings: dict[str, dict[str, Any]]
    """The settings in which the runs differ: by field, then by run."""
    more_seeds: tuple[int, ...] = ()
    """Those that only the runs have got which the first seeds did not decide."""
    margin: float | None = None
    """A difference that would matter, in the unit of the measure."""
    baseline: Baseline | None = None
    """What the other runs are held against; None without one, and until it has finished."""
    tuning: dict[str, Tuned] = field(default_factory=dict)
    """How settings were chosen, by run; empty where nothing is tuned."""

    @property
    def measure(self) -> Measure:
        """What the runs are judged by."""
        return self.outcomes[0].measure

    @property
    def first_seeds(self) -> tuple[int, ...]:
        """The seeds that all runs have."""
        seeds = dict.fromkeys(one.seed for one in self.outcomes)
        return tuple(seed for seed in seeds if seed not in self.more_seeds)

    def by_run(self) -> dict[str, list[Outcome]]:
        """The outcomes of each run, one for each of the first seeds, so that means compare."""
        return {
            name: [one for one in outcomes if one.seed not in self.more_seeds]
            for name, outcomes in self.every_seed().items()
        }

    def every_seed(self) -> dict[str, list[Outcome]]:
        """The outcomes of each run, those of further seeds at the end."""
        runs: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            runs.setdefault(outcome.name, []).append(outcome)
        for outcomes in runs.values():
            outcomes.sort(key=lambda one: one.seed in self.more_seeds)  # stable
        return runs


def _median_speed(run: Run, unit: str) -> float:
    """Over the log intervals after the first, which has the compiling in it."""
    _, speed = column(run.train[1:], f"{unit}_per_second")
    return float(np.median(speed)) if speed.size else math.nan


FIGURES: dict[str, Callable[[Run], float]] = {
    "first_loss": lambda run: last(run.train[:1], "loss"),
    "last_loss": lambda run: last(run.train, "loss"),
    "max_violation": lambda run: last(run.train, "max_violation"),
    "max_violation_global": lambda run: last(run.train, "max_violation_global"),
    "max_violation_validation": lambda run: last(run.validation, "max_violation"),
    "max_violation_global_validation": lambda run: last(run.validation, "max_violation_global"),
    "dead_experts": lambda run: last(run.train, "dead_experts"),
    "dead_experts_validation": lambda run: last(run.validation, "dead_experts"),
    "dropped_fraction": lambda run: last(run.train, "dropped_fraction"),
    "dropped_fraction_validation": lambda run: last(run.validation, "dropped_fraction"),
    "skipped_updates": lambda run: last(run.train, "skipped_updates"),
    "steps": lambda run: last(run.train, "step"),
    "seconds": lambda run: last(run.train, "seconds"),
    "training_seconds": lambda run: float(count_training_seconds(run)[1][-1]),
    "processor_seconds": lambda run: last(run.train, "processor_seconds"),
    "experts": lambda run: run.load.last_asked_LE.size if run.load else math.nan,
    "parameters_total": lambda run: number(run.summary.get("parameters_total")),
    "parameters_active": lambda run: number(run.summary.get("parameters_active")),
    "flops_per_token": lambda run: number(run.summary.get("flops_per_token")),
}
"""The losses are nats a token, means over the first and the last log interval; the other figures
are of the last interval, or of the last evaluation where their name says validation. Seconds are
those since the start, of training those without compiling and evaluations, and of the processor
those of all its threads in training steps. FLOPs are those of the model in training."""


def name_baseline_figures(measure: Measure) -> tuple[str, str, str]:
    """The figures against a baseline: the measure less that of the baseline with the same seed; how
    soon the run is as good.
    """
    return f"{measure.key}_to_baseline", "steps_to_baseline", "seconds_to_baseline"


def compute_figures(outcome: Outcome) -> dict[str, float]:
    """The figures of one training, by what it logged: its measure, ``FIGURES``, its speed and size,
    and what is held against the baseline. The measure, and the last, only of one that finished.
    """
    measure, run, against = outcome.measure, outcome.run, name_baseline_figures(outcome.measure)
    of_measure = {
        measure.key: lambda run: last(run.validation, measure.key),
        f"{measure.unit}_per_second": lambda run: _median_speed(run, measure.unit),
        measure.unit: lambda run: last(run.train, measure.unit),
    }
    if run is None:
        return dict.fromkeys((*of_measure, *FIGURES, *against), math.nan)
    found = {name: float(of(run)) for name, of in (of_measure | FIGURES).items()}
    if outcome.status != "finished":
        found[measure.key] = math.nan
    return found | dict(zip(against, _hold_against_baseline(outcome, found), strict=True))


def _hold_against_baseline(outcome: Outcome, found: dict[str, float]) -> tuple[float, float, float]:
    if outcome.run is None or outcome.baseline is None or outcome.status != "finished":
        return math.nan, math.nan, math.nan
    twin = outcome.baseline.by_seed.get(outcome.seed, math.nan)
    soon = reach(outcome.run, outcome.measure.key, outcome.baseline.value)
    return found[outcome.measure.key] - twin, *soon


def reduce_over_seeds(outcomes: Sequence[Outcome], reduce: Callable) -> dict[str, float]:
    """``reduce`` of each figure over the seeds that finished; over all of them if none has."""
    finished = [one for one in outcomes if one.status == "finished"]
    rows = [compute_figures(one) for one in finished or outcomes]
    known = {name: [r[name] for r in rows if not math.isnan(r[name])] for name in rows[0]}
    return {name: float(reduce(v)) if v else math.nan for name, v in known.items()}


def describe_status(outcomes: Sequence[Outcome]) -> str:
    """The status of a run in words: `finished`, or `2 of 3 seeds finished, 1 diverged`."""
    kinds = [one.status for one in outcomes]
    if len(set(kinds)) == 1:
        return kinds[0]
    counts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds) if kind != "finished"]
    return f"{kinds.count('finished')} of {len(kinds)} seeds finished, {', '.join(counts)}"
