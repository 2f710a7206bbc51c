"""The picture of ``moejax bench scaling``: time over tokens and experts, on logarithmic axes."""

from typing import Any

import numpy as np

from moejax.lab.bench.programs import PASSES
from moejax.runs.pages.charts import Axis
from moejax.runtime.number_words import four_digits

SIDE, LEFT, TOP, BOTTOM, GAP = 340, 58, 74, 48, 78
LINES = [("routed", "forward+backward"), ("dense", "forward+backward")]
LINES += [("routed", "forward"), ("dense", "forward")]
STYLE = """
svg{font:13px system-ui,sans-serif;font-variant-numeric:tabular-nums}
text{fill:#1b1f24}.soft{fill:#626b76}.end{text-anchor:end}.mid{text-anchor:middle}
path{fill:none;stroke-width:2;stroke-linejoin:round}circle{stroke:none}
.rule{stroke:#e3e6ea;stroke-width:1}.slope{stroke:#626b76;stroke-width:1.5;stroke-dasharray:1 4}
.routed{stroke:#2870c9;fill:#2870c9}.dense{stroke:#d9580d;fill:#d9580d}
path.routed,path.dense{fill:none}.forward{stroke-dasharray:6 4}
"""


def scaling_chart(result: dict[str, Any]) -> str:
    """A standalone SVG of two panels, with dotted lines of slope 1 and, over experts, 0."""
    width, height = 2 * (LEFT + SIDE) + GAP, TOP + SIDE + BOTTOM
    panels = [draw_panel(result, "tokens", (1,)), draw_panel(result, "experts", (0, 1))]
    moved = [
        f'<g transform="translate({LEFT + i * (LEFT + SIDE + GAP / 2):.0f},{TOP})">{one}</g>'
        for i, one in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}"><style>{STYLE}</style>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{draw_legend(result)}'
        f"{''.join(moved)}</svg>\n"
    )


def draw_legend(result: dict[str, Any]) -> str:
    """The names of the lines, and what the dotted ones mean."""
    keys = []
    for i, (layer, name) in enumerate(LINES):
        left = LEFT + 214 * i
        keys.append(f'<path class="{layer} {name}" d="M{left},20h28"/>')
        keys.append(f'<text x="{left + 34}" y="24">{layer} {name}</text>')
    words = f"ms of {result['clock']} time; dotted: slope 1 and, over experts, slope 0"
    return "".join(keys) + f'<text x="{LEFT}" y="46" class="soft">{words}</text>'


def draw_panel(result: dict[str, Any], by: str, slopes: tuple[int, ...]) -> str:
    """One sweep, in the units of the drawing from the upper left corner of its plot area."""
    points = result[f"over_{by}"]
    at = np.array([p[by] for p in points], float)
    lines = {
        (layer, name): np.array([p[f"{layer}_{PASSES[name]}_ms"]["median"] for p in points])
        for layer, name in LINES
    }
    every = np.concatenate([*lines.values()])
    x = Axis(at[0] / 1.15, at[-1] * 1.15, SIDE, log=True)
    y = Axis(every.min() / 1.4, every.max() * 1.4, SIDE, log=True)
    shapes = [draw_grid(x, y, at, by)]
    for slope in slopes:
        start = lines["routed", "forward+backward"][0]
        # Only as far as the line stays inside the panel.
        end = at[-1] if not slope else min(at[-1], at[0] * (y.high / start) ** (1 / slope))
        ends = np.array([at[0], end])
        shapes.append(
            f'<path class="slope" d="{draw_path(x, y, ends, start * (ends / at[0]) ** slope)}"/>'
        )
    for (layer, name), ms in lines.items():
        shapes.append(f'<path class="{layer} {name}" d="{draw_path(x, y, at, ms)}"/>')
        across, up = x.place(at), SIDE - y.place(ms)
        shapes += [
            f'<circle class="{layer}" cx="{a:.1f}" cy="{u:.1f}" r="3"/>'
            for a, u in zip(across, up, strict=True)
        ]
    fitted = result[f"{by.removesuffix('s')}_exponent"]
    title = f"routed: {by} to the {fitted['forward_backward']:.2f}, forward {fitted['forward']:.2f}"
    return "".join([*shapes, f'<text x="0" y="-10">{title}</text>'])


def draw_grid(x: Axis, y: Axis, at: np.ndarray, by: str) -> str:
    """Rules at round times, and the points of the sweep below the plot area."""
    ticks = y.ticks()
    rules = "".join(f"M0,{SIDE - up:.1f}h{SIDE}" for up in y.place(np.array(ticks)))
    times = [
        f'<text x="-8" y="{SIDE - up + 4:.1f}" class="soft end">{four_digits(tick)}</text>'
        for up, tick in zip(y.place(np.array(ticks)), ticks, strict=True)
    ]
    places = [
        f'<text x="{across:.1f}" y="{SIDE + 18}" class="soft mid">{value:.0f}</text>'
        for across, value in zip(x.place(at), at, strict=True)
    ]
    name = f'<text x="{SIDE / 2}" y="{SIDE + 38}" class="mid">{by}</text>'
    return f'<path class="rule" d="{rules}"/>{"".join(times)}{"".join(places)}{name}'


def draw_path(x: Axis, y: Axis, at: np.ndarray, values: np.ndarray) -> str:
    """A line through points."""
    across, up = x.place(at), SIDE - y.place(values)
    return "M" + "L".join(f"{a:.1f},{u:.1f}" for a, u in zip(across, up, strict=True))
