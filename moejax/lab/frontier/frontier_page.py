"""The section of a scaling study on the page of the study."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moejax.config.measure import Measure
from moejax.lab.frontier.findings import COSTS, Found, list_frontiers
from moejax.lab.frontier.frontier_chart import Bar, Dots, draw_frontiers
from moejax.lab.frontier.frontier_tables import TERA, Table, list_tables
from moejax.lab.frontier.hulls import Cost, Crossing, Hull
from moejax.lab.frontier.rows import Row, group_cells, select_form
from moejax.lab.frontier.step_times import StepTimes
from moejax.runs.pages import page

COLORS = 8
_INTRO = (
    "Every dot is a whole training, whose schedule ends there; of several seeds it is the mean. A"
    " line is the frontier of a form: the lower convex hull of its dots, in logarithms; between two"
    " corners it is what a power law says, and no training. {time}"
)
_TIMED = (
    "Seconds are the steps of a training times what a step takes, measured apart from training, for"
    " all shapes in turn ({words}): evaluations and compiling are left out."
)
_NOT_TIMED = (
    "What a step takes has not been measured: `moejax bench steps FILE` does it, and the same study"
    " then shows loss against seconds, too."
)
_LEADS = " Dashed: {form} leads from here on."
_BAND = " The grey band: the interval of 95 % of where {form} begins to lead."
_PREDICTED = (
    " A bar with a tick: predicted, with its interval, for a training that no law has seen; the"
    " dot at its cost is what came out."
)


def draw_section(
    found: Found, data: Mapping[str, Any], measure: Measure, times: StepTimes | None
) -> str:
    """The pictures and tables; nothing before a training has finished. ``data``: of what is found,
    as plain values.
    """
    if not found.rows:
        return ""
    time = _TIMED.format(words=times.words or "see its file") if times else _NOT_TIMED
    intro = f'<p class="intro">{page.text(_INTRO.format(time=time))}</p>'
    charts = [_draw_cost(found, measure, cost) for cost in found.hulls]
    tables = [_write_table(table) for table in list_tables(data, measure)]
    return "\n".join([page.section("Frontier", charts, intro), *tables])


def _write_table(one: Table) -> str:
    intro = f'<p class="intro">{page.text(one.words)}</p>'
    table = page.table(one.header, one.rows)
    return f"<section><h2>{page.text(one.title)}</h2>{table}{intro}</section>"


def name_unit(cost: str) -> tuple[str, float]:
    """What a cost is measured in on the axis, and how much of it that is."""
    return ("s", 1.0) if cost == "seconds" else ("TFLOP", TERA)


def _draw_cost(found: Found, measure: Measure, name: str) -> str:
    cost, (unit, size) = COSTS[name], name_unit(name)
    forms = _order_forms(found.rows)
    dots = [_make_dots(select_form(found.rows, form), form, i, cost, size)
            for i, form in enumerate(forms)]  # fmt: skip
    dots = [one for one in dots if one.cost.size]
    hulls = {
        form: Hull(hull.cost / size, hull.loss, hull.corners)
        for form, hull in found.hulls[name].items()
    }
    form = choose_crossing(found, name)
    crossing = found.crossings[name].get(form) if form else None
    if crossing:
        at, low, high = (value / size for value in (crossing.at, crossing.low, crossing.high))
        crossing = Crossing(at, low, high, crossing.share)
    bars = _make_bars(found, forms, cost, size)
    title = f"{measure.title} against {'seconds' if name == 'seconds' else 'FLOPs'} of training"
    guide = "Lower is better."
    if crossing is not None:
        guide += _LEADS.format(form=form) * (0 < crossing.at < math.inf)
        guide += _BAND.format(form=form) * (crossing.low < crossing.high)
    guide += _PREDICTED * bool(bars)
    return page.figure(title, draw_frontiers(dots, hulls, crossing, bars, unit), guide)


def _order_forms(rows: Sequence[Row]) -> list[str]:
    """Those with a frontier first."""
    lines = list_frontiers(rows)
    return lines + [f for f in dict.fromkeys(row.shape.form for row in rows) if f not in lines]


def choose_crossing(found: Found, cost: str) -> str | None:
    """The routed form whose frontier is the lowest at the end: its crossing is drawn."""
    hulls = {form: found.hulls[cost][form] for form in found.crossings[cost]
             if form in found.hulls[cost]}  # fmt: skip
    return min(hulls, key=lambda form: hulls[form].loss[-1], default=None)


def _make_dots(rows: Sequence[Row], form: str, number: int, cost: Cost, size: float) -> Dots:
    cells = [cell for cell in group_cells(rows).values() if math.isfinite(cost(cell[0]))]
    return Dots(
        name=form,
        cost=np.array([cost(cell[0]) / size for cell in cells]),
        loss=np.array([math.exp(np.mean([math.log(row.loss) for row in cell])) for cell in cells]),
        color=number % COLORS,
    )


def _make_bars(found: Found, forms: Sequence[str], cost: Cost, size: float) -> list[Bar]:
    """Of what is held out and has been trained: the others have no cost to stand at."""
    by_cell = {row.cell: row for row in found.rows}
    bars = []
    for one in found.held_out:
        row = by_cell.get((one.shape, one.steps))
        if row is None or not math.isfinite(cost(row)):
            continue
        color = forms.index(row.shape.form) % COLORS
        at = one.predicted
        bars.append(Bar(cost(row) / size, at.loss, at.low, at.high, color))
    return bars
