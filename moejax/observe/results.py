"""The runs of a study in figures: what each came to, over its seeds, and the table of all.

A figure is a number of ``FIGURES``; one that a run does not have (a dense model's drops, the
final bits per byte of a run that diverged) is NaN here, null in JSON and a dash in the table.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A study and its outcomes, in the order of its runs and seeds."""

    title: str
    question: str
    command: str
    outcomes: tuple[Outcome, ...]
    settings: dict[str, dict[str, Any]]
    """The settings in which the runs differ: by field, then by run."""

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


def figures(outcome: Outcome) -> dict[str, float]:
    """The figures of one training, by what it logged; bits per byte only of one that finished."""
    if outcome.run is None:
        return dict.fromkeys(FIGURES, math.nan)
    found = {name: float(of(outcome.run)) for name, of in FIGURES.items()}
    return found if outcome.status == "finished" else found | {"bits_per_byte": math.nan}


def over_seeds(outcomes: Sequence[Outcome], reduce: Callable) -> dict[str, float]:
    """``reduce`` of each figure over the seeds that finished; over all of them if none has."""
    finished = [one for one in outcomes if one.status == "finished"]
    rows = [figures(one) for one in finished or outcomes]
    known = {name: [r[name] for r in rows if math.isfinite(r[name])] for name in FIGURES}
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


def _digits(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{digits}f}"


def _percent(value: float) -> str:
    return f"{value:.2%}"


COLUMNS = (
    Column("first loss", "first_loss", _digits(3)),
    Column("last loss", "last_loss", _digits(3)),
    Column("max violation", "max_violation_validation", _digits(2)),
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
    """One row for each run: means over its seeds, and the spread of the bits per byte."""
    runs = comparison.by_run()
    means = [over_seeds(outcomes, np.mean) for outcomes in runs.values()]
    columns = [
        one
        for one in COLUMNS
        if not one.optional or any(math.isfinite(mean[one.figure]) for mean in means)
    ]
    rows = tuple(
        (name, _quality(outcomes, mean), *(_cell(mean, c) for c in columns), _parameters(mean))
        for (name, outcomes), mean in zip(runs.items(), means, strict=True)
    )
    header = ("run", QUALITY, *(column.head for column in columns), "parameters (active)")
    bits = np.array([mean["bits_per_byte"] for mean in means])
    several = np.isfinite(bits).sum() > 1
    best = (int(np.nanargmin(bits)), header.index(QUALITY)) if several else None
    return Table(header, rows, best)


def _cell(mean: dict[str, float], column: Column) -> str:
    value = mean[column.figure]
    if not math.isfinite(value):
        return "–"
    of_all = column.figure == "dead_experts" and math.isfinite(mean["experts"])
    return column.write(value) + (f" of {mean['experts']:,.0f}" if of_all else "")


def _parameters(mean: dict[str, float]) -> str:
    total, active = mean["parameters_total"], mean["parameters_active"]
    if not (math.isfinite(total) and math.isfinite(active)):
        return "–"
    return f"{short(total, 'kMBT')} ({short(active, 'kMBT')})"


def _quality(outcomes: Sequence[Outcome], mean: dict[str, float]) -> str:
    """Bits per byte with their spread, or why there are none."""
    words, bits = status(outcomes), mean["bits_per_byte"]
    if not math.isfinite(bits):
        return "not finite" if words == "finished" else words
    least, greatest = (over_seeds(outcomes, of)["bits_per_byte"] for of in (min, max))
    done = sum(one.status == "finished" for one in outcomes)
    spread = f" ({least:.4f}..{greatest:.4f})" if done > 1 else ""
    return f"{bits:.4f}{spread}" + (f"; {words}" if words != "finished" else "")


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
