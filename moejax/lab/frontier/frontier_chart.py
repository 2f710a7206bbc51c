"""The picture of a scaling study: loss over what it cost, on logarithmic axes.

Every training is a dot. A line is the frontier of a form. A grey band, with a dashed line in it,
is where a routed form begins to lead. A bar with a tick is what a law predicted for a training
that it was not fitted to; its dot is what came out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from moejax.lab.frontier.hulls import Crossing, Hull
from moejax.runs.pages.charts import (
    LEFT,
    PLOT,
    TOP,
    Axis,
    chart_frame,
    plot_area,
    x_labels,
)
from moejax.runtime.number_words import four_digits, tick_labels

HEIGHT = 300
MARGIN = 1.15
"""How much farther than the data the axis of costs reaches, on both sides."""
READ_POINTS = 60
"""At so many costs a frontier can be read under the pointer."""


@dataclass(frozen=True, kw_only=True)
class Dots:
    """The trainings of one form: a mean over seeds each."""

    name: str
    cost: np.ndarray
    loss: np.ndarray
    color: int


@dataclass(frozen=True)
class Bar:
    """What was predicted at a cost, with its interval."""

    cost: float
    loss: float
    low: float
    high: float
    color: int


def draw_frontiers(
    dots: Sequence[Dots],
    hulls: dict[str, Hull],
    crossing: Crossing | None,
    bars: Sequence[Bar],
    unit: str,
) -> str:
    """The chart; ``hulls`` by the name of their dots, ``unit`` of the cost."""
    costs = np.concatenate([one.cost for one in dots] + [[bar.cost for bar in bars]])
    losses = np.concatenate([one.loss for one in dots] + [[b.low, b.high] for b in bars])
    if not costs.size:
        return '<p class="none">No training has finished.</p>'
    x = Axis(costs.min() / MARGIN, costs.max() * MARGIN, PLOT, log=True)
    room = max(1.02, (losses.max() / losses.min()) ** 0.06)
    y = Axis(losses.min() / room, losses.max() * room, HEIGHT, log=True)
    shapes = [_draw_crossing(x, crossing)] if crossing else []
    lines, keys = [], []
    for one in dots:
        hull = hulls.get(one.name)
        if hull is not None:
            shapes.append(f'<path class="line c{one.color}" d="{_join(x, y, hull)}"/>')
            at = np.geomspace(hull.cost[0], hull.cost[-1], READ_POINTS)
            lines.append(
                [[float(f"{c:.3g}") for c in at], [float(f"{v:.4g}") for v in hull.read(at)]]
            )
        keys.append(_key(one, hull))
    shapes += [_draw_bar(x, y, bar) for bar in bars]
    shapes += [_draw_dots(x, y, one) for one in dots]
    if crossing and math.isfinite(crossing.at):
        keys.append('<span class="key dashed">the routed form leads from here on</span>')
    return chart_frame(
        {"x": [x.low, x.high], "log": True, "columns": unit, "lines": lines},
        "".join(keys),
        _draw_grid(x, y, unit) + plot_area("".join(shapes), HEIGHT),
        HEIGHT,
    )


def _key(one: Dots, hull: Hull | None) -> str:
    if hull is None:
        return f'<span class="key spots c{one.color}">{escape(one.name)}</span>'
    value = four_digits(float(hull.loss[-1]))
    return f'<span class="key d0 c{one.color}">{escape(one.name)} <b>{value}</b></span>'


def _up(y: Axis, values: np.ndarray) -> np.ndarray:
    return y.length - y.place(values)


def _join(x: Axis, y: Axis, hull: Hull) -> str:
    points = zip(x.place(hull.cost), _up(y, hull.loss), strict=True)
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in points) + "h0"


def _draw_dots(x: Axis, y: Axis, one: Dots) -> str:
    points = zip(x.place(one.cost), _up(y, one.loss), strict=True)
    path = "".join(f"M{a:.1f},{b:.1f}h0" for a, b in points)
    return f'<path class="dots c{one.color}" d="{path}"/>'


def _draw_bar(x: Axis, y: Axis, bar: Bar) -> str:
    (at,) = x.place(np.array([bar.cost]))
    low, middle, high = _up(y, np.array([bar.low, bar.loss, bar.high]))
    path = f"M{at:.1f},{low:.1f}V{high:.1f}M{at - 5:.1f},{middle:.1f}h10"
    return f'<path class="line c{bar.color}" d="{path}"/>'


def _draw_crossing(x: Axis, one: Crossing) -> str:
    """The interval as a band, as far as it lies in the drawing, and the cost in it."""
    shapes = ""
    if not math.isnan(one.low):
        ends = np.clip([max(one.low, x.low), one.high], x.low, x.high)
        left, right = x.place(ends)
        shapes += f'<path class="band c6" d="M{left:.1f},0H{right:.1f}V{HEIGHT}H{left:.1f}z"/>'
    if x.low < one.at < x.high:
        (at,) = x.place(np.array([one.at]))
        shapes += f'<path class="guide" d="M{at:.1f},0v{HEIGHT}"/>'
    return shapes


def _draw_grid(x: Axis, y: Axis, unit: str) -> str:
    ticks = y.ticks(6)
    ups = TOP + _up(y, np.array(ticks))
    rules = "".join(f"M{LEFT},{up:.1f}h{PLOT}" for up in ups)
    labels = "".join(
        f'<text x="{LEFT - 8}" y="{up + 4:.1f}" class="end">{label}</text>'
        for up, label in zip(ups, tick_labels(ticks), strict=True)
    )
    return f'<path class="rules" d="{rules}"/>{labels}{x_labels(x, HEIGHT, escape(unit))}'
