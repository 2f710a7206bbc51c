"""``load/STEP.npz``: which experts were asked for in each logging interval.

Letters: I: intervals; W: stretches of the sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moejax.runs.array_files import Arrays, list_steps, read_arrays


@dataclass(frozen=True, eq=False)
class Load:
    """Choices per routed layer (L) and expert (E), over stretches of training (I, in order)."""

    begin: int
    """The step before the first stretch."""
    step_I: np.ndarray
    """The last step of each stretch."""
    asked_ILE: np.ndarray
    """Choices that asked for the expert."""
    seated_ILE: np.ndarray
    """Choices that got a slot."""
    last_asked_LE: np.ndarray
    """Choices that asked for the expert in the last log interval alone."""
    layers: tuple[int, ...]
    """Index in the model of each routed layer."""
    asked_ILW: np.ndarray | None = None
    """Choices before capacity by stretch of the sequence (W)."""
    seated_ILW: np.ndarray | None = None
    """Choices that got a slot, by stretch of the sequence."""
    entropy_IL: np.ndarray | None = None
    """Entropy of the router's distribution, nats a token."""
    router_norm_ILE: np.ndarray | None = None
    """Norm of each expert's row of the router, at the end of each stretch of training."""
    bias_ILE: np.ndarray | None = None
    """Selection bias at the end of each stretch of training."""


def _add_up(arrays: list[np.ndarray]) -> np.ndarray:
    return sum(arrays[1:], arrays[0])


_JOIN: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
    "asked_LE": _add_up,
    "seated_LE": _add_up,
    "asked_LW": _add_up,
    "seated_LW": _add_up,
    "entropy_L": lambda arrays: np.mean(arrays, axis=0),
    "router_norm_LE": lambda arrays: arrays[-1],
    "bias_LE": lambda arrays: arrays[-1],
}
"""How the arrays of several intervals become those of one stretch."""


def read_load(directory: Path, columns: int) -> tuple[Load | None, list[str]]:
    """The load in at most ``columns`` stretches, or None; and in words what cannot be read."""
    paths = list_steps(directory)
    final = next((arrays for p in reversed(paths) if (arrays := _read_interval(p))), None)
    if final is None:
        return None, ["no file in load/ can be read"] if paths else []
    steps, unread = [], 0
    joined: dict[str, list[np.ndarray]] = {name: [] for name in _JOIN if name in final}
    for group in np.array_split(np.array(paths, dtype=object), min(columns, len(paths))):
        read = [arrays for path in group if (arrays := _read_interval(path))]
        read = [one for one in read if all(_same_shape(one, final, name) for name in joined)]
        unread += len(group) - len(read)
        if read:
            steps.append(int(group[-1].stem))
            for name, stretches in joined.items():
                stretches.append(_JOIN[name]([arrays[name] for arrays in read]))
    interval = int(paths[1].stem) - int(paths[0].stem) if len(paths) > 1 else int(paths[0].stem)
    load = Load(
        begin=max(int(paths[0].stem) - interval, 0),
        step_I=np.array(steps),
        last_asked_LE=final["asked_LE"],
        layers=tuple(int(i) for i in final["layers"]),
        **{name.replace("_L", "_IL"): np.array(arrays) for name, arrays in joined.items()},
    )
    words = f"files in load/ that cannot be read, or are of another model: {unread}"
    return load, [words] if unread else []


def _same_shape(one: Arrays, other: Arrays, name: str) -> bool:
    return name in one and one[name].shape == other[name].shape


def _read_interval(path: Path) -> Arrays | None:
    """The arrays of an interval by name; None for a damaged file."""
    arrays = read_arrays(path)
    if arrays is None or not {"asked_LE", "seated_LE", "layers"} <= arrays.keys():
        return None
    asked_LE = arrays["asked_LE"]
    right = asked_LE.ndim == 2 and asked_LE.size > 0
    right = right and asked_LE.shape == arrays["seated_LE"].shape
    return arrays if right and len(arrays["layers"]) == len(asked_LE) else None
