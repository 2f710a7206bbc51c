"""Figures of the routers themselves: their certainty, weights, biases, habits and pairs.

Letters: I: intervals; W: stretches of the sequence; X: columns of a map; Y: rows of a map.
"""

from typing import Any

import numpy as np

from moejax.config.material import read_material
from moejax.runs.expert_load import Load
from moejax.runs.pages import page
from moejax.runs.pages.charts import Series, line_chart
from moejax.runs.pages.heatmaps import MOST_ROWS, lift_heatmap, ratio_key
from moejax.runs.records import Run

MOST_LINES = 6
"""Up to so many layers have a line each; more become their mean, with a band around it."""
MOST_OPEN_PAIRS = 4
"""Maps of pairs shown at once."""


def router_section(run: Run) -> str:
    """The section on the routers; empty if the run has no records of them."""
    load, choices, figures = run.load, run.choices, []
    if load and load.entropy_IL is not None:
        chart = line_chart(layer_series(load.step_I, load.entropy_IL, load.layers))
        guide = "In training. A layer far below the others is surer, or has collapsed."
        figures.append(page.figure("Entropy by layer, nats", chart, guide))
    if load and load.router_norm_ILE is not None:
        chart = line_chart(layer_series(load.step_I, load.router_norm_ILE, load.layers))
        guide = "Of an expert's row: mean, range. Steady growth makes logits large, choices rigid."
        figures.append(page.figure("Norm of router weights", chart, guide))
    if load and load.bias_ILE is not None:
        chart = line_chart(layer_series(load.step_I, load.bias_ILE, load.layers), include=(0.0,))
        guide = (
            "Mean and range over experts. It settles once the load is even; a range that keeps"
            " growing works against the router."
        )
        figures.append(page.figure("Selection bias", chart, guide))
    if choices and len(choices.step_I) > 1:
        layers = load.layers if load else tuple(range(choices.saturation_IL.shape[1]))
        percent_IL = 100 * choices.saturation_IL
        chart = line_chart(layer_series(choices.step_I, percent_IL, layers, dots=True))
        guide = "Held-out choices that the last router makes, too. High early: routing froze."
        figures.append(page.figure("Router saturation, %", chart, guide))
    return page.section("Routers", figures) if figures else ""


def pair_section(run: Run) -> str:
    """The section on experts chosen together; empty if a token chooses only one."""
    choices = run.choices
    if choices is None:
        return ""
    lift_LEE = pair_lift(choices.together_LEE)
    layers = run.load.layers if run.load else range(len(lift_LEE))
    maps = [
        _pair_map(layer, lift_EE, load_E)
        for layer, lift_EE, load_E in zip(
            layers, lift_LEE, np.diagonal(choices.together_LEE, axis1=1, axis2=2), strict=True
        )
        if not (lift_EE == 1).all()
    ]
    if not maps:
        return ""
    intro = (
        '<p class="intro">How often held-out tokens chose both experts, over what their'
        " loads suggest. Blank: as often as any pair. Orange pairs do one job together, blue ones"
        " take each other's place.</p>"
    )
    figures = page.fold_figures(maps, MOST_OPEN_PAIRS, "layers")
    return page.section(
        "Experts chosen together", figures, intro + ratio_key("1×", with_nothing=False)
    )


def pair_lift(count_LEE: np.ndarray) -> np.ndarray:
    """For each pair of experts, tokens that chose both over what is expected: as many pairs in all,
    shared out by the product of loads. 1 on the diagonal, and where no token chose two.

    The co-activation of Muennighoff et al. 2024 (OLMoE, section 5.2), which has the count over the
    load of one of them, here independent of load.
    """
    load_LE = np.diagonal(count_LEE, axis1=1, axis2=2)
    apart_EE = ~np.eye(count_LEE.shape[-1], dtype=bool)
    product_LEE = load_LE[:, :, None] * load_LE[:, None] * apart_EE
    total_L11 = (count_LEE * apart_EE).sum((1, 2), keepdims=True)
    whole_L11 = product_LEE.sum((1, 2), keepdims=True)
    expected_LEE = product_LEE * total_L11 / np.maximum(whole_L11, 1)
    return np.divide(count_LEE, expected_LEE, out=np.ones(count_LEE.shape), where=expected_LEE > 0)


def _pair_map(layer: int, lift_EE: np.ndarray, load_E: np.ndarray) -> str:
    experts = len(load_E)
    shown = np.sort(np.argsort(-load_E, kind="stable")[:MOST_ROWS])
    names = [str(i) for i in shown]
    lift_YX = lift_EE[np.ix_(shown, shown)]
    i, j = np.unravel_index(np.argmax(np.triu(lift_EE, 1)), lift_EE.shape)
    remark = f"most: {i} and {j}, {lift_EE[i, j]:.2g}×"
    everywhere_YX = np.ones(lift_YX.shape, bool)
    chart = lift_heatmap(lift_YX, everywhere_YX, names, names, "expert", "expert", remark)
    guide = "Rows and columns are experts" + (len(shown) < experts) * f", the {MOST_ROWS} busiest"
    return page.figure(f"Layer {layer}", chart, f"{guide}; the diagonal means nothing.")


def drops_by_position(load: Load, config: dict[str, Any]) -> str:
    """Where in the sequence choices are dropped, in the last quarter of training."""
    if load.asked_ILW is None or load.seated_ILW is None:
        return ""
    late = slice(-max(1, len(load.step_I) // 4), None)
    asked_LW, seated_LW = load.asked_ILW[late].sum(0), load.seated_ILW[late].sum(0)
    share_LW = 1 - np.divide(seated_LW, asked_LW, out=np.ones(asked_LW.shape), where=asked_LW > 0)
    count = asked_LW.shape[1]
    if count == 1:
        return ""  # an image is one token
    data = config.get("data")
    length = data.get("sequence_length") if isinstance(data, dict) else None
    of_text = read_material(config).language and isinstance(length, int)
    x = (np.arange(count) + 0.5) * (length if of_text and length else count) / count
    series = layer_series(x, 100 * share_LW.T, load.layers)
    chart = line_chart(series, include=(0.0, 0.1), x_name="place")
    guide = (
        "Last quarter of training. Where seats go by order, late positions of a group lose theirs:"
        " a rise to the right, or a sawtooth of groups."
    )
    return page.figure("Dropped choices by position, %", chart, guide)


def layer_series(
    x: np.ndarray, value_ILX: np.ndarray, layers: tuple[int, ...], dots: bool = False
) -> list[Series]:
    """One line for each layer, or one for all of many; with a band around several values."""
    x = np.asarray(x, float)
    value_ILX = value_ILX.reshape(*value_ILX.shape[:2], -1).astype(float)
    if len(layers) > MOST_LINES:
        value_I1X = value_ILX.reshape(len(x), 1, -1)
        names, value_ILX = [f"mean of {len(layers)} layers"], value_I1X
    else:
        names = [f"layer {layer}" for layer in layers]
    mean_IL, least_IL, greatest_IL = (of(value_ILX, axis=2) for of in (np.mean, np.min, np.max))
    wide = value_ILX.shape[2] > 1
    return [
        Series(
            name,
            x,
            mean_IL[:, i],
            (i + 2) % 8,
            dots,
            least=least_IL[:, i] if wide else None,
            greatest=greatest_IL[:, i] if wide else None,
        )
        for i, name in enumerate(names)
    ]
