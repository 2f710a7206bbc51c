"""A chart of ranks as inline SVG: one dot a row, the smallest value on top."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from moejax.runs.pages.charts import BOTTOM, TOP, WIDTH, Axis, robust_range
from moejax.runtime.number_words import tick_labels

ROW = 20
"""Height of a row."""
VALUES = 66
"""Width of the column of values."""


@dataclass(frozen=True)
class Rank:
    """A row: a value, and the least and the greatest of those that it is the mean of."""

    name: str
    value: float
    least: float
    greatest: float
    color: int = 0


def rank_chart(ranks: Sequence[Rank]) -> str:
    """Values as dots over one axis, each with its name and figure; far outliers lie at its edge."""
    ranks = sorted(ranks, key=lambda rank: rank.value)
    left, height = 14 + 9.2 * max(len(rank.name) for rank in ranks), ROW * len(ranks)
    edges = np.array([[rank.least, rank.value, rank.greatest] for rank in ranks])
    low, high = robust_range(edges)
    x = Axis(low, high if high > low else low + 1, WIDTH - left - VALUES)
    at = left + np.clip(x.place(edges), 0, x.length)
    rows = "".join(_draw_row(rank, i, left, *at[i]) for i, rank in enumerate(ranks))
    body = draw_grid(x, left, height) + rows
    return f'<svg viewBox="0 0 {WIDTH} {height + TOP + BOTTOM}">{body}</svg>'


def _draw_row(
    rank: Rank, index: int, left: float, least: float, value: float, greatest: float
) -> str:
    y = TOP + ROW * (index + 0.5)
    return (
        f'<text x="{left - 10:.1f}" y="{y + 4}" class="end word">{escape(rank.name)}</text>'
        f'<path class="line c{rank.color}" d="M{least:.1f},{y}H{greatest:.1f}"/>'
        f'<path class="dots c{rank.color}" d="M{value:.1f},{y}h0"/>'
        f'<text x="{WIDTH}" y="{y + 4}" class="end word">{rank.value:.4f}</text>'
    )


def draw_grid(x: Axis, left: float, height: int, count: int = 4) -> str:
    """Rules at about ``count`` round values of a plot area that begins at ``left``, with labels."""
    ticks = x.ticks(count)
    places = left + x.place(np.array(ticks))
    rules = "".join(f"M{at:.1f},{TOP}v{height}" for at in places)
    labels = "".join(
        f'<text x="{at:.1f}" y="{TOP + height + 18}" class="mid">{label}</text>'
        for at, label in zip(places, tick_labels(ticks), strict=True)
    )
    return f'<path class="rules" d="{rules}"/>{labels}'
