"""What a run wrote into its directory, read back; whatever is missing or cut short is survived."""

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moejax.moe import balance
from moejax.runs.measures import Measure, measure_of_settings

_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


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


@dataclass(frozen=True, eq=False)
class Choices:
    """Which experts the same tokens of held-out text asked for, in evaluations (I, in order)."""

    step_I: np.ndarray
    saturation_IL: np.ndarray
    """The share of choices that the last evaluation's router makes, too."""
    together_LEE: np.ndarray
    """Tokens that chose both of two experts, in the last evaluation."""


@dataclass(frozen=True, eq=False)
class Sorted:
    """How the last evaluation sorted images into classes (V)."""

    confusion_VV: np.ndarray
    """Images by their class, and by what they were taken for."""
    asked_LEV: np.ndarray | None
    """Choices of each expert by the image's class; None for a dense model."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory in memory. Lines are dicts of plain values, in order of their steps."""

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    train: tuple[dict[str, Any], ...] = ()
    validation: tuple[dict[str, Any], ...] = ()
    load: Load | None = None
    choices: Choices | None = None
    sorted: Sorted | None = None
    sample: str | None = None
    damage: tuple[str, ...] = ()
    """What could not be read, in words."""

    @property
    def name(self) -> str:
        """The run's name: the summary's, or else the directory's."""
        return str(self.summary.get("name") or self.directory.resolve().name)

    @property
    def measure(self) -> Measure:
        """What it is judged by."""
        return measure_of_settings(self.config)

    @property
    def routed(self) -> bool:
        """Whether any layer is routed, by what the run logged."""
        lines = self.train + self.validation
        return self.load is not None or any("max_violation" in line for line in lines)


def read_run(directory: Path, columns: int = 200) -> Run:
    """Read a run directory; ``load`` is summed into at most ``columns`` stretches of training.

    Raises ``FileNotFoundError`` when there is no such directory; a file that is missing or damaged
    leaves its field empty, and a damaged one is named in ``Run.damage``.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no run directory {directory}")
    damage: list[str] = []
    lines = _read_lines(directory / "metrics.jsonl", damage)
    return Run(
        directory=directory,
        config=_read_dict(directory / "config.json", damage),
        summary=_read_dict(directory / "summary.json", damage),
        train=_of_split(lines, "train"),
        validation=_of_split(lines, "validation"),
        load=_read_load(directory / "load", columns, damage),
        choices=_read_choices(directory / "choices", damage),
        sorted=_read_sorted(directory / "classes", damage),
        sample=_read_text(directory / "sample.txt"),
        damage=tuple(damage),
    )


def number(value: Any) -> float:
    """A plain number as float; NaN for anything else."""
    return float(value) if isinstance(value, int | float) else math.nan


def column(lines: Iterable[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the lines that have ``key``."""
    found = [(line["step"], number(line[key])) for line in lines if key in line]
    pairs = np.array(found, dtype=float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def last(lines: Sequence[dict[str, Any]], key: str) -> float:
    """The value of ``key`` in the last line that has it, or NaN."""
    return next((number(line[key]) for line in reversed(lines) if key in line), math.nan)


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _read_dict(path: Path, damage: list[str]) -> dict[str, Any]:
    text = _read_text(path)
    try:
        value = {} if text is None else json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    damage.append(f"{path.name} is damaged")
    return {}


def _read_lines(path: Path, damage: list[str]) -> list[dict[str, Any]]:
    texts = [text for text in (_read_text(path) or "").split("\n") if text.strip()]
    lines = [_parse_line(text) for text in texts]
    if lines and lines[-1] is None:
        damage.append(f"the last line of {path.name} is cut short")
    broken = lines[:-1].count(None)
    if broken:
        damage.append(f"lines inside {path.name} that cannot be read: {broken}")
    return [line for line in lines if line is not None]


def _parse_line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    usable = isinstance(line, dict) and math.isfinite(number(line.get("step")))
    return line if usable else None


def _of_split(lines: list[dict[str, Any]], split: str) -> tuple[dict[str, Any], ...]:
    """The lines of a split by step; where a resumed run repeated a step, its later line."""
    by_step = {line["step"]: line for line in lines if line.get("split") == split}
    return tuple(by_step[step] for step in sorted(by_step))


def _numbered(directory: Path) -> list[Path]:
    """The arrays of a directory, in the order of their steps."""
    found = (path for path in directory.glob("*.npz") if path.stem.isdecimal())
    return sorted(found, key=lambda path: int(path.stem))


_JOINED: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
    "asked_LE": sum,
    "seated_LE": sum,
    "asked_LW": sum,
    "seated_LW": sum,
    "entropy_L": lambda arrays: np.mean(arrays, axis=0),
    "router_norm_LE": lambda arrays: arrays[-1],
    "bias_LE": lambda arrays: arrays[-1],
}
"""The arrays of an interval, and what a stretch of several has instead."""


