"""The runs of a study in figures: what each came to, over its seeds, and the table of all.

A figure is a number of ``FIGURES``; one that a run does not have (a dense model's drops, the
final bits per byte of a run that diverged) is NaN here, null in JSON and a dash in the table. The
steps of a run that never reaches the baseline are infinite here, null in JSON, and `never`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from moejax.observe.baseline import Baseline, reach
from moejax.observe.records import Run, column, last, number
from moejax.observe.units import short

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
    target: float = math.nan
    """Bits per byte that the baseline has at its end, for this run to reach; NaN for none."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A study and its outcomes, in the order of its runs and seeds."""

    title: str
    question: str
    command: str
    outcomes: tuple[Outcome, ...]
    settings: dict[str, dict[str, Any]]
    """The settings in which the runs differ: by field, then by run."""
    baseline: Baseline | None = None
    """What the other runs are to reach; None without a baseline, and until it has finished."""

    def by_run(self) -> dict[str, list[Outcome]]:
        """The outcomes of each run, one for each seed."""
        runs: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            runs.setdefault(outcome.name, []).append(outcome)
        return runs


def _median_speed(run: Run) -> float:
    """Over the log intervals after the first, which has the compiling in it."""
    _, speed = column(run.train[1:], "tokens_per_second")
    return float(np.median(speed)) if speed.size else math.nan


FIGURES: dict[str, Callable[[Run], float]] = {
    "bits_per_byte": lambda run: last(run.validation, "bits_per_byte"),
    "first_loss": lambda run: last(run.train[:1], "loss"),
    "last_loss": lambda run: last(run.train, "loss"),
    "max_violation_validation": lambda run: last(run.validation, "max_violation"),
    "max_violation_global_validation": lambda run: last(run.validation, "max_violation_global"),
    "dead_experts": lambda run: last(run.train, "dead_experts"),
    "dead_experts_validation": lambda run: last(run.validation, "dead_experts"),
    "dropped_fraction": lambda run: last(run.train, "dropped_fraction"),
    "dropped_fraction_validation": lambda run: last(run.validation, "dropped_fraction"),
    "tokens_per_second": _median_speed,
    "skipped_updates": lambda run: last(run.train, "skipped_updates"),
    "steps": lambda run: last(run.train, "step"),
    "tokens": lambda run: last(run.train, "tokens"),
    "seconds": lambda run: last(run.train, "seconds"),
    "experts": lambda run: run.load.last_asked_LE.size if run.load else math.nan,
    "parameters_total": lambda run: number(run.summary.get("parameters_total")),
    "parameters_active": lambda run: number(run.summary.get("parameters_active")),
}
"""The losses are nats a token, means over the first and the last log interval; the other figures
are of the last interval, or of the last evaluation where their name says validation."""


TO_BASELINE = ("steps_to_baseline", "seconds_to_baseline")


def figures(outcome: Outcome) -> dict[str, float]:
    """The figures of one training, by what it logged; bits per byte, and how soon they are the
    baseline's, only of one that finished.
    """
    unknown = dict.fromkeys(TO_BASELINE, math.nan)
    if outcome.run is None:
        return dict.fromkeys(FIGURES, math.nan) | unknown
    found = {name: float(of(outcome.run)) for name, of in FIGURES.items()} | unknown
    if outcome.status != "finished":
        return found | {"bits_per_byte": math.nan}
    if math.isnan(outcome.target):
        return found
    return found | dict(zip(TO_BASELINE, reach(outcome.run, outcome.target), strict=True))


def over_seeds(outcomes: Sequence[Outcome], reduce: Callable) -> dict[str, float]:
    """``reduce`` of each figure over the seeds that finished; over all of them if none has."""
    finished = [one for one in outcomes if one.status == "finished"]
    rows = [figures(one) for one in finished or outcomes]
    known = {name: [r[name] for r in rows if not math.isnan(r[name])] for name in rows[0]}
    return {name: float(reduce(v)) if v else math.nan for name, v in known.items()}


def to_json(comparison: Comparison) -> dict[str, Any]:
    """All figures as plain values: of each run the mean, least and greatest over its seeds, and
    those of each seed.
    """
    return {
        "title": comparison.title,
        "question": comparison.question,
        "command": comparison.command,
        "settings": comparison.settings,
        "baseline": comparison.baseline and asdict(comparison.baseline),
        "runs": {
            name: {
                "status": status(outcomes),
                "mean": _plain(over_seeds(outcomes, np.mean)),
                "min": _plain(over_seeds(outcomes, min)),
                "max": _plain(over_seeds(outcomes, max)),
                "seeds": [
                    {
                        "seed": one.seed,
                        "directory": one.label,
                        "status": one.status,
                        **({"message": one.message} if one.message else {}),
                        **_plain(figures(one)),
                    }
                    for one in outcomes
                ],
            }
            for name, outcomes in comparison.by_run().items()
        },
    }


def _plain(values: dict[str, float]) -> dict[str, float | int | None]:
    return {
        name: None if not math.isfinite(v) else int(v) if v == int(v) else v
        for name, v in values.items()
    }


def status(outcomes: Sequence[Outcome]) -> str:
    """The status of a run in words: `finished`, or `2 of 3 seeds finished, 1 diverged`."""
    kinds = [one.status for one in outcomes]
    if len(set(kinds)) == 1:
        return kinds[0]
    counts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds) if kind != "finished"]
    return f"{kinds.count('finished')} of {len(kinds)} seeds finished, {', '.join(counts)}"


