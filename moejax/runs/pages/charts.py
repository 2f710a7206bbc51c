"""Line charts as inline SVG, without dependencies; the page's CSS gives the colours.

A chart is a string of HTML. Its data are in ``data-chart``, for the hover script of the page.
Without the script, only the values under the pointer are missing.
"""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from moejax.runtime.number_words import four_digits, tick_labels

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 480, 54, 18, 8, 28
PLOT = WIDTH - LEFT - RIGHT
SLACK = 4
"""How far a shape may reach over the border of the plot area: half a dot."""
LETTER = 9
"""Width of a letter of a label on a phone, in units of the drawing."""
MOST_POINTS = 300
MOST_DOTS = 60


@dataclass(frozen=True, eq=False)
class Series:
    """One line: ``y`` over ``x``, in colour ``color`` (0-7) of the page, with dots if asked for.

    ``dash``: 0 for a solid line, 1 for a dashed one, 2 for a dotted one. A few dots may be left
    without a line: not ``joined``. ``least`` and
    ``greatest``: the edges of a band around it, such as the spread over seeds.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    color: int = 0
    dots: bool = False
    dash: int = 0
    joined: bool = True
    least: np.ndarray | None = None
    greatest: np.ndarray | None = None


@dataclass(frozen=True)
class Axis:
    """The values from ``low`` to ``high`` laid out over ``length`` units of the drawing."""

    low: float
    high: float
    length: float
    log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Distance from the low end; NaN for a value that is not finite, or for the log of one <=
        0.
        """
        low, high = _log_if(np.array([self.low, self.high]), self.log)
        return (_log_if(np.asarray(values), self.log) - low) / (high - low) * self.length

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round values inside the range."""
        decades = math.log10(self.high / self.low) if self.log else 0.0
        if decades < 1:
            step = _round_step((self.high - self.low) / count)
            multiples = range(round(self.low / step) - 1, round(self.high / step) + 2)
            found = [i * step for i in multiples]
        else:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            powers = powers[:: max(1, round(decades / count))]
            found = [m * 10.0**p for p in powers for m in ((1, 2, 5) if decades < 2 else (1,))]
        slack = 1e-9 * (self.high - self.low)
        return [value for value in found if self.low - slack <= value <= self.high + slack]


def line_chart(
    series: Sequence[Series],
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    include: Collection[float] = (),
    guides: Sequence[tuple[float, str]] = (),
    log: bool = False,
    height: int = 190,
    x_name: str = "step",
) -> str:
    """Lines over steps, or whatever ``x_name`` is, with a legend of their last values.

    ``y_range`` is by default robust: far outliers lie beyond the axis, and the legend says so.
    ``include``: values that the y axis must reach. ``guides``: dashed lines at a value, with names.
    NaN and infinite values leave a gap, a red tick on the x axis and a word in the legend.
    """
    series = [part for one in series if (part := _cut_to(one, x_range)).x.size]
    if not series:
        return '<p class="none">Nothing was logged.</p>'
    steps = np.concatenate([one.x for one in series])
    values = np.concatenate([edge for one in series for edge in _edges(one)])
    x = Axis(*_widen_if_empty(*(x_range or (steps.min(), steps.max()))), PLOT)
    y = Axis(*_widen_if_empty(*(y_range or robust_range(values, include, log))), height, log)
    thin = [_thin_out(one) for one in series]
    shapes = [_draw_guide(y, value) for value, _ in guides]
    names = [f'<span class="key dashed">{escape(name)}</span>' for _, name in guides]
    shapes += [_draw_line(x, y, one, least, greatest) for one, least, greatest in thin]
    lines = [[_to_json(one.x), _to_json(one.y)] for one, _, _ in thin]
    return chart_frame(
        {"x": [x.low, x.high], "columns": x_name, "lines": lines},
        "".join([_legend_entry(one, y) for one in series] + names),
        _draw_grid(x, y, x_name) + plot_area("".join(shapes), height),
        height,
    )


def robust_range(
    values: np.ndarray, include: Collection[float] = (), log: bool = False
) -> tuple[float, float]:
    """The range of the finite values without far outliers, a little wider than the data."""
    values = _log_if(values, log)
    values = values[np.isfinite(values)]
    bounds = list(_log_if(np.array(include, float), log))
    if values.size:
        q05, q95 = np.quantile(values, (0.05, 0.95))
        reach = 8 * (q95 - q05) or math.inf
        bounds += [max(values.min(), q05 - reach), min(values.max(), q95 + reach)]
    low, high = (min(bounds), max(bounds)) if bounds else (0.0, 1.0)
    margin = 0.06 * (high - low)
    low, high = (low if low in bounds[: len(include)] else low - margin), high + margin
    return (10**low, 10**high) if log else (low, high)


def falling_range(series: Sequence[Series]) -> tuple[float, float] | None:
    """A range for curves that should fall. A spike far above their start lies beyond the axis."""
    pairs = [(one.x, edge) for one in series for edge in _edges(one)]
    if not pairs:
        return None
    x, y = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    known = np.isfinite(y)
    if not known.any():
        return None
    x, y = x[known], y[known]
    start = y[x == x.min()].min()  # the least: another may have blown up before its first value
    return y.min() * 0.96, 1.02 * min(y.max(), max(1.25 * start, 1.5 * np.median(y)))


def chart_frame(data: dict, legend: str, body: str, height: int, margin: int = 0) -> str:
    """A legend over a drawing whose plot area is ``height`` units high, and its hover data;
    ``margin``: more room on the left, for long names.
    """
    carried = escape(json.dumps(data | {"left": LEFT, "plot": PLOT}, separators=(",", ":")))
    return (
        f'<div class="chart" data-chart="{carried}"><div class="legend"><span class="at"></span>'
        f'{legend}</div><svg viewBox="{-margin} 0 {WIDTH + margin} {height + TOP + BOTTOM}">'
        f'{body}<line class="cursor" y1="{TOP}" y2="{TOP + height}"/></svg></div>'
    )


def plot_area(body: str, height: int) -> str:
    """Shapes in the units of the plot area, cut off just outside its border."""
    width, tall = PLOT + 2 * SLACK, height + 2 * SLACK
    return (
        f'<svg x="{LEFT - SLACK}" y="{TOP - SLACK}" width="{width}" height="{tall}"'
        f' viewBox="{-SLACK} {-SLACK} {width} {tall}">{body}</svg>'
    )


def x_labels(x: Axis, height: int, name: str) -> str:
    """The labels under the plot area."""
    ticks = [tick for tick in x.ticks(6) if abs(tick - round(tick)) < 1e-9]
    row = TOP + height + 22
    labels = [f'<text x="{LEFT - 8}" y="{row}" class="end">{name}</text>']
    for at, label in zip(x.place(np.array(ticks)), tick_labels(ticks), strict=True):
        half = LETTER * len(label) / 2
        place = f'x="{LEFT + at:.1f}" class="mid"'
        if at + half > PLOT + RIGHT:
            place = f'x="{WIDTH}" class="end"'
        fits = at - half > -6  # else it would touch the name
        labels.append(f'<text {place} y="{row}">{label}</text>' if fits else "")
    return "".join(labels)


def _log_if(values: np.ndarray, log: bool) -> np.ndarray:
    values = np.where(np.isfinite(values), values, np.nan)
    return np.log10(np.where(values > 0, values, np.nan)) if log else values


def _widen_if_empty(low: float, high: float) -> tuple[float, float]:
    """The range, made wider if it is empty."""
    return (low, high) if high > low else (low - (abs(low) or 1) / 10, low + (abs(low) or 1) / 10)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= 0.85 * rough)


def _cut_to(one: Series, x_range: tuple[float, float] | None) -> Series:
    if x_range is None:
        return one
    keep = (one.x >= x_range[0]) & (one.x <= x_range[1])
    least, greatest = (edge if edge is None else edge[keep] for edge in (one.least, one.greatest))
    return replace(one, x=one.x[keep], y=one.y[keep], least=least, greatest=greatest)


def _edges(one: Series) -> tuple[np.ndarray, ...]:
    """The values that a line needs room for: its own, or the edges of its band."""
    return (one.y,) if one.least is None or one.greatest is None else (one.least, one.greatest)


def _thin_out(one: Series) -> tuple[Series, np.ndarray | None, np.ndarray | None]:
    """At most ``MOST_POINTS`` means of neighbours, and their least and greatest values."""
    if one.x.size <= MOST_POINTS:
        return one, one.least, one.greatest
    cuts = range(0, one.x.size, -(-one.x.size // MOST_POINTS))[1:]
    x = np.array([part[-1] for part in np.split(one.x, cuts)])
    least, greatest = (one.y if edge is None else edge for edge in (one.least, one.greatest))
    thin = replace(one, x=x, y=_reduce_bins(one.y, cuts, np.mean), least=None, greatest=None)
    return thin, _reduce_bins(least, cuts, np.min), _reduce_bins(greatest, cuts, np.max)


def _reduce_bins(values: np.ndarray, cuts: Sequence[int], reduce: Callable) -> np.ndarray:
    """``reduce`` of the finite values between cuts; NaN where there are none."""
    bins = [part[np.isfinite(part)] for part in np.split(values, cuts)]
    return np.array([reduce(part) if part.size else np.nan for part in bins])


def _draw_line(
    x: Axis, y: Axis, one: Series, least: np.ndarray | None, greatest: np.ndarray | None
) -> str:
    across, up = x.place(one.x), np.clip(y.length - y.place(one.y), -1e4, 1e4)
    shapes = []
    if least is not None and greatest is not None:
        shapes.append(_draw_band(across, y, least, greatest, one.color))
    starts = np.flatnonzero(np.diff(np.isfinite(up), prepend=False, append=False)).reshape(-1, 2)
    runs = [_join_points(across[a:b], up[a:b]) for a, b in starts]
    if not _is_spots(one):
        line = "".join(f"M{r}h0" for r in runs)
        shapes.append(f'<path class="line d{one.dash} c{one.color}" d="{line}"/>')
    if one.dots and one.x.size <= MOST_DOTS:
        dots = "".join(f"M{_join_points(across[[i]], up[[i]])}h0" for i in np.flatnonzero(up == up))
        shapes.append(f'<path class="dots c{one.color}" d="{dots}"/>')
    bad = "".join(f"M{at:.1f},{y.length}v-9" for at in across[~np.isfinite(one.y)])
    return "".join(shapes) + (f'<path class="bad" d="{bad}"/>' if bad else "")


def _is_spots(one: Series) -> bool:
    """Whether it has dots and no line."""
    return one.dots and not one.joined and one.x.size <= MOST_DOTS


def _draw_band(
    across: np.ndarray, y: Axis, least: np.ndarray, greatest: np.ndarray, color: int
) -> str:
    low, high = (np.clip(y.length - y.place(edge), -1e4, 1e4) for edge in (least, greatest))
    known = np.isfinite(low) & np.isfinite(high)
    if not known.any():
        return ""
    around = np.concatenate([across[known], across[known][::-1]])
    outline = _join_points(around, np.concatenate([high[known], low[known][::-1]]))
    return f'<path class="band c{color}" d="M{outline}z"/>'


def _join_points(across: np.ndarray, up: np.ndarray) -> str:
    return "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up, strict=True))


def _draw_guide(y: Axis, value: float) -> str:
    return f'<path class="guide" d="M0,{float(y.length - y.place(np.array(value))):.1f}h{PLOT}"/>'


def _draw_grid(x: Axis, y: Axis, x_name: str) -> str:
    ticks = y.ticks()
    ups = TOP + y.length - y.place(np.array(ticks))
    rules = "".join(f"M{LEFT},{up:.1f}h{PLOT}" for up in ups)
    labels = "".join(
        f'<text x="{LEFT - 8}" y="{up + 4:.1f}" class="end">{label}</text>'
        for up, label in zip(ups, tick_labels(ticks), strict=True)
    )
    return f'<path class="rules" d="{rules}"/>{labels}{x_labels(x, int(y.length), x_name)}'


def _legend_entry(one: Series, y: Axis) -> str:
    notes, finite = [], one.y[np.isfinite(one.y)]
    if finite.size < one.y.size:
        notes.append(f"{one.y.size - finite.size} not finite")
    if finite.size and finite.max() > y.high:
        notes.append(f"up to {four_digits(finite.max())}, beyond the axis")
    note = f" <i>({'; '.join(notes)})</i>" if notes else ""
    value = four_digits(one.y[-1])
    name = escape(one.name)
    kind = "spots" if _is_spots(one) else f"d{one.dash}"
    return f'<span class="key {kind} c{one.color}">{name} <b>{value}</b>{note}</span>'


def _to_json(values: np.ndarray) -> list[float | None]:
    """Values for JSON: whole numbers exactly, others to four digits, null when not finite."""
    return [
        None if not math.isfinite(v) else int(v) if v == int(v) else float(f"{v:.4g}")
        for v in (np.where(np.abs(values) < 1000, values, np.rint(values))).tolist()
    ]
