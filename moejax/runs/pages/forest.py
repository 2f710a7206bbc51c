"""A forest plot as inline SVG: one difference with its interval a row, the least on top."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from moejax.runs.pages.charts import BOTTOM, TOP, WIDTH, Axis, robust_range
from moejax.runs.pages.ranks import ROW, draw_grid

FIGURE, SIGN = 7.2, 16
"""Width of a letter of a figure, and of a sign."""


@dataclass(frozen=True)
class Effect:
    """A row: a difference and its interval, in colour ``color`` of the page, the figure, and a sign
    behind it.
    """

    name: str
    value: float
    low: float
    high: float
    color: int
    words: str
    sign: str = ""


def forest_plot(effects: Sequence[Effect], keys: Sequence[tuple[int, str]]) -> str:
    """Differences over one axis with a line at 0. ``keys``: what the colours mean.

    An interval that reaches beyond the axis ends there; one that is not known is a dot alone.
    """
    effects = sorted(effects, key=lambda one: one.value)
    left = 14 + 9.2 * max(len(one.name) for one in effects)
    right = 10 + FIGURE * max(len(one.words) for one in effects) + SIGN
    edges = np.array([[one.low, one.value, one.high] for one in effects])
    x = Axis(*robust_range(np.append(edges, 0.0)), WIDTH - left - right)
    if x.high <= x.low:
        x = Axis(-1.0, 1.0, x.length)
    at = left + np.clip(x.place(edges), 0, x.length)
    height = ROW * len(effects)
    zero = f'<path class="guide" d="M{left + float(x.place(np.array(0.0))):.1f},{TOP}v{height}"/>'
    rows = "".join(_draw_row(one, i, left, *at[i]) for i, one in enumerate(effects))
    legend = "".join(f'<span class="key spots c{c}">{escape(words)}</span>' for c, words in keys)
    return (
        f'<div class="legend">{legend}</div><svg viewBox="0 0 {WIDTH} {height + TOP + BOTTOM}">'
        f"{draw_grid(x, left, height, count=6)}{zero}{rows}</svg>"
    )


def _draw_row(one: Effect, index: int, left: float, low: float, value: float, high: float) -> str:
    y = TOP + ROW * (index + 0.5)
    line = ""
    if np.isfinite(low):
        line = f'<path class="line c{one.color}" d="M{low:.1f},{y}H{high:.1f}"/>'
    return (
        f'<text x="{left - 10:.1f}" y="{y + 4}" class="end word">{escape(one.name)}</text>{line}'
        f'<path class="dots c{one.color}" d="M{value:.1f},{y}h0"/>'
        f'<text x="{WIDTH - SIGN}" y="{y + 4}" class="end word">{escape(one.words)}</text>'
        f'<text x="{WIDTH}" y="{y + 4}" class="end word">{escape(one.sign)}</text>'
    )
