"""One run as one page: what it learned, how its experts were used, and how it was made.

Letters: I: intervals.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from moejax.runs.metric_lines import column, number
from moejax.runs.pages import page
from moejax.runs.pages.charts import Series, falling_range, line_chart
from moejax.runs.pages.class_figures import class_section
from moejax.runs.pages.load_figures import drops_by_layer, load_section
from moejax.runs.pages.mixture_figures import mixture_section
from moejax.runs.pages.router_figures import drops_by_position, pair_section, router_section
from moejax.runs.pages.speed_figures import speed_section
from moejax.runs.pages.verdict import key_numbers, list_notes, verdict
from moejax.runs.records import Run, read_run
from moejax.runtime.atomic_files import write_text
from moejax.runtime.number_words import short


def write_report(run_directory: Path) -> Path:
    """Write ``report.html`` into a run directory, in one piece or not at all; returns its path.

    Raises ``FileNotFoundError`` when there is no such directory. Missing or damaged files make a
    shorter page, which says so.
    """
    run = read_run(Path(run_directory))
    path = run.directory / "report.html"
    write_text(path, report_html(run))
    return path


def report_html(run: Run) -> str:
    """The report as one page of HTML that stands alone."""
    parts = [_header(run), page.tiles(key_numbers(run)), _loss_section(run), mixture_section(run)]
    parts += [load_section(run.load) if run.load else ""]
    sections = (
        *(_balance_section, _drop_section, router_section, pair_section, class_section),
        *(_optimization_section, speed_section, _costs_section),
        *(_sample_section, _settings_section),
    )
    parts += [write_section(run) for write_section in sections]
    return page.document(f"{run.name} – moejax", "\n".join(part for part in parts if part))


def _header(run: Run) -> str:
    about = [str(run.summary[key]) for key in ("data", "devices") if run.summary.get(key)]
    versions = run.summary.get("versions")
    if isinstance(versions, dict):
        about.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    remarks = "".join(f"<li>{page.text(note)}</li>" for note in list_notes(run))
    return (
        f'<header><div class="mark">moejax run report</div><h1>{page.text(run.name)}</h1>'
        f'<p class="verdict">{page.text(verdict(run))}</p>'
        f'<p class="about">{page.text(" · ".join(about))}</p>'
        + (f'<ul class="notes">{remarks}</ul>' if remarks else "")
        + "</header>"
    )


def _train_and_held_out(run: Run, key: str) -> list[Series]:
    """A metric of training, of evaluations, and of those of a part."""
    part = Series("a part of it", *column(run.part, key), 1)
    return [
        Series("training", *column(run.train, key), 0),
        Series("held out", *column(run.validation, key), 1, dots=True, joined=not part.x.size),
        *([part] if part.x.size else []),
    ]


def _loss_section(run: Run) -> str:
    title = run.measure.title
    series = _train_and_held_out(run, run.measure.key)
    series = [_in_percent(one) for one in series] if run.measure.percent else series
    steps = np.concatenate([one.x for one in series])
    if not steps.size:
        return ""
    whole = falling_range(series)
    first = "Falls steeply, then slowly. Held out far above training means learning by heart."
    if run.part:
        first += (
            " The line of the part, which is evaluated more often, may lie a little above or below"
            " the dots: it is other text."
        )
    figures = [page.figure(title, line_chart(series, y_range=whole), first)]
    late = (steps.max() / 2, steps.max())
    if np.sum(series[0].x >= late[0]) >= 4:
        guide = "Still falling at the right edge: more steps would help. Flat: it is done."
        figures.append(
            page.figure(f"{title}, second half", line_chart(series, x_range=late), guide)
        )
    return page.section("Loss", figures)


def _balance_section(run: Run) -> str:
    if not run.routed:
        return ""
    loss = _train_and_held_out(run, "balance_loss")
    perfect = [(1.0, "perfect balance")]
    uniform = [(math.log(run.load.asked_ILE.shape[2]), "uniform")] if run.load else []
    return page.section(
        "Balance",
        [
            page.figure(
                "Max violation",
                line_chart(_train_and_held_out(run, "max_violation"), include=(0.0,)),
                "The fullest expert over the mean, less 1, averaged over layers. Near 0 is balance;"
                " above the capacity factor less 1, choices must be dropped.",
            ),
            page.figure(
                "Balance loss",
                line_chart(loss, include=(1.0,), guides=perfect),
                "1 is perfect balance, experts / top k is collapse. It should sink to 1.",
            ),
            page.figure(
                "Dead experts",
                line_chart(_train_and_held_out(run, "dead_experts"), include=(0.0, 4.0)),
                "Experts that no token chose in an interval. Any that stay dead are wasted.",
            ),
            page.figure(
                "Entropy of the router, nats",
                line_chart(
                    _train_and_held_out(run, "router_entropy"),
                    include=[value for value, _ in uniform],
                    guides=uniform,
                ),
                "Sinks from uniform as the router makes up its mind; close to 0 it has collapsed.",
            ),
        ],
    )


def _drop_section(run: Run) -> str:
    if not run.routed:
        return ""
    series = [_in_percent(one) for one in _train_and_held_out(run, "dropped_fraction")]
    guide = (
        "Choices that found their expert full. It should sink; chance drops some even at an even"
        " load, and moejax plan says how many."
    )
    figures = [page.figure("Dropped choices, %", line_chart(series, include=(0.0, 0.1)), guide)]
    if run.load:
        figures += [drops_by_layer(run.load), drops_by_position(run.load, run.config)]
    return page.section("Drops", figures)


def _in_percent(one: Series) -> Series:
    return replace(one, y=100 * one.y)


def _optimization_section(run: Run) -> str:
    if not run.train:
        return ""
    norm, rate = (
        Series(name, *column(run.train, key), 0)
        for name, key in (
            ("gradient norm", "gradient_norm"),
            ("learning rate", "learning_rate"),
        )
    )
    figures = [
        page.figure(
            "Gradient norm",
            line_chart([norm], log=_largest_over_least(norm.y) > 20),
            "Before clipping. Steady after the warm-up is good; growing spikes foretell trouble.",
        ),
        page.figure(
            "Learning rate", line_chart([rate], include=(0.0,)), "The schedule as it was run."
        ),
    ]
    if run.routed:
        z_loss = line_chart(_train_and_held_out(run, "z_loss"))
        guide = (
            "Mean squared log-sum-exp of the router's logits. A drift is usual; several times what"
            " it began with, and still rising: they blow up."
        )
        figures.insert(1, page.figure("Z-loss", z_loss, guide))
    return page.section("Optimisation", figures)


def _largest_over_least(values: np.ndarray) -> float:
    positive = values[np.isfinite(values) & (values > 0)]
    return positive.max() / positive.min() if positive.size else 1.0


def _costs_section(run: Run) -> str:
    """The parameters of each part of the model, and its FLOPs for a token."""
    parts = run.summary.get("parts")
    if not isinstance(parts, dict):
        return ""
    keys = ("parameters_total", "parameters_active", "flops_per_token")
    sums = {key: sum(number(part.get(key)) for part in parts.values()) for key in keys}
    rows = [
        (name.replace("_", " "), *(_with_share(number(part.get(key)), sums[key]) for key in keys))
        for name, part in (parts | {"all": sums}).items()
        if any(part.values())
    ]
    shown = page.table(("part", "parameters", "a token meets", "FLOPs a token"), rows)
    words = "FLOPs are of training, forward and backward. Shares are of the column."
    return f'<section><h2>What it costs</h2>{shown}<p class="intro">{words}</p></section>'


def _with_share(value: float, total: float) -> str:
    return f"{short(value, 'kMBT')} ({value / total:.1%})" if value else "–"


def _sample_section(run: Run) -> str:
    if not run.sample:
        return ""
    settings = run.config.get("run")
    prompt = settings.get("sample_prompt") if isinstance(settings, dict) else None
    head = prompt if isinstance(prompt, str) and run.sample.startswith(prompt) else ""
    body = f"<b>{page.text(head)}</b>" * bool(head) + page.text(run.sample[len(head) :])
    intro = '<p class="intro">Written by the model at the end of training, after the prompt.</p>'
    return f"<section><h2>Sample</h2>{intro}<pre>{body}</pre></section>"


def _settings_section(run: Run) -> str:
    parts = []
    if command := run.summary.get("command"):
        parts.append(f"<pre>{page.text(command)}</pre>")
    if run.config:
        tables = f'<div class="settings">{page.settings_tables(run.config)}</div>'
        parts.append(f"<details><summary>All settings</summary>{tables}</details>")
    return f"<section><h2>Configuration</h2>{''.join(parts)}</section>" if parts else ""
