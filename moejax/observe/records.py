"""What a run wrote into its directory, read back; whatever is missing or cut short is survived."""

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory in memory. Lines are dicts of plain values, in order of their steps."""

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    train: tuple[dict[str, Any], ...] = ()
    validation: tuple[dict[str, Any], ...] = ()
    load: Load | None = None
    sample: str | None = None
    damage: tuple[str, ...] = ()
    """What could not be read, in words."""

    @property
    def name(self) -> str:
        """The run's name: the summary's, or else the directory's."""
        return str(self.summary.get("name") or self.directory.resolve().name)

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


def _read_load(directory: Path, columns: int, damage: list[str]) -> Load | None:
    found = (path for path in directory.glob("*.npz") if path.stem.isdecimal())
    paths = sorted(found, key=lambda path: int(path.stem))
    final = next((arrays for p in reversed(paths) if (arrays := _read_arrays(p))), None)
    if final is None:
        if paths:
            damage.append("no file in load/ can be read")
        return None
    steps, sums, unread = [], [], 0
    for group in np.array_split(np.array(paths, dtype=object), min(columns, len(paths))):
        read = [arrays for path in group if (arrays := _read_arrays(path))]
        read = [arrays for arrays in read if arrays[0].shape == final[0].shape]
        unread += len(group) - len(read)
        if read:
            steps.append(int(group[-1].stem))
            sums.append([sum(arrays[i] for arrays in read) for i in (0, 1)])
    if unread:
        damage.append(f"files in load/ that cannot be read, or are of another model: {unread}")
    asked_ILE, seated_ILE = np.array(sums).swapaxes(0, 1)
    interval = int(paths[1].stem) - int(paths[0].stem) if len(paths) > 1 else int(paths[0].stem)
    begin = max(int(paths[0].stem) - interval, 0)
    layers = tuple(int(i) for i in final[2])
    return Load(begin, np.array(steps), asked_ILE, seated_ILE, final[0], layers)


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """``asked_LE``, ``seated_LE`` and the routed layers' indices; None for a damaged file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            asked_LE, seated_LE, layers = (
                arrays[key] for key in ("asked_LE", "seated_LE", "layers")
            )
    except _DAMAGE:
        return None
    right = asked_LE.ndim == 2 and asked_LE.shape == seated_LE.shape and asked_LE.size > 0
    return (asked_LE, seated_LE, layers) if right and len(layers) == len(asked_LE) else None
