"""Figures about images: what was taken for what, and which expert takes which class."""

import numpy as np

from moejax.observe import page
from moejax.observe.heatmaps import lift_heatmap, lift_key, named_share_heatmap
from moejax.observe.records import Run, Sorted

MOST_CLASSES = 100
"""Beyond these the pictures would be too fine to read: the most frequent ones are shown."""
MOST_OPEN_LAYERS = 7
SURE_CHOICES = 30.0
"""Choices that a cell would have if chance dealt them, below which its colour is pale."""


def classes(run: Run) -> str:
    """The section of the report; empty for texts."""
    if run.sorted is None:
        return ""
    found, names = _shown(run.sorted, _names(run))
    figures = [_confusion(found, names)]
    if found.asked_LEV is None:
        return page.section("Classes", figures)
    layers = run.load.layers if run.load else range(len(found.asked_LEV))
    maps = [_of_layer(a, i, names) for a, i in zip(found.asked_LEV, layers, strict=True)]
    figures += page.folded(maps, MOST_OPEN_LAYERS, "layers")
    intro = (
        '<p class="intro">Of the last evaluation. For experts, colour is how much more often than'
        " by chance one is chosen for images of a class: P(class | expert) / P(class).</p>"
    )
    return page.section("Classes", figures, intro + lift_key())


def _names(run: Run) -> list[str]:
    count, known = len(run.sorted.confusion_VV), run.summary.get("classes")
    if isinstance(known, list) and len(known) == count:
        return [str(name) for name in known]
    return [str(i) for i in range(count)]


def _shown(found: Sorted, names: list[str]) -> tuple[Sorted, list[str]]:
    """The most frequent classes, in their own order."""
    if len(names) <= MOST_CLASSES:
        return found, names
    kept = np.sort(np.argsort(-found.confusion_VV.sum(1), kind="stable")[:MOST_CLASSES])
    asked_LEV = None if found.asked_LEV is None else found.asked_LEV[..., kept]
    return Sorted(found.confusion_VV[np.ix_(kept, kept)], asked_LEV), [names[i] for i in kept]


def _confusion(found: Sorted, names: list[str]) -> str:
    images_V1 = np.maximum(found.confusion_VV.sum(1, keepdims=True), 1)
    words_VV = None
    if len(names) <= 12:
        words_VV = np.where(found.confusion_VV > 0, found.confusion_VV.astype(str), "")
    chart = named_share_heatmap(
        found.confusion_VV / images_V1, names, names, "taken for", "class", words_VV
    )
    worst = _worst(found.confusion_VV, names)
    guide = f"One row per class, images counted; off the diagonal are mistakes{worst}."
    return page.figure("Confusion", chart, guide)


def _worst(confusion_VV: np.ndarray, names: list[str]) -> str:
    wrong_VV = confusion_VV - np.diag(np.diag(confusion_VV))
    if not wrong_VV.any():
        return ", of which there are none"
    row, column = np.unravel_index(wrong_VV.argmax(), wrong_VV.shape)
    return f", most often {names[row]} taken for {names[column]} ({wrong_VV[row, column]:,})"


def _of_layer(asked_EV: np.ndarray, layer: int, names: list[str]) -> str:
    lift_EV, expected_EV = lift(asked_EV)
    sure_EV = expected_EV >= SURE_CHOICES
    experts = [f"{expert}" for expert in range(len(asked_EV))]
    chart = lift_heatmap(lift_EV, sure_EV, experts, names, "class", "expert")
    share_EV = asked_EV / np.maximum(asked_EV.sum(0, keepdims=True), 1)
    expert, one = np.unravel_index(share_EV.argmax(), share_EV.shape)
    guide = f"One row per expert. Expert {expert} takes {share_EV[expert, one]:.0%} of the choices"
    return page.figure(f"Classes by expert, layer {layer}", chart, f"{guide} for {names[one]}.")


def lift(asked_EV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(class | expert) / P(class) of choices counted by expert and class, 1 where there are none;
    and the choices that chance would deal.
    """
    total = max(asked_EV.sum(), 1)
    expected_EV = asked_EV.sum(1, keepdims=True) * asked_EV.sum(0, keepdims=True) / total
    ones = np.ones(asked_EV.shape)
    return np.divide(asked_EV, expected_EV, out=ones, where=expected_EV > 0), expected_EV
