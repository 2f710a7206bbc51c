"""Figures of the load of the experts, and of the choices that each layer drops.

Letters: I: intervals.
"""

import numpy as np

from moejax.runs.expert_load import Load
from moejax.runs.pages import page
from moejax.runs.pages.charts import line_chart
from moejax.runs.pages.heatmaps import (
    MOST_ROWS,
    fold_rows,
    name_folded_rows,
    ratio_heatmap,
    ratio_key,
    ratio_levels,
    ratios,
    share_heatmap,
)
from moejax.runs.pages.router_figures import MOST_LINES, layer_series

MOST_CELLS = 600_000
"""Cells in all heatmaps over time together; this bounds the size of the page."""


def load_section(load: Load) -> str:
    """The section on the load: the experts of each routed layer over time, and all layers at the
    end.
    """
    stretches, layers, experts = load.asked_ILE.shape
    columns = max(40, MOST_CELLS // (min(experts, MOST_ROWS) * layers))
    size = -(-stretches // columns)
    asked_ILE = np.add.reduceat(load.asked_ILE, range(0, stretches, size))
    maps = [_layer_map(load, asked_ILE[:, i], i) for i in range(len(load.layers))]
    intro = (
        '<p class="intro">Colour is the choices an expert was asked for, over the mean of its'
        " layer. Blank is fair; a row that stays blue starves, one that stays orange is"
        " crowded.</p>"
    )
    figures = page.fold_figures(maps, page.MOST_OPEN_LAYERS, "layers")
    figures.insert(page.MOST_OPEN_LAYERS, _final_map(load))
    return page.section("Load of the experts", figures, intro + ratio_key())


def _layer_map(load: Load, asked_IE: np.ndarray, index: int) -> str:
    level_EI = fold_rows(ratio_levels(asked_IE).T)
    names = name_folded_rows(range(asked_IE.shape[1]))
    edges = (load.begin, int(load.step_I[-1]))
    remark = _describe_extremes(ratios(load.last_asked_LE[index]))
    chart = ratio_heatmap(level_EI, edges, names, "step", "expert", remark)
    guide = f"One row per expert, time to the right; {_describe_folding(asked_IE.shape[1])}"
    return page.figure(f"Layer {load.layers[index]}", chart, guide + "good: it fades early.")


def _final_map(load: Load) -> str:
    layers, experts = load.last_asked_LE.shape
    ratio_LE = ratios(load.last_asked_LE)
    chart = ratio_heatmap(
        fold_rows(ratio_levels(load.last_asked_LE)),
        (-0.5, experts - 0.5),
        name_folded_rows(load.layers),
        "expert",
        "layer",
        f"now {ratio_LE.min():.2f}× to {ratio_LE.max():.2f}×",
        np.char.mod("%.2f", ratio_LE) if layers <= 6 and experts <= 10 else None,
    )
    guide = f"One row per routed layer; {_describe_folding(layers)}good: pale from edge to edge."
    return page.figure("All layers, last interval", chart, guide)


def _describe_extremes(ratio_E: np.ndarray) -> str:
    """The emptiest and the fullest expert, in words."""
    least, most = int(ratio_E.argmin()), int(ratio_E.argmax())
    return f"now {ratio_E[least]:.2f}× (expert {least}) to {ratio_E[most]:.2f}× (expert {most})"


def _describe_folding(rows: int) -> str:
    size = -(-rows // MOST_ROWS)
    return f"of {size} neighbours the one farthest from fair; " if size > 1 else ""


def drops_by_layer(load: Load) -> str:
    asked_IL, seated_IL = load.asked_ILE.sum(2), load.seated_ILE.sum(2)
    share_IL = 1 - np.divide(seated_IL, asked_IL, out=np.ones(asked_IL.shape), where=asked_IL > 0)
    guide = "In training. One layer that stays above the others has an unbalanced router."
    if len(load.layers) <= MOST_LINES:
        series = layer_series(load.step_I, 100 * share_IL, load.layers)
        chart = line_chart(series, include=(0.0, 0.1))
        return page.figure("Dropped choices by layer, %", chart, guide)
    share_LI, names = _fold_shares(share_IL.T), name_folded_rows(load.layers)
    chart = share_heatmap(share_LI, (load.begin, int(load.step_I[-1])), names, "step", "layer")
    return page.figure("Dropped choices by layer", chart, guide)


def _fold_shares(share_LI: np.ndarray) -> np.ndarray:
    size = -(-len(share_LI) // MOST_ROWS)
    return np.stack([share_LI[i : i + size].max(0) for i in range(0, len(share_LI), size)])
