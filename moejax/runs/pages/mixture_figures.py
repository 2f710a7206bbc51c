"""The section of a report on a mixture: the loss of each source, and how much was taken of it."""

from dataclasses import replace

from moejax.runs.metric_lines import column, number
from moejax.runs.pages import page
from moejax.runs.pages.charts import Series, line_chart
from moejax.runs.records import Run

_COLOURS = 8


def mixture_section(run: Run) -> str:
    """Curves of each source, and how much was to be taken; empty without a mixture."""
    names = find_sources(run)
    if not names:
        return ""
    figures = []
    held_out = [one for color, name in enumerate(names) for one in _draw_loss(run, name, color)]
    if held_out:
        guide = "Of the text of each source that is held out. They fall at paces of their own."
        figures.append(page.figure("Bits per byte by source", line_chart(held_out), guide))
    shares = [_draw_share(run, name, color) for color, name in enumerate(names)]
    shares = [one for one in shares if one.x.size]
    if shares:
        guide = (
            "Of the sequences in the batches of each interval. Level, unless the epochs of a source"
            " are over."
        )
        chart = line_chart(shares, include=(0.0,))
        figures.append(page.figure("Share of each source, %", chart, guide))
    return page.section("Mixture", figures, _describe(run, names))


def find_sources(run: Run) -> list[str]:
    """The names of the sources, in the order in which they were logged."""
    keys = [key for line in (*run.train, *run.validation, *run.part) for key in line]
    found = (key.partition("/") for key in keys)
    return list(
        dict.fromkeys(name for metric, _, name in found if metric in ("share", "loss") and name)
    )


def _draw_loss(run: Run, name: str, color: int) -> list[Series]:
    """The dots of whole evaluations, on the line of parts if there is one."""
    key, color = f"bits_per_byte/{name}", color % _COLOURS
    part = Series(f"{name}, a part", *column(run.part, key), color)
    whole = Series(name, *column(run.validation, key), color, dots=True, joined=not part.x.size)
    return [one for one in (whole, part) if one.x.size]


def _draw_share(run: Run, name: str, color: int) -> Series:
    series = Series(name, *column(run.train, f"share/{name}"), color % _COLOURS)
    return replace(series, y=100 * series.y)


def _describe(run: Run, names: list[str]) -> str:
    """What each source is, and its share."""
    planned = run.summary.get("mixture")
    planned = planned if isinstance(planned, dict) else {}
    lines = []
    for name in names:
        about = planned.get(name)
        if isinstance(about, dict):
            share = f"{number(about.get('share')):.1%} of the sequences"
            lines.append(f"<b>{page.text(name)}</b>, {share}: {page.text(about.get('data'))}")
    return f'<p class="intro">{"<br>".join(lines)}</p>' if lines else ""
