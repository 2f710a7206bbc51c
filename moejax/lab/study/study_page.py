"""A study as one page: the table of its runs, their curves together, and the load of each.

Letters: I: intervals; X: columns of a map; Y: rows of a map.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moejax.lab.study.results import Comparison, compute_figures, reduce_over_seeds
from moejax.lab.study.tables import Table, make_table
from moejax.lab.study.tuning_words import tuning_section
from moejax.lab.study.verdict_figures import verdicts_section
from moejax.lab.study.verdicts import make_verdicts
from moejax.runs.expert_load import Load
from moejax.runs.metric_lines import column
from moejax.runs.pages import page
from moejax.runs.pages.charts import Series, falling_range, line_chart
from moejax.runs.pages.heatmaps import (
    fold_rows,
    name_folded_rows,
    ratio_heatmap,
    ratio_key,
    ratio_levels,
    ratios,
)
from moejax.runs.pages.ranks import Rank, rank_chart
from moejax.runtime.number_words import count

COLORS = 8
"""Colours of the page; the lines of further runs are dashed, then dotted."""
MOST_LINES = 3 * COLORS
"""Of more runs there are no curves: their lines could not be told apart."""
MOST_LARGE_MAPS = 4
MOST_LOAD_ROWS = 104
"""Rows of one map of load, all layers together: two units of the drawing each."""

_EXPLAINED = (
    "{title} of held-out {material} at the end: less is better. Losses are nats a target over the"
    " first and the last log interval. Max violation is the fullest expert over the mean, less 1,"
    " in held-out batches; global: of all of them together, or of all in the last log interval of"
    " training. Dead experts, {unit} and seconds are of training. In brackets: the least"
    " and the greatest over the seeds. A dash: dense, or not known."
)


def study_html(comparison: Comparison, section: str = "") -> str:
    """The page of a study; it stands alone, as the report of a run does. ``section``: what comes
    before its table.
    """
    parts = [
        _head(comparison),
        section,
        _results(make_table(comparison), comparison),
        verdicts_section(comparison, make_verdicts(comparison)),
        _learning(comparison),
        _balance(comparison),
        _loads(comparison),
        tuning_section(comparison),
        _settings(comparison),
    ]
    return page.document(f"{comparison.title} – moejax", "\n".join(part for part in parts if part))


def _head(comparison: Comparison) -> str:
    runs = [one.run for one in comparison.outcomes if one.run]
    known = (runs[0].summary.get(key) for key in ("data", "devices")) if runs else ()
    about = [str(words) for words in known if words]
    return (
        f'<header><div class="mark">moejax comparison</div><h1>{page.text(comparison.title)}</h1>'
        f'<p class="verdict">{page.text(comparison.question)}</p>'
        f'<p class="about">{page.text(" · ".join(about))}</p>'
        f"<pre>{page.text(comparison.command)}</pre>{_notes(comparison)}</header>"
    )


def _notes(comparison: Comparison) -> str:
    """What a reader should know before comparing."""
    found = [
        f"{one.label} diverged; {one.message.partition('. ')[0]}."  # the rest is advice
        for one in comparison.outcomes
        if one.status == "diverged"
    ]
    for key, words in (
        ("data", "text"),
        ("devices", "devices"),
        ("versions", "versions"),
        ("machine", "machine"),
    ):
        kinds = [one.run.summary.get(key) for one in comparison.outcomes if one.run]
        kinds = [kind for kind in kinds if kind]
        if any(kind != kinds[0] for kind in kinds):
            found.append(f"The runs did not all have the same {words}: compare with care.")
    for one in comparison.outcomes:
        if (skipped := compute_figures(one)["skipped_updates"]) > 0:
            found.append(
                f"{one.label}: {count(skipped, 'update', 'was', 'were')} skipped as not finite."
            )
        found += [f"{one.label}: {damage}." for damage in one.run.damage] if one.run else []
    remarks = "".join(f"<li>{page.text(note)}</li>" for note in found)
    return f'<ul class="notes">{remarks}</ul>' if found else ""


def _results(made: Table, comparison: Comparison) -> str:
    baseline, measure = comparison.baseline, comparison.measure
    rows = [[_break_lines(cell) for cell in row] for row in made.rows]
    shown = page.table(made.header, rows, best=made.best)
    title = measure.name.capitalize()
    words = _EXPLAINED.format(title=title, material=measure.material, unit=measure.unit)
    words += (
        f" Steps and seconds to {baseline.name}: of training, until held-out"
        f" {measure.reached.format(measure.digits(baseline.value))} that {baseline.name} ends with,"
        f" interpolated between evaluations; and their share of those of {baseline.name}."
        " Compiling is left out."
        if baseline
        else ""
    )
    intro = "".join(f'<p class="intro">{page.text(one)}</p>' for one in (*made.notes, words))
    return f"<section><h2>Results</h2>{shown}{intro}</section>"


def _break_lines(cell: str) -> str:
    """A cell in several lines, so that its column is narrow: the spread over the seeds, and how
    many of them have finished, stand below the value.
    """
    return cell.replace(" (", "\n(").replace("; ", ";\n").replace("finished, ", "finished,\n")


def _learning(comparison: Comparison) -> str:
    """What the runs learned: the measure on what is held out, and the training loss."""
    measure = comparison.measure
    curves = _curves(comparison, "validation", measure.key, measure.scale, dots=True)
    loss = _curves(comparison, "train", "loss")
    ranks = _ranks(comparison)
    seeds = max(len(outcomes) for outcomes in comparison.by_run().values())
    charts = []
    if len(ranks) > 2:
        guide = f"Held-out {measure.material} at the end, the least on top. "
        guide += (
            "Lines: the spread over seeds. Verdicts depend on differences with the same seed."
            if seeds > 1
            else "One seed: differences as small as those between seeds mean nothing."
        )
        charts.append(page.figure(f"{measure.title}, ranked", rank_chart(ranks), guide))
    if charts and len(comparison.by_run()) > MOST_LINES:
        return page.section("Learning", charts)
    if not charts or any(one.x.size > 1 for one in curves):
        guide = f"Held-out {measure.material}. Lower is better; compare at the right edge, where"
        guide += " schedules end."
        base = comparison.baseline
        guides = [(base.value * measure.scale, f"{base.name}, at its end")] if base else []
        title, y_range = f"Validation, {measure.name}", falling_range(curves)
        title += ", %" * measure.percent
        charts.append(_lines(title, curves, guide, y_range=y_range, guides=guides))
    guide = "Nats a token, mean over a log interval. A gap or a red tick: it was not finite."
    charts.append(_lines("Training loss", loss, guide, y_range=falling_range(loss)))
    end = max((one.x.max() for one in loss), default=0.0)
    if any(np.sum(one.x >= end / 2) >= 4 for one in loss):
        guide = "The same, closer: what is left between the runs after the easy part."
        charts.append(_lines("Training loss, second half", loss, guide, x_range=(end / 2, end)))
    intro = (
        f'<p class="intro">Lines are means over {seeds} seeds, in a band from the least to the'
        " greatest.</p>"
    )
    return page.section("Learning", charts, intro if seeds > 1 else "")


def _balance(comparison: Comparison) -> str:
    """How even the load was while training, by the metrics that were logged."""
    if len(comparison.by_run()) > MOST_LINES:
        return ""
    of_batch = "In training batches: the fullest expert over the mean, less 1. Near 0 is balance."
    of_all = "The same, of all choices in a log interval together."
    dead = "Experts, over all layers, that no token chose in a log interval."
    dropped = "Choices in training that found their expert full."
    charts = [
        _lines(title, series, guide, include=include)
        for title, key, scale, include, guide in (
            ("Max violation", "max_violation", 1.0, (0.0,), of_batch),
            ("Max violation, global", "max_violation_global", 1.0, (0.0,), of_all),
            ("Dead experts", "dead_experts", 1.0, (0.0, 4.0), dead),
            ("Dropped choices, %", "dropped_fraction", 100.0, (0.0, 0.1), dropped),
        )
        if (series := _curves(comparison, "train", key, scale))
    ]
    return page.section("Balance", charts) if charts else ""


def _lines(title: str, series: Sequence[Series], guide: str, **options: Any) -> str:
    height = int(np.clip(22 * len(series), 190, 320))
    return page.figure(title, line_chart(series, height=height, **options), guide)


def _ranks(comparison: Comparison) -> list[Rank]:
    """The measure of every run that has finished."""
    found = []
    for i, (name, outcomes) in enumerate(comparison.by_run().items()):
        key, scale = comparison.measure.key, comparison.measure.scale
        mean, least, most = (
            scale * reduce_over_seeds(outcomes, of)[key] for of in (np.mean, min, max)
        )
        if np.isfinite(mean):
            found.append(Rank(name, mean, least, most, i % COLORS))
    return found


def _curves(
    comparison: Comparison, split: str, key: str, scale: float = 1.0, dots: bool = False
) -> list[Series]:
    """A metric of every run that logged it, in the run's colour: the mean over its seeds, in a
    band from the least to the greatest.
    """
    found = []
    for i, (name, outcomes) in enumerate(comparison.by_run().items()):
        columns = [column(getattr(one.run, split), key) for one in outcomes if one.run]
        columns = [(x, scale * y) for x, y in columns if x.size]
        if not columns:
            continue
        look: dict[str, Any] = {"color": i % COLORS, "dash": i // COLORS % 3, "dots": dots}
        x, y, least, greatest = _reduce_curves(columns)
        if len(columns) > 1:
            look |= {"least": least, "greatest": greatest}
        found.append(Series(name, x, y, **look))
    return found


def _reduce_curves(columns: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Steps, and mean, least and greatest value over the seeds that logged the step; a value that
    is not finite makes them NaN, so that it shows.
    """
    x = np.unique(np.concatenate([x for x, _ in columns]))
    values = [[y[i] for at, y in columns for i in np.flatnonzero(at == step)] for step in x]
    return x, *(np.array([of(some) for some in values]) for of in (np.mean, np.min, np.max))


