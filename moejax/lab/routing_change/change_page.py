"""What training on has done to the routing of a model, as one page.

Letters: X: anything, one behind another; Y: classes of tokens.
"""

import numpy as np

from moejax.lab.routing_change.change import Change
from moejax.lab.routing_change.findings import count_documents
from moejax.lab.specialisation.specialisation_page import describe_classes, lift_figure
from moejax.runs.pages import page
from moejax.runs.pages.charts import Series, line_chart
from moejax.runs.pages.heatmaps import (
    MOST_ROWS,
    change_ratios,
    fold_rows,
    levels_of_ratios,
    lift_key,
    name_folded_rows,
    named_share_heatmap,
    ratio_heatmap,
    ratio_key,
    ratios,
    share_heatmap,
)

BEFORE, AFTER, CHANCE = 0, 1, 6
"""Their colours."""
MOST_OPEN_MAPS = 4
MOST_WRITTEN = 10
"""Up to so many rows and columns have their figures in them."""

_AGREEMENT = (
    "Both models read the same text. A choice is the same if the same token chose the same expert"
    " in the same layer before (router saturation: Muennighoff et al. 2024, OLMoE, section 5.1)."
    " Chance is what two models with these loads would have in common if they knew nothing of each"
    " other."
)
_LOAD = (
    "Choices that an expert was asked for, over the mean of its layer, on this text. Blank is fair."
    " A text of one kind is never spread quite evenly; what counts is what has changed."
)
_BITS = (
    "What a choice of expert tells of the class of its token: mutual information, in bits."
    " {classes} Chance is what is left when the classes are shifted against the routing."
)


def change_html(found: Change) -> str:
    """The page, which stands alone like the report of a run."""
    parts = [
        _header(found),
        page.tiles(_key_numbers(found)),
        _agreement_section(found),
        _load_section(found),
        _specialisation_section(found),
    ]
    return page.document("Routing before and after – moejax", "\n".join(parts))


def _header(found: Change) -> str:
    about = (
        f"before: {found.before.description}",
        f"after: {found.after.description}",
        f"text: {found.data}",
    )
    lines = "<br>".join(map(page.text, about))
    return (
        '<header><div class="mark">moejax report</div>'
        "<h1>What training has done to the routing</h1>"
        f'<p class="verdict">{page.text(_verdict(found))}</p>'
        f'<p class="about">{lines}</p></header>'
    )


def _verdict(found: Change) -> str:
    least = int(np.argmin(found.agreement_L))
    before, after = (side.violation_L.mean() for side in (found.before, found.after))
    load = "as even as before" if abs(after - before) < 0.05 else "more even than before"
    if after - before >= 0.05:
        load = "less even than before"
    return (
        f"On this text {found.agreement:.0%} of the choices are the same ({found.chance:.0%} would"
        f" be by chance), fewest in layer {found.layers[least]}: {found.agreement_L[least]:.0%}."
        f" The load is {load}."
    )


def _key_numbers(found: Change) -> list[tuple[str, str, str]]:
    before, after = found.before, found.after

    def change(values: list[float], form: str) -> str:
        return " → ".join(format(value, form) for value in values)

    violation = [side.violation_L.mean() for side in (before, after)]
    bits = [side.bits_L.max() for side in (before, after)]
    return [
        ("tokens looked at", f"{found.tokens:,}", f"of {count_documents(found)}"),
        ("the same choices", f"{found.agreement:.0%}", f"{found.chance:.0%} by chance"),
        ("max violation", change(violation, ".2f"), "mean over layers; 0 is even"),
        ("dead experts", change([before.dead, after.dead], "d"), "on this text"),
        ("bits of class, at most", change(bits, ".3f"), f"of {found.entropy:.2f}"),
    ]


def _by_layer(found: Change, *lines: tuple[str, np.ndarray, int]) -> str:
    """A line over the layers for each name."""
    layer_L = np.array(found.layers, float)
    series = [Series(name, layer_L, y_L, color, dots=True) for name, y_L, color in lines]
    return line_chart(series, include=(0.0,), x_name="layer")


