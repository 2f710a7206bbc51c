"""``metrics.jsonl``: one JSON object a line, in the order of steps."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moejax.config.json_files import parse_json
from moejax.runtime.atomic_files import append_text, write_text

Line = dict[str, Any]


def append_line(file: Path, line: Line) -> None:
    """Add a line; numbers that are not finite become null."""
    append_text(file, json.dumps(null_not_finite(line)) + "\n")


def keep_until(file: Path, step: int) -> None:
    """Drop the lines after ``step``, and those that cannot be read or belong to no split."""
    if file.exists():
        lines = [line for line in read_lines(file)[0] if "split" in line]
        kept = [line for line in lines if line["step"] <= step]
        write_text(file, "".join(json.dumps(line) + "\n" for line in kept))


def read_lines(file: Path) -> tuple[list[Line], list[str]]:
    """The lines that can be read, in order, and in words what cannot: a crash cuts the last one."""
    if not file.is_file():
        return [], []
    content = file.read_text(encoding="utf-8", errors="replace")
    lines = [_parse(text) for text in content.split("\n") if text.strip()]
    damage = []
    if lines and lines[-1] is None:
        damage.append(f"the last line of {file.name} is cut short")
    if broken := lines[:-1].count(None):
        damage.append(f"lines inside {file.name} that cannot be read: {broken}")
    return [line for line in lines if line is not None], damage


def _parse(text: str) -> Line | None:
    try:
        line = parse_json(text)
    except ValueError:
        return None
    usable = isinstance(line, dict) and math.isfinite(number(line.get("step")))
    return line if usable else None


def select_split(lines: Iterable[Line], split: str) -> list[Line]:
    """The lines of `train` or `validation`."""
    return [line for line in lines if line.get("split") == split]


def sort_steps(lines: Iterable[Line]) -> tuple[Line, ...]:
    """The lines by step; where a resumed run repeated a step, its later line."""
    by_step = {line["step"]: line for line in lines}
    return tuple(by_step[step] for step in sorted(by_step))


def null_not_finite(line: Line) -> Line:
    """Figures as JSON can hold them: None for a number that is not finite."""
    return {k: None if v != v or v in (math.inf, -math.inf) else v for k, v in line.items()}


def number(value: Any) -> float:
    """A plain number as float; NaN for anything else."""
    return float(value) if isinstance(value, int | float) else math.nan


def column(lines: Iterable[Line], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the lines that have ``key``."""
    found = [(line["step"], number(line[key])) for line in lines if key in line]
    pairs = np.array(found, dtype=float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def last(lines: Sequence[Line], key: str) -> float:
    """The value of ``key`` in the last line that has it, or NaN."""
    return next((number(line[key]) for line in reversed(lines) if key in line), math.nan)
