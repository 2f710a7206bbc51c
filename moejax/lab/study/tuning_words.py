"""What is said about the tuning of a study: in the table, below it, and on the page."""

import math

from moejax.lab.study.grid import write_setting
from moejax.lab.study.results import Comparison, Tuned, compute_figures
from moejax.runs.pages import page

EDGE = "at the edge"


def describe_choice(comparison: Comparison, name: str) -> str:
    """The setting that a run takes, for a cell: ``learning_rate 0.02 (2 of 3)``."""
    tuned = comparison.tuning[name]
    setting = next((one.setting for one in comparison.outcomes if one.name == name), {})
    if tuned.chosen is None:
        return tuned.status
    source = comparison.tuning[tuned.taken_from] if tuned.taken_from else tuned
    words = [f"{tuned.chosen} of {len(source.outcomes)}"]
    words += [f"as {tuned.taken_from}"] if tuned.taken_from else []
    words += [EDGE] if source.edges else []
    return f"{write_setting(setting, short=True)} ({', '.join(words)})"


def write_tuning_notes(comparison: Comparison) -> list[str]:
    """How settings were chosen, and which choices lie at an edge: there a better one may lie
    beyond.
    """
    known = {name: tuned for name, tuned in comparison.tuning.items() if not tuned.taken_from}
    if not known:
        return []
    first = next(iter(known.values()))
    notes = [
        f"Every run was tried with {len(first.outcomes)} settings and the seed {first.seed}; the"
        f" best one is that of its row. The other seeds judge."
    ]
    for name, tuned in known.items():
        notes += [f"{name}: {words}." for words in tuned.edges]
        bad = [str(i) for i, one in enumerate(tuned.outcomes, 1) if one.status == "diverged"]
        if tuned.status == "diverged":
            notes.append(f"{name}: it diverged with every setting, so that nothing judges it.")
        elif bad:
            notes.append(f"{name}: it diverged with setting {', '.join(bad)}.")
    return notes


def tuning_section(comparison: Comparison) -> str:
    """The measure of every run with every setting, as a section of the page."""
    rows = [
        row
        for name, tuned in comparison.tuning.items()
        for row in _write_rows(name, tuned, comparison)
    ]
    if not rows:
        return ""
    measure = comparison.measure
    shown = page.table(("run", "setting", measure.name, ""), rows)
    seed = next(iter(comparison.tuning.values())).seed
    intro = (
        f'<p class="intro">Held-out {measure.material} at the end of a training with the seed'
        f" {seed}, which judges nothing else.</p>"
    )
    return f"<section><h2>Tuning</h2>{shown}{intro}</section>"


def _write_rows(name: str, tuned: Tuned, comparison: Comparison) -> list[tuple[str, ...]]:
    measure, rows = comparison.measure, list[tuple[str, ...]]()
    for number, one in enumerate(tuned.outcomes, 1):
        value = compute_figures(one)[measure.key]
        written = measure.digits(value) if math.isfinite(value) else one.status
        mark = "chosen" if number == tuned.chosen else ""
        mark += f", {EDGE}" if mark and tuned.edges else ""
        rows.append((name if number == 1 else "", write_setting(one.setting), written, mark))
    return rows