def _read_load(directory: Path, columns: int, damage: list[str]) -> Load | None:
    paths = _numbered(directory)
    final = next((arrays for p in reversed(paths) if (arrays := _read_interval(p))), None)
    if final is None:
        if paths:
            damage.append("no file in load/ can be read")
        return None
    steps, unread = [], 0
    joined: dict[str, list[np.ndarray]] = {name: [] for name in _JOINED if name in final}
    for group in np.array_split(np.array(paths, dtype=object), min(columns, len(paths))):
        read = [arrays for path in group if (arrays := _read_interval(path))]
        read = [one for one in read if all(_alike(one, final, name) for name in joined)]
        unread += len(group) - len(read)
        if read:
            steps.append(int(group[-1].stem))
            for name, stretches in joined.items():
                stretches.append(_JOINED[name]([arrays[name] for arrays in read]))
    if unread:
        damage.append(f"files in load/ that cannot be read, or are of another model: {unread}")
    interval = int(paths[1].stem) - int(paths[0].stem) if len(paths) > 1 else int(paths[0].stem)
    return Load(
        begin=max(int(paths[0].stem) - interval, 0),
        step_I=np.array(steps),
        last_asked_LE=final["asked_LE"],
        layers=tuple(int(i) for i in final["layers"]),
        **{name.replace("_L", "_IL"): np.array(arrays) for name, arrays in joined.items()},
    )


def _alike(one: dict[str, np.ndarray], other: dict[str, np.ndarray], name: str) -> bool:
    return name in one and one[name].shape == other[name].shape


def _read_interval(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an interval by name; None for a damaged file."""
    arrays = _read_arrays(path)
    if arrays is None or not {"asked_LE", "seated_LE", "layers"} <= arrays.keys():
        return None
    asked_LE = arrays["asked_LE"]
    right = asked_LE.ndim == 2 and asked_LE.size > 0
    right = right and asked_LE.shape == arrays["seated_LE"].shape
    return arrays if right and len(arrays["layers"]) == len(asked_LE) else None


def _read_choices(directory: Path, damage: list[str], most: int = 60) -> Choices | None:
    """Of at most ``most`` evaluations, spread evenly."""
    paths = _numbered(directory)
    if not paths:
        return None
    kept = np.unique(np.linspace(0, len(paths) - 1, most).astype(int))
    last_LBNE = _read_chosen(paths[-1])
    steps, saturation = [], []
    for path in [paths[i] for i in kept] if last_LBNE is not None else []:
        chosen_LBNE = _read_chosen(path)
        if chosen_LBNE is not None and chosen_LBNE.shape == last_LBNE.shape:
            steps.append(int(path.stem))
            saturation.append(balance.saturation(chosen_LBNE, last_LBNE))
    if len(steps) < len(kept):
        damage.append(
            f"files in choices/ that cannot be read, or are of another model:"
            f" {len(kept) - len(steps)}"
        )
    if not steps:
        return None
    chosen_LTE = last_LBNE.reshape(len(last_LBNE), -1, last_LBNE.shape[-1]).astype(np.float32)
    together_LEE = chosen_LTE.swapaxes(1, 2) @ chosen_LTE
    return Choices(np.array(steps), np.array(saturation), together_LEE)


def _read_sorted(directory: Path, damage: list[str]) -> Sorted | None:
    paths = _numbered(directory)
    if not paths:
        return None
    arrays = _read_arrays(paths[-1])
    if arrays is None or "confusion_VV" not in arrays:
        damage.append(f"classes/{paths[-1].name} is damaged")
        return None
    return Sorted(arrays["confusion_VV"], arrays.get("asked_LEV"))


def _read_chosen(path: Path) -> np.ndarray | None:
    arrays = _read_arrays(path)
    if arrays is None or not {"bits", "shape"} <= arrays.keys():
        return None
    return unpacked(arrays)


def unpacked(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """``chosen_LBNE`` of a file in ``choices/``, whose bits are packed."""
    shape = arrays["shape"]
    bits = np.unpackbits(arrays["bits"], count=int(shape.prod()))
    return bits.reshape(shape) > 0


def _read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """All arrays of a file by name; None for a damaged one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except _DAMAGE:
        return None
