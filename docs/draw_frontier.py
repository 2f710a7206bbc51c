"""Draw the frontier, and write its tables into its page: python docs/draw_frontier.py

The results are those of docs/studies/frontier.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pictures import document, fill_page, write, write_table

import moejax
from moejax.config.measure import BITS_PER_BYTE
from moejax.lab.frontier.frontier_tables import TERA, list_tables
from moejax.lab.frontier.rows import describe_shape
from moejax.lab.study.definition import load_study_file
from moejax.runs.pages.charts import Axis
from moejax.runtime.number_words import duration, tick_labels

ROOT = Path(__file__).parents[1]
NAME = "frontier"
PAGE, PICTURE = ROOT / "docs/frontier.md", ROOT / "docs/frontier.svg"
RESULTS = ROOT / "docs/studies" / NAME

WIDTH, HEIGHT, LEFT, TOP, BETWEEN, LINE = 430, 330, 60, 34, 70, 20
"""In pixels: of a plot, left of the first one, above them, between them, a line of the legend."""
MARGIN, ROOM = 1.15, 1.02
"""How much farther than the data the axes reach, of costs and of losses."""
COLOURS = ("#1f2328", "#0969da", "#1a7f37", "#c0392b", "#8250df", "#bf8700", "#1b7c83", "#bc4c00")
UNITS = {"seconds": (1.0, "seconds of training"), "FLOPs": (TERA, "TFLOP of training")}


def list_forms(data: dict[str, Any]) -> list[str]:
    """Those with a frontier first; their places are those of ``COLOURS``."""
    lines = list(data["frontiers"]["FLOPs"])
    return lines + [
        one for one in dict.fromkeys(r["form"] for r in data["rows"]) if one not in lines
    ]


def draw(data: dict[str, Any]) -> str:
    """Loss against each cost, on logarithmic axes: a dot for each training (the mean over its
    seeds), a line for each frontier, a bar for each prediction.
    """
    forms, costs = list_forms(data), [name for name in UNITS if name in data["frontiers"]]
    parts = []
    for number, cost in enumerate(costs):
        left = LEFT + number * (WIDTH + BETWEEN)
        parts += [
            f'<g transform="translate({left},{TOP})">',
            *_draw_plot(data, cost, forms),
            "</g>",
        ]
    bottom = TOP + HEIGHT + 56
    for number, form in enumerate(forms):
        x = LEFT + number % 4 * 230
        y = bottom + number // 4 * LINE
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{COLOURS[number]}"/>')
        line = "" if form in data["frontiers"]["FLOPs"] else " (one length)"
        parts.append(write(x + 10, y, form + line, "small"))
    bottom += (len(forms) - 1) // 4 * LINE + 14
    return document(LEFT + len(costs) * (WIDTH + BETWEEN), bottom, parts)


def _draw_plot(data: dict[str, Any], cost: str, forms: Sequence[str]) -> list[str]:
    size, title = UNITS[cost]
    cells = _gather_cells(data, cost)
    predicted = [one for one in data["held_out"] if (one["shape"], one["steps"]) in cells]
    losses = [loss for _, _, loss in cells.values()]
    losses += [one["predicted"][end] for one in predicted for end in ("low", "high")]
    at = [value / size for _, value, _ in cells.values()]
    x = Axis(min(at) / MARGIN, max(at) * MARGIN, WIDTH, log=True)
    y = Axis(min(losses) / ROOM, max(losses) * ROOM, HEIGHT, log=True)
    parts = _draw_grid(x, y, title)
    for number, form in enumerate(forms):
        hull = data["frontiers"][cost].get(form)
        if hull:
            points = zip(*_place(x, y, np.array(hull["cost"]) / size, hull["loss"]), strict=True)
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{COLOURS[number]}"'
                ' stroke-width="1.5"/>'
            )
    for one in predicted:
        form, value, _ = cells[one["shape"], one["steps"]]
        ends = [one["predicted"][end] for end in ("low", "loss", "high")]
        (a, *_), (low, middle, high) = _place(x, y, np.array([value / size] * 3), ends)
        parts.append(
            f'<path d="M{a:.1f},{low:.1f}V{high:.1f}M{a - 5:.1f},{middle:.1f}h10"'
            f' stroke="{COLOURS[forms.index(form)]}" stroke-width="1.5"/>'
        )
    for form, value, loss in cells.values():
        (a,), (b,) = _place(x, y, np.array([value / size]), [loss])
        colour = COLOURS[forms.index(form)]
        parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>')
    return parts


def _gather_cells(
    data: dict[str, Any], cost: str
) -> dict[tuple[str, int], tuple[str, float, float]]:
    """Form, cost and the mean loss of each shape and number of steps."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in data["rows"]:
        if row[cost.lower()] is not None:
            found.setdefault((f"{row['form']} {row['size']}", row["steps"]), []).append(row)
    return {
        cell: (
            rows[0]["form"],
            rows[0][cost.lower()],
            math.exp(np.mean([math.log(row["loss"]) for row in rows])),
        )
        for cell, rows in found.items()
    }


