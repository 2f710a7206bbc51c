"""The section of a scaling study on the page of the study."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moejax.config.measure import Measure
from moejax.lab.frontier.findings import COSTS, Found, list_frontiers
from moejax.lab.frontier.fitting import Fit, Unfitted
from moejax.lab.frontier.frontier_chart import Bar, Dots, draw_frontiers
from moejax.lab.frontier.hulls import Cost, Crossing, Hull
from moejax.lab.frontier.rows import Row, group_cells, select_form
from moejax.lab.frontier.step_times import StepTimes
from moejax.runs.pages import page
from moejax.runtime.number_words import duration, short

COLORS = 8
TERA = 1e12

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


def draw_section(found: Found, measure: Measure, times: StepTimes | None) -> str:
    """The pictures and tables; nothing before a training has finished."""
    if not found.rows:
        return ""
    time = _TIMED.format(words=times.words or "see its file") if times else _NOT_TIMED
    intro = f'<p class="intro">{page.text(_INTRO.format(time=time))}</p>'
    charts = [_draw_cost(found, measure, cost) for cost in found.hulls]
    parts = [page.section("Frontier", charts, intro), _leads(found), _predictions(found, measure)]
    parts += [_laws(found), _advice(found, measure), _experts(found)]
    return "\n".join(part for part in parts if part)


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


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], words: str) -> str:
    if not rows:
        return ""
    intro = f'<p class="intro">{page.text(words)}</p>'
    return f"<section><h2>{page.text(title)}</h2>{page.table(header, rows)}{intro}</section>"


def _leads(found: Found) -> str:
    rows = [
        (f"{form}, {name}", write_lead(one, name), write_interval(one, name), _percent(one.share))
        for name, crossings in found.crossings.items()
        for form, one in crossings.items()
    ]
    words = (
        "From which cost on the frontier of a routed form lies below the dense one, up to the"
        " largest cost that both have. Interval: 95 % of resampled losses; share: of those, in how"
        " many the routed form is ahead at the end. A dash: no training has a second seed, so that"
        " nobody knows what a seed makes out."
    )
    return _section(
        "Where routing pays", ("form, cost", "leads from", "interval", "share"), rows, words
    )


def write_lead(one: Crossing, name: str) -> str:
    """From which cost on, in words."""
    if math.isnan(one.at):
        return "no costs in common"
    return write_cost(one.at, name)


def write_cost(value: float, name: str) -> str:
    """A cost in words, also 0 and infinity of ``find_lead``."""
    if value == 0:
        return "all costs"
    if value == math.inf:
        return "never"
    return duration(value) if name == "seconds" else f"{value / TERA:.2g} TFLOP"


def write_interval(one: Crossing, name: str) -> str:
    """An interval of costs in words; a dash if there is none."""
    if math.isnan(one.low):
        return "–"
    ends = [write_cost(value, name) for value in (one.low, one.high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _predictions(found: Found, measure: Measure) -> str:
    rows = [
        (
            f"{one.shape}, {one.steps:,} steps",
            measure.digits(one.predicted.loss),
            f"{measure.digits(one.predicted.low)} to {measure.digits(one.predicted.high)}",
            "not trained" if one.loss is None else measure.digits(one.loss),
            "–" if one.error is None else f"{one.error:+.1%}",
            _inside(one.loss, one.predicted.low, one.predicted.high),
        )
        for one in found.held_out
    ]
    words = (
        "Trainings that no law was fitted to: what the law says, the interval of 95 % for one"
        " training, and what came out."
    )
    header = ("held out", "predicted", "interval", "measured", "error", "inside")
    return _section("Predicted, then trained", header, rows, words)


def _inside(loss: float | None, low: float, high: float) -> str:
    return "–" if loss is None else "yes" if low <= loss <= high else "no"


def _laws(found: Found) -> str:
    rows = []
    for name, fit in found.fits.items():
        if isinstance(fit, Unfitted):
            rows.append((name, "–", "–", f"not fitted: {fit.why}".replace(": ", ":\n")))
            continue
        parts = [
            f"{part} {_three(value)} ({write_ends(fit, part)})"
            for part, value in fit.coefficients.items()
        ]
        rows.append((name, f"{len(fit.rows)}", f"{fit.error:.2%}", "\n".join(parts)))
    words = (
        "Krajewski et al. 2024: L = c + (g / G^gamma + a) / N^alpha + b / D^beta. Clark et al."
        " 2022: log10 L = a log10 N + b log10 E' + c log10 N log10 E' + d, E' between E_start and"
        " E_max. N: parameters that a token meets, without embedding and routers; D: tokens; E:"
        " experts over those that a token meets; G: those that it meets. Intervals: 95 % of a"
        f" residual bootstrap. {' '.join(found.notes)}"
    )
    header = ("law", "trainings", "error", "coefficients, and their intervals")
    return _section("Laws", header, rows, words)


def write_ends(fit: Fit, part: str) -> str:
    """The interval of a coefficient; one that the law takes from another has none."""
    low, high = fit.intervals[part]
    return "given" if low == high else f"{_three(low)} to {_three(high)}"


def _three(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1e6 else f"{value:.2e}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0%}"


def _advice(found: Found, measure: Measure) -> str:
    rows = [
        (
            duration(one.budget),
            one.shape,
            f"{one.steps:,}" + " (longer than trained)" * (not one.inside),
            measure.digits(one.loss),
            _percent(one.sure),
            _percent(one.routed),
            f"{one.gain[0]:+.1%} to {one.gain[1]:+.1%}",
        )
        for one in found.choices
    ]
    words = (
        "What the laws take of the shapes that were trained, by the times of their steps. Sure: the"
        " share of the bootstrap's draws that take it; routed: those that take any routed shape;"
        " last, the best routed loss over the best dense one, less 1. Beyond the budgets that were"
        " trained it is an extrapolation."
    )
    header = ("budget", "shape", "steps", measure.name, "sure", "routed", "routed to dense")
    return _section("What to train at a budget", header, rows, words)


def _experts(found: Found) -> str:
    rows = []
    for of in found.experts.values():
        for one in of:
            gains = [
                f"{at:+.1%}\n{low:+.1%} to {high:+.1%}\nas {effective:.2f} N"
                for (at, low, high), effective in zip(one.gains, one.effective, strict=True)
            ]
            kept = dict(zip(one.expansions, gains, strict=True))
            sure = any(
                one.best == E and high < 0
                for E, (_, _, high) in zip(one.expansions, one.gains, strict=True)
            )
            best = f"{one.best:g}" if sure else "not decided"
            rows.append((f"{one.size}, {one.tokens:,} tokens", kept, best))
    expansions = sorted({E for _, kept, _ in rows for E in kept})
    table = [(name, *(kept.get(E, "–") for E in expansions), best) for name, kept, best in rows]
    ends = "; ".join(
        f"{name}: more experts help up to {_size(at)} N ({_size(low)} to {_size(high)})"
        for name, (at, low, high) in found.cutoffs.items()
    )
    words = (
        "By the law of Clark et al. at one number of tokens, and so at equal FLOPs: the loss over"
        " that of the dense twin, less 1, with the interval of 95 %, and how many times larger a"
        f" dense model of that loss is. Not decided: the interval of the best has 0 in it. {ends}."
    )
    header = ("size", *(f"E {E:g}" for E in expansions), "best E")
    return _section("How many experts", header, table, words)


def _size(value: float) -> str:
    if value > 1e15:
        return "any"
    return "none" if value < 1 else short(value)
