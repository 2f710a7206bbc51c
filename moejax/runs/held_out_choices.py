"""``choices/STEP.npz``: which experts the first tokens of the held-out text asked for.

Letters: I: evaluations.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moejax.moe import balance
from moejax.runs.array_files import Arrays, list_steps, read_arrays


@dataclass(frozen=True, eq=False)
class HeldOutChoices:
    """Which experts the same tokens of held-out text asked for, in evaluations (I, in order)."""

    step_I: np.ndarray
    saturation_IL: np.ndarray
    """The share of choices that the router of the last evaluation makes as well."""
    together_LEE: np.ndarray
    """Tokens that chose both of two experts, in the last evaluation."""


def pack(chosen_LBNE: np.ndarray) -> Arrays:
    """The arrays of a file: eight choices in a byte."""
    return {"bits": np.packbits(chosen_LBNE), "shape": np.asarray(chosen_LBNE.shape)}


def read_chosen(path: Path) -> np.ndarray | None:
    """``chosen_LBNE`` (bool) of a file; None for a damaged one."""
    arrays = read_arrays(path)
    if arrays is None or not {"bits", "shape"} <= arrays.keys():
        return None
    shape = arrays["shape"]
    bits = np.unpackbits(arrays["bits"], count=int(shape.prod()))
    return bits.reshape(shape) > 0


def read_choices(directory: Path, most: int = 60) -> tuple[HeldOutChoices | None, list[str]]:
    """The choices of at most ``most`` evaluations, spread evenly, or None; and in words what cannot
    be read.
    """
    paths = list_steps(directory)
    if not paths:
        return None, []
    kept = np.unique(np.linspace(0, len(paths) - 1, most).astype(int))
    last_LBNE = read_chosen(paths[-1])
    steps, saturation = [], []
    for path in [paths[i] for i in kept]:
        chosen_LBNE = None if last_LBNE is None else read_chosen(path)
        if (
            chosen_LBNE is not None
            and last_LBNE is not None
            and chosen_LBNE.shape == last_LBNE.shape
        ):
            steps.append(int(path.stem))
            saturation.append(balance.saturation(chosen_LBNE, last_LBNE))
    unread = len(kept) - len(steps)
    words = f"files in choices/ that cannot be read, or are of another model: {unread}"
    damage = [words] if unread else []
    if last_LBNE is None or not steps:
        return None, damage
    chosen_LTE = last_LBNE.reshape(len(last_LBNE), -1, last_LBNE.shape[-1]).astype(np.float32)
    together_LEE = chosen_LTE.swapaxes(1, 2) @ chosen_LTE
    return HeldOutChoices(np.array(steps), np.array(saturation), together_LEE), damage
