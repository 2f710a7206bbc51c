"""Figures about images: what was taken for what, and which expert takes which class.

Letters: X: columns of a map; Y: rows of a map.
"""

import numpy as np

from moejax.runs.class_counts import Sorted
from moejax.runs.lift import SURE, expected_counts, lift
from moejax.runs.pages import page
from moejax.runs.pages.heatmaps import lift_heatmap, lift_key, named_share_heatmap
from moejax.runs.records import Run

MOST_CLASSES = 100
"""More classes would be too small to read: only the most frequent ones are shown."""


def class_section(run: Run) -> str:
    """The section on classes; empty for models of text."""
    if run.sorted is None:
        return ""
    found, names = _keep_frequent(run.sorted, _name_classes(run))
    figures = [_draw_confusion(found, names)]
    if found.asked_LEV is None:
        return page.section("Classes", figures)
    layers = run.load.layers if run.load else range(len(found.asked_LEV))
    images = max(found.confusion_VV.sum(), 1)
    maps = [
        _draw_layer(asked_EV, layer, images, names)
        for asked_EV, layer in zip(found.asked_LEV, layers, strict=True)
        if not (lift(asked_EV) == 1).all()  # routers that give every token to every expert
    ]
    if not maps:
        return page.section("Classes", figures)
    figures += page.fold_figures(maps, page.MOST_OPEN_LAYERS, "layers")
    intro = (
        '<p class="intro">Of the last evaluation. For experts, numbers are the share of a class'
        " in per cent that goes to each, and colour is how much more often than by chance that is:"
        " P(expert | class) / P(expert).</p>"
    )
    return page.section("Classes", figures, intro + lift_key())


def _name_classes(run: Run) -> list[str]:
    assert run.sorted is not None  # else there are no figures of classes
    count, known = len(run.sorted.confusion_VV), run.summary.get("classes")
    if isinstance(known, list) and len(known) == count:
        return [str(name) for name in known]
    return [str(i) for i in range(count)]


def _keep_frequent(found: Sorted, names: list[str]) -> tuple[Sorted, list[str]]:
    """Only the most frequent classes, in their own order."""
    if len(names) <= MOST_CLASSES:
        return found, names
    kept = np.sort(np.argsort(-found.confusion_VV.sum(1), kind="stable")[:MOST_CLASSES])
    asked_LEV = None if found.asked_LEV is None else found.asked_LEV[..., kept]
    return Sorted(found.confusion_VV[np.ix_(kept, kept)], asked_LEV), [names[i] for i in kept]


def _draw_confusion(found: Sorted, names: list[str]) -> str:
    images_V1 = np.maximum(found.confusion_VV.sum(1, keepdims=True), 1)
    words_VV = None
    if len(names) <= 12:
        words_VV = np.where(found.confusion_VV > 0, found.confusion_VV.astype(str), "")
    chart = named_share_heatmap(
        found.confusion_VV / images_V1, names, names, "guess", "class", words_VV
    )
    worst = _describe_worst(found.confusion_VV, names)
    guide = f"One row per class, images counted; off the diagonal are mistakes{worst}."
    return page.figure("Confusion", chart, guide)


def _describe_worst(confusion_VV: np.ndarray, names: list[str]) -> str:
    wrong_VV = confusion_VV - np.diag(np.diag(confusion_VV))
    if not wrong_VV.any():
        return ", of which there are none"
    row, column = np.unravel_index(wrong_VV.argmax(), wrong_VV.shape)
    return f", most often {names[row]} taken for {names[column]} ({wrong_VV[row, column]:,})"


def _draw_layer(asked_EV: np.ndarray, layer: int, images: int, names: list[str]) -> str:
    expected_EV = expected_counts(asked_EV)
    # The choices of an image's patches are alike, so an image counts as one choice made many times.
    deviation_EV = np.sqrt(expected_EV * asked_EV.sum() / images)
    sure_EV = np.abs(asked_EV - expected_EV) > SURE * deviation_EV
    share_EV = asked_EV / np.maximum(asked_EV.sum(0, keepdims=True), 1)
    experts, words_EV = [f"{e}" for e in range(len(asked_EV))], np.char.mod("%.0f", 100 * share_EV)
    chart = lift_heatmap(
        lift(asked_EV), sure_EV, experts, names, "class", "expert", words_YX=words_EV
    )
    expert, one = np.unravel_index(share_EV.argmax(), share_EV.shape)
    guide = f"One row per expert. Expert {expert} takes {share_EV[expert, one]:.0%} of the choices"
    return page.figure(f"Classes by expert, layer {layer}", chart, f"{guide} for {names[one]}.")
