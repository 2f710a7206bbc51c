"""``classes/STEP.npz``: how an evaluation sorted images, and which experts saw them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moejax.runs.array_files import list_steps, read_arrays


@dataclass(frozen=True, eq=False)
class Sorted:
    """How the last evaluation sorted images into classes (V)."""

    confusion_VV: np.ndarray
    """Images by their class (rows) and by the class that the model gave them."""
    asked_LEV: np.ndarray | None
    """Choices of each expert by the image's class; None for a dense model."""


def read_sorted(directory: Path) -> tuple[Sorted | None, list[str]]:
    """The last evaluation's counts, or None; and in words what cannot be read."""
    paths = list_steps(directory)
    if not paths:
        return None, []
    arrays = read_arrays(paths[-1])
    if arrays is None or "confusion_VV" not in arrays:
        return None, [f"classes/{paths[-1].name} is damaged"]
    return Sorted(arrays["confusion_VV"], arrays.get("asked_LEV")), []
