"""The table of a study: a row for each run, in text and in Markdown."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moejax.config.measure import Measure
from moejax.lab.study.results import (
    Comparison,
    Outcome,
    describe_status,
    name_baseline_figures,
    reduce_over_seeds,
)
from moejax.lab.study.tuning_words import describe_choice, write_tuning_notes
from moejax.lab.study.verdicts import MARK, Verdicts, describe, make_verdicts, write_notes
from moejax.runtime.number_words import short


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


def choose_columns(measure: Measure) -> tuple[Column, ...]:
    """What the table has of each run beside its measure."""
    unit = measure.unit
    speed = Column(f"{unit}/s", f"{unit}_per_second", _digits(0))
    return *OF_ROUTERS, speed, *OF_TRAINING


OF_ROUTERS = (
    Column("max violation", "max_violation_validation", _digits(2), spread=True),
    Column("max violation, global", "max_violation_global_validation", _digits(2), optional=True),
    Column("global, training", "max_violation_global", _digits(2), optional=True, spread=True),
    Column("dead experts", "dead_experts", "{:,.3g}".format),
    Column("dropped, training", "dropped_fraction", _percent),
    Column("dropped, validation", "dropped_fraction_validation", _percent),
)
OF_TRAINING = (
    Column("first loss", "first_loss", _digits(3)),
    Column("last loss", "last_loss", _digits(3)),
    Column("steps", "steps", _digits(0)),
    Column("seconds", "seconds", _digits(0)),
)
AGAINST = ("against", "steps to", "seconds to")
"""The columns of ``name_baseline_figures``, before the baseline's name."""


@dataclass(frozen=True)
class Table:
    """Cells as text; ``best`` is the row and column of the best measure, where it is decided."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: tuple[int, int] | None
    notes: tuple[str, ...]
    """How to read the verdicts; below the table."""


def make_table(comparison: Comparison) -> Table:
    """One row for each run: means over its seeds, with the spread of what differs most, and the
    verdict against the baseline.
    """
    runs, baseline, measure = comparison.by_run(), comparison.baseline, comparison.measure
    verdicts = make_verdicts(comparison)
    marked = verdicts.best if len(verdicts.best) > 1 else ()
    spreads = [Spread.from_outcomes(outcomes) for outcomes in runs.values()]
    columns = [
        one
        for one in choose_columns(measure)
        if not one.optional or any(math.isfinite(spread.mean[one.figure]) for spread in spreads)
    ]
    rows = tuple(
        (
            name,
            _quality(outcomes, spread, measure, marked=name in marked),
            *_write_against_baseline(name, spread, comparison, verdicts),
            *(_cell(spread, one) for one in columns),
            *([describe_choice(comparison, name)] if comparison.tuning else []),
            _parameters(spread.mean),
        )
        for (name, outcomes), spread in zip(runs.items(), spreads, strict=True)
    )
    against = [f"{what} {baseline.name}" for what in AGAINST] if baseline else []
    tuned = ["setting"] if comparison.tuning else []
    heads = [one.head for one in columns]
    header = ("run", measure.name, *against, *heads, *tuned, "parameters (active)")
    best = [(row, 1) for row, name in enumerate(runs) if {name} == verdicts.best]
    notes = (*write_notes(verdicts, comparison), *write_tuning_notes(comparison))
    return Table(header, rows, best[0] if best else None, notes)


@dataclass(frozen=True)
class Spread:
    """The figures of a run over its seeds."""

    mean: dict[str, float]
    least: dict[str, float]
    greatest: dict[str, float]

    @classmethod
    def from_outcomes(cls, outcomes: Sequence[Outcome]) -> "Spread":
        """Those of these outcomes."""
        return cls(*(reduce_over_seeds(outcomes, reduce) for reduce in (np.mean, min, max)))

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


def _write_against_baseline(
    name: str, spread: Spread, comparison: Comparison, verdicts: Verdicts
) -> list[str]:
    """The verdict against the baseline; the steps and seconds until its measure is reached, and
    their share of the baseline's.
    """
    baseline, measure = comparison.baseline, comparison.measure
    if baseline is None:
        return []
    wholes = (baseline.steps, baseline.seconds)
    if name == baseline.name:
        return ["baseline", *(f"{w:,.0f}" if math.isfinite(w) else "–" for w in wholes)]
    _, *soon = name_baseline_figures(measure)
    cells = [describe(verdicts.against[name], measure, verdicts.margin)]
    for figure, whole in zip(soon, wholes, strict=True):
        mean = spread.mean[figure]
        share = f", {mean / whole:.2f}x" if math.isfinite(mean / whole) else ""
        cells.append("–" if math.isnan(mean) else spread.write(figure, _or_never) + share)
    return cells


def _or_never(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "never"


def _parameters(mean: dict[str, float]) -> str:
    total, active = mean["parameters_total"], mean["parameters_active"]
    if not (math.isfinite(total) and math.isfinite(active)):
        return "–"
    return f"{short(total, 'kMBT')} ({short(active, 'kMBT')})"


def _quality(outcomes: Sequence[Outcome], spread: Spread, measure: Measure, marked: bool) -> str:
    """The measure, perhaps marked, with its spread, or why there is none."""
    words = describe_status(outcomes)
    if not math.isfinite(spread.mean[measure.key]):
        return "not finite" if words == "finished" else words
    mean, *edges = spread.write(measure.key, measure.digits).partition(" ")
    written = mean + f" {MARK}" * marked + "".join(edges)
    return written + (f"; {words}" if words != "finished" else "")


def write_markdown(made: Table) -> str:
    """The table in Markdown, padded so that it reads well as it is, and its notes; the best result
    is bold where it is decided.
    """
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
    lines = [f"| {' | '.join(line)} |\n" for line in zip(*padded, strict=True)]
    return "".join(lines) + "".join(f"\n{note}\n" for note in made.notes)