def _agreement_section(found: Change) -> str:
    chart = _by_layer(
        found,
        ("the same", 100 * found.agreement_L, AFTER),
        ("by chance", 100 * found.chance_L, CHANCE),
    )
    guide = "By layer. Near chance, a layer sends tokens elsewhere than before."
    figures = [page.figure("The same choices, %", chart, guide)]
    kept_LE, names = _fold_least(found.kept_of_expert_LE), name_folded_rows(found.layers)
    if max(kept_LE.shape) <= MOST_WRITTEN:
        words_LE = _write_percent(kept_LE)
        chart = named_share_heatmap(kept_LE, names, found.experts, "expert", "layer", words_LE)
    else:
        chart = share_heatmap(kept_LE, _edges(found), names, "expert", "layer")
    guide = "Of the tokens of each expert before, the share that it still takes."
    figures.append(page.figure("What each expert has kept", chart, guide))
    return page.section("The same experts", figures, _intro(_AGREEMENT))


def _write_percent(share_YX: np.ndarray) -> np.ndarray:
    return np.char.mod("%.0f%%", 100 * share_YX)


def _load_section(found: Change) -> str:
    sides = (("before", found.before), ("after", found.after))
    guide = "One row for each routed layer."
    figures = [
        page.figure(f"Load {name}", _load_map(found, side.load_LE), guide) for name, side in sides
    ]
    guide = "Orange experts have more to do than before, blue ones less."
    figures.append(page.figure("Load after, over that before", _map_of_moves(found), guide))
    chart = _by_layer(
        found,
        ("before", found.before.violation_L, BEFORE),
        ("after", found.after.violation_L, AFTER),
    )
    guide = "The fullest expert's load over the mean, less 1: 0 is even, 1 is twice the fair load."
    figures.append(page.figure("Max violation by layer", chart, guide))
    return page.section("Load of the experts", figures, _intro(_LOAD) + ratio_key())


def _load_map(found: Change, load_LE: np.ndarray) -> str:
    ratio_LE = ratios(load_LE)
    remark = f"{ratio_LE.min():.2f}× to {ratio_LE.max():.2f}×"
    return _ratio_map(found, ratio_LE, remark)


def _map_of_moves(found: Change) -> str:
    return _ratio_map(found, change_ratios(found.after.load_LE, found.before.load_LE), "")


def _ratio_map(found: Change, ratio_LE: np.ndarray, remark: str) -> str:
    """One row for each routed layer, experts to the right."""
    words_LE = None
    if max(ratio_LE.shape) <= MOST_WRITTEN:
        words_LE = np.where(np.isfinite(ratio_LE), np.char.mod("%.2f", ratio_LE), "new")
    level_LE, names = fold_rows(levels_of_ratios(ratio_LE)), name_folded_rows(found.layers)
    edges = _edges(found)
    return ratio_heatmap(level_LE, edges, names, "expert", "layer", remark, words_LE)


def _edges(found: Change) -> tuple[float, float]:
    return -0.5, len(found.experts) - 0.5


def _specialisation_section(found: Change) -> str:
    before, after = found.before, found.after
    chart = _by_layer(
        found,
        ("before", before.bits_L, BEFORE),
        ("after", after.bits_L, AFTER),
        ("chance, after", after.chance_L, CHANCE),
    )
    guide = f"By layer, of {found.entropy:.2f} bits in all. Higher: experts know classes better."
    figures = [page.figure("Bits of the class of a token", chart, guide)]
    kept_YL = found.kept_of_class_LY.T
    layers = [str(layer) for layer in found.layers]
    words_YL = _write_percent(kept_YL) if len(layers) <= MOST_WRITTEN else None
    chart = named_share_heatmap(kept_YL, found.classes, layers, "layer", "class", words_YL)
    guide = "Of the choices of each class of token, the share that is the same."
    figures.append(page.figure("What each class of token has kept", chart, guide))
    maps = [
        lift_figure(f"Layer {layer}, {name}", side, i, found.classes, found.experts, "class")
        for i, layer in enumerate(found.layers)
        for name, side in (("before", before), ("after", after))
    ]
    figures += page.fold_figures(maps, MOST_OPEN_MAPS, "maps, of the other layers")
    words = _BITS.format(classes=describe_classes(found.python))
    return page.section("Specialisation", figures, _intro(words) + lift_key())


def _intro(words: str) -> str:
    return f'<p class="intro">{page.text(words)}</p>'


def _fold_least(share_LE: np.ndarray) -> np.ndarray:
    """At most as many rows as a map has: of neighbours, the least."""
    size = -(-len(share_LE) // MOST_ROWS)
    return np.stack([share_LE[i : i + size].min(0) for i in range(0, len(share_LE), size)])