def _place(x: Axis, y: Axis, cost: np.ndarray, loss: Sequence[float]) -> tuple[np.ndarray, ...]:
    return x.place(cost), y.length - y.place(np.array(loss))


def _draw_grid(x: Axis, y: Axis, title: str) -> list[str]:
    parts = [write(0, -14, f"bits per byte, against {title}", "small")]
    for axis, length in ((x, HEIGHT), (y, WIDTH)):
        ticks = axis.ticks(6)
        for at, label in zip(axis.place(np.array(ticks)), tick_labels(ticks), strict=True):
            if axis is x:
                line, words = (
                    f"M{at:.1f},0v{length}",
                    write(round(at, 1), HEIGHT + 18, label, "middle"),
                )
            else:
                up = HEIGHT - at
                line, words = f"M0,{up:.1f}h{length}", write(-8, round(up + 4, 1), label, "end")
            parts += [f'<path d="{line}" stroke="#e6e8eb"/>', words]
    return parts


def describe_findings(data: dict[str, Any]) -> str:
    """All tables of the study's page, in Markdown."""
    parts = []
    for table in list_tables(data, BITS_PER_BYTE):
        rows = [[cell.replace("\n", "<br>") for cell in row] for row in table.rows]
        parts.append(f"### {table.title}\n\n{write_table(table.header, rows)}\n{table.words}\n")
    return "\n".join(parts)


def describe_arms(study: moejax.study.Results, times: dict[str, Any] | None) -> str:
    """A row for each run: what it came to, and what it cost."""
    runs = load_study_file(ROOT / f"configs/studies/{NAME}.py").runs
    rows = []
    for arm in study.arms:
        of, shape, steps = study.raw["runs"][arm], describe_shape(runs[arm]), runs[arm].run.steps
        edges = (of[which][study.measure] for which in ("mean", "min", "max"))
        seconds = duration(steps * times["shapes"][shape.name]["seconds"]) if times else "–"
        field, value = next(iter(study.chosen[arm].items()))  # others move with the first one
        rows.append(
            (
                f"`{arm}`",
                "{:.4f} ({:.4f}..{:.4f})".format(*edges),
                seconds,
                f"{steps * shape.flops_per_step / TERA:,.0f}",
                f"{field.rpartition('.')[2]} {value:g}",
                f"{of['mean']['parameters_total'] / 1e6:.2f}M"
                f" ({of['mean']['parameters_active'] / 1e6:.2f}M)",
            )
        )
    header = ("run", "bits per byte", "time", "TFLOP", "tuned", "parameters (active)")
    return write_table(header, rows)


def fill(page: str) -> str:
    """The page with the tables of the results."""
    data = json.loads((RESULTS / "frontier.json").read_text(encoding="utf-8"))
    times = RESULTS / "step_times.json"
    measured = json.loads(times.read_text(encoding="utf-8")) if times.exists() else None
    page = fill_page(page, "findings", describe_findings(data))
    return fill_page(page, NAME, describe_arms(moejax.study.load(RESULTS), measured))


def draw_results() -> str:
    """The picture of the results."""
    return draw(json.loads((RESULTS / "frontier.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    PICTURE.write_text(draw_results(), encoding="utf-8")
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