def _loads(comparison: Comparison) -> str:
    """One map for each routed run; those of further seeds wait behind a click."""
    first: list[str] = []
    more: list[str] = []
    for outcomes in comparison.by_run().values():
        loads = [(one.label, one.run.load) for one in outcomes if one.run]
        maps = [_load_map(label, load) for label, load in loads if load]
        first, more = first + maps[:1], more + maps[1:]
    if not first:
        return ""
    intro = (
        '<p class="intro">Choices that an expert was asked for, over the mean of its layer. One row'
        " per expert, layers from the top, time to the right. Blank is fair; a row that stays blue"
        " starves, one that stays orange is crowded. The colours mean the same in every map.</p>"
    )
    first = page.fold_figures([*first, *more], len(first), "seeds")
    small = len(first) > MOST_LARGE_MAPS
    return page.section("Load of the experts", first, intro + ratio_key(), small)


def _load_map(title: str, load: Load) -> str:
    _, layers, experts = load.asked_ILE.shape
    most = max(2, MOST_LOAD_ROWS // layers)
    level_YX = np.concatenate(
        [fold_rows(ratio_levels(load.asked_ILE[:, i]).T, most) for i in range(layers)]
    )
    of_experts = name_folded_rows(range(experts), most)
    names = [f"{layer}, expert {expert}" for layer in load.layers for expert in of_experts]
    blocks = [f"L{layer}" for layer in load.layers]
    edges = (load.begin, int(load.step_I[-1]))
    ratio_LE = ratios(load.last_asked_LE)
    remark = f"at the end {ratio_LE.min():.2f}× to {ratio_LE.max():.2f}×"
    chart = ratio_heatmap(level_YX, edges, names, "step", "layer", remark, blocks=blocks)
    size = -(-experts // most)
    folding = f"; of {size} neighbours the one farthest from fair" if size > 1 else ""
    guide = f"{layers} layers (L) of {experts} experts{folding}."
    return page.figure(title, chart, guide)


def _settings(comparison: Comparison) -> str:
    if not comparison.settings:
        return ""
    names = [field.replace(".", ".\u200b").replace("_", "_\u200b") for field in comparison.settings]
    rows = [(run, *(of[run] for of in comparison.settings.values())) for run in comparison.by_run()]
    intro = '<p class="intro">All other settings are the same, but for the seeds.</p>'
    shown = page.table(("run", *names), rows)  # where names may break, to keep columns narrow
    return f"<section><h2>Settings in which the runs differ</h2>{shown}{intro}</section>"