@dataclass(frozen=True)
class Column:
    """A column of the table: its head, its figure, and how to write a value."""

    head: str
    figure: str
    write: Callable[[float], str]
    optional: bool = False
    """Left out when no run has the figure."""
    spread: bool = False
    """With the least and the greatest value over the seeds, if there are several."""


def _digits(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{digits}f}"


def _percent(value: float) -> str:
    return f"{value:.2%}"


COLUMNS = (
    Column("first loss", "first_loss", _digits(3)),
    Column("last loss", "last_loss", _digits(3)),
    Column("max violation", "max_violation_validation", _digits(2), spread=True),
    Column("max violation, global", "max_violation_global_validation", _digits(2), optional=True),
    Column("dead experts", "dead_experts", "{:,.3g}".format),
    Column("dropped, training", "dropped_fraction", _percent),
    Column("dropped, validation", "dropped_fraction_validation", _percent),
    Column("tokens/s", "tokens_per_second", _digits(0)),
    Column("steps", "steps", _digits(0)),
    Column("seconds", "seconds", _digits(0)),
)
QUALITY = "bits per byte"


@dataclass(frozen=True)
class Table:
    """Cells as text; ``best`` is the row and column of the fewest bits per byte, of several."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: tuple[int, int] | None


def table(comparison: Comparison) -> Table:
    """One row for each run: means over its seeds, with the spread of what differs most."""
    runs, baseline = comparison.by_run(), comparison.baseline
    spreads = [Spread.of(outcomes) for outcomes in runs.values()]
    columns = [
        one
        for one in COLUMNS
        if not one.optional or any(math.isfinite(spread.mean[one.figure]) for spread in spreads)
    ]
    rows = tuple(
        (
            name,
            _quality(outcomes, spread),
            *(_to_baseline(name, spread, baseline) if baseline else ()),
            *(_cell(spread, one) for one in columns),
            _parameters(spread.mean),
        )
        for (name, outcomes), spread in zip(runs.items(), spreads, strict=True)
    )
    reached = (f"{unit} to {baseline.name}" for unit in ("steps", "seconds")) if baseline else ()
    heads = (column.head for column in columns)
    header = ("run", QUALITY, *reached, *heads, "parameters (active)")
    bits = np.array([spread.mean["bits_per_byte"] for spread in spreads])
    several = np.isfinite(bits).sum() > 1
    best = (int(np.nanargmin(bits)), header.index(QUALITY)) if several else None
    return Table(header, rows, best)


@dataclass(frozen=True)
class Spread:
    """The figures of a run over its seeds."""

    mean: dict[str, float]
    least: dict[str, float]
    greatest: dict[str, float]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Spread":
        """Those of these outcomes."""
        return cls(*(over_seeds(outcomes, reduce) for reduce in (np.mean, min, max)))

    def write(self, figure: str, write: Callable[[float], str]) -> str:
        """A figure as ``mean (least..greatest)``, or as its mean if all are the same."""
        mean, least, greatest = (of[figure] for of in (self.mean, self.least, self.greatest))
        edges = f"{write(least)}..{write(greatest)}"
        if least == greatest:
            return write(mean)
        return f"{write(mean)} ({edges})" if math.isfinite(mean) else edges


def _cell(spread: Spread, column: Column) -> str:
    value = spread.mean[column.figure]
    if not math.isfinite(value):
        return "–"
    if column.spread:
        return spread.write(column.figure, column.write)
    experts = spread.mean["experts"]
    of_all = column.figure == "dead_experts" and math.isfinite(experts)
    return column.write(value) + (f" of {experts:,.0f}" if of_all else "")


def _to_baseline(name: str, spread: Spread, baseline: Baseline) -> list[str]:
    """Steps and seconds until the baseline's bits per byte, and their share of the baseline's."""
    wholes = (baseline.steps, baseline.seconds)
    if name == baseline.name:
        return [f"{whole:,.0f}, baseline" for whole in wholes]
    cells = []
    for figure, whole in zip(TO_BASELINE, wholes, strict=True):
        mean = spread.mean[figure]
        share = f", {mean / whole:.2f}x" if math.isfinite(mean) else ""
        cells.append("–" if math.isnan(mean) else spread.write(figure, _or_never) + share)
    return cells


def _or_never(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "never"


def _parameters(mean: dict[str, float]) -> str:
    total, active = mean["parameters_total"], mean["parameters_active"]
    if not (math.isfinite(total) and math.isfinite(active)):
        return "–"
    return f"{short(total, 'kMBT')} ({short(active, 'kMBT')})"


def _quality(outcomes: Sequence[Outcome], spread: Spread) -> str:
    """Bits per byte with their spread, or why there are none."""
    words = status(outcomes)
    if not math.isfinite(spread.mean["bits_per_byte"]):
        return "not finite" if words == "finished" else words
    written = spread.write("bits_per_byte", _digits(4))
    return written + (f"; {words}" if words != "finished" else "")


def markdown(made: Table) -> str:
    """The table in Markdown, padded so that it reads well as it is; the best result is bold."""
    rows = [
        [f"**{cell}**" if (i, j) == made.best else cell for j, cell in enumerate(row)]
        for i, row in enumerate(made.rows)
    ]
    columns = list(zip(made.header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [
            cell.rjust(width) if j else cell.ljust(width)
            for cell in (column[0], rules[j], *column[1:])
        ]
        for j, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*padded, strict=True))
