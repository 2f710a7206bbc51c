"""The verdicts of a study on its page: differences to the baseline, and all pairs."""

import math

import numpy as np

from moejax.lab.study.results import Comparison, reduce_over_seeds
from moejax.lab.study.statistics import ERROR, Kind
from moejax.lab.study.verdicts import Verdicts, describe
from moejax.runs.pages import page
from moejax.runs.pages.forest import Effect, forest_plot
from moejax.runtime.number_words import count

MOST_ARMS = 12
"""Runs of which all pairs are shown."""
COLORS: dict[Kind, int] = {"better": 2, "worse": 1, "same": 0, "equal": 0}
SIGNS: dict[Kind, str] = {"better": "<", "worse": ">", "same": "=", "equal": "="}
"""For those who do not see the colours."""
UNDECIDED = 6
KEYS = ((2, "better"), (1, "worse"), (0, "the same"), (UNDECIDED, "not decided"))


def verdicts_section(comparison: Comparison, verdicts: Verdicts) -> str:
    """What is decided, drawn; empty where no difference is known."""
    figures = [draw_forest(comparison, verdicts), draw_pairs(comparison, verdicts)]
    figures = [figure for figure in figures if figure]
    return page.section("What is decided", figures) if figures else ""


def draw_forest(comparison: Comparison, verdicts: Verdicts) -> str:
    """The difference of each run to the baseline, with its interval, in the colour of its verdict;
    empty without a baseline, and where no interval is known.
    """
    base, measure = comparison.baseline, comparison.measure
    known = {name: one for name, one in verdicts.against.items() if one.seeds}
    if base is None or not any(math.isfinite(one.low) for one in known.values()):
        return ""
    scale = measure.scale
    effects = [
        Effect(
            name=name,
            value=scale * one.mean,
            low=scale * one.low,
            high=scale * one.high,
            color=COLORS.get(one.kind, UNDECIDED),
            words=measure.difference(one.mean),
            sign=SIGNS.get(one.kind, ""),
        )
        for name, one in known.items()
    ]
    there = {effect.color for effect in effects}
    keys = [key for key in KEYS if key[0] in there]
    guide = (
        f"Mean difference with the same seed, and its {verdicts.level} interval over seeds; left of"
        f" the line is better than {base.name}. Colours, and the sign behind a figure, are verdicts"
        f" after Holm over {count(len(verdicts.against), 'comparison')} at {100 * ERROR:g} %."
    )
    return page.figure(f"{measure.title}, against {base.name}", forest_plot(effects, keys), guide)


def draw_pairs(comparison: Comparison, verdicts: Verdicts) -> str:
    """Each run less each other one, of at most ``MOST_ARMS`` runs, the best mean first; empty for
    two or more than that, and where no interval is known.
    """
    measure = comparison.measure
    means = {
        name: reduce_over_seeds(outcomes, np.mean)[measure.key]
        for name, outcomes in comparison.by_run().items()
    }
    names = sorted((name for name in means if math.isfinite(means[name])), key=means.__getitem__)
    known = any(math.isfinite(one.low) for one in verdicts.pairs.values())
    if not (2 < len(names) <= MOST_ARMS and known):
        return ""
    rows = "".join(
        f'<tr><th scope="row">{i} {page.text(row)}</th>'
        + "".join(_cell(comparison, verdicts, row, name) for name in names)
        + "</tr>"
        for i, row in enumerate(names, 1)
    )
    heads = "".join(f'<th scope="col">{i}</th>' for i in range(1, len(names) + 1))
    table = (
        '<div class="scroll"><table class="wide pairs"><thead><tr>'
        f'<th scope="col">row less column</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    guide = (
        "A row less a column, mean difference with the same seed: below 0, the row is better."
        f" In colour: decided after Holm over {count(len(verdicts.pairs), 'pair')} at"
        f" {100 * ERROR:g} %. Point at a cell for its interval."
    )
    return page.figure(f"{measure.title}, all pairs", table, guide)


def _cell(comparison: Comparison, verdicts: Verdicts, row: str, column: str) -> str:
    measure = comparison.measure
    if row == column:
        return "<td></td>"
    pairs = verdicts.pairs
    one = pairs[row, column] if (row, column) in pairs else pairs[column, row].turned()
    words = page.text(f"{row} less {column}: {describe(one, measure, verdicts.margin)}")
    shown = measure.difference(one.mean) if one.seeds else "–"
    look = f' class="v{COLORS[one.kind]}"' if one.kind in COLORS else ""
    return f'<td{look} title="{words}">{page.text(shown)}</td>'
