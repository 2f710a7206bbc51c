"""The section of a report on speed: throughput, how much of the devices is used, and by what."""

from dataclasses import replace
from typing import Any

from moejax.runs.metric_lines import column, number
from moejax.runs.pages import page
from moejax.runs.pages.charts import Series, line_chart
from moejax.runs.records import Run


def speed_section(run: Run) -> str:
    """Curves over training, and the table of a trace if there is one."""
    if not run.train:
        return ""
    unit = run.measure.unit
    speed = Series(f"{unit} a second", *column(run.train, f"{unit}_per_second"), 0)
    figures = [
        page.figure(
            f"Throughput, {unit} a second",
            line_chart([speed], include=(0.0,)),
            "Level is good. A dip: a busy machine or slow data; the first may hold compiling.",
        )
    ]
    used = [
        Series(name, *column(run.train, key), color)
        for color, (name, key) in enumerate((("model (MFU)", "mfu"), ("as compiled", "hfu")))
    ]
    used = [replace(one, y=100 * one.y) for one in used if one.x.size]
    if used:
        guide = (
            "The model's FLOPs over time and peak. Above it, what the compiled step computes:"
            " recomputation, empty slots and the optimizer come on top."
        )
        figures.append(
            page.figure("Share of the peak FLOP/s, %", line_chart(used, include=(0.0,)), guide)
        )
    moved = Series("a device", *column(run.train, "bandwidth"), 0)
    if moved.x.size:
        chart = line_chart([replace(moved, y=moved.y / 1e9)], include=(0.0,))
        guide = "What the compiled step moves to and from memory, over time."
        figures.append(page.figure("Memory, GB a second", chart, guide))
    return page.section("Speed", figures) + _profile_section(run.profile)


def _profile_section(table: dict[str, Any]) -> str:
    """Where the time of the traced steps went."""
    parts, operations = table.get("parts"), table.get("operations")
    if not isinstance(parts, dict) or not isinstance(operations, list) or not operations:
        return ""
    first = number(table.get("first_step"))
    last = first + number(table.get("steps")) - 1
    by_part = page.table(
        ("part of the model", "ms a step", "share"),
        [(_words(part), *_figures(of)) for part, of in parts.items()],
    )
    dearest = page.table(
        ("operation", "part of the model", "ms a step", "share", "from"),
        [
            (one.get("name"), _words(one.get("part")), *_figures(one), one.get("source"))
            for one in operations
            if isinstance(one, dict)
        ],
    )
    words = (
        f"Operations of the steps {first:,.0f} to {last:,.0f}, as of one step on one device. Where"
        " they run side by side, they add up to more than the step takes. XProf shows the trace,"
        " which lies in profile/."
    )
    return (
        f'<section><h2>Where the time goes</h2><p class="intro">{page.text(words)}</p>'
        f"{by_part}{dearest}</section>"
    )


def _words(part: Any) -> str:
    return str(part).replace("_", " ")


def _figures(of: Any) -> tuple[str, str]:
    of = of if isinstance(of, dict) else {}
    return f"{number(of.get('milliseconds')):.3f}", f"{number(of.get('share')):.1%}"
