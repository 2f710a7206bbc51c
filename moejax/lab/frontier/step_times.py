"""The file that says what a step of each shape takes, measured apart from training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moejax.config.errors import RunError
from moejax.config.json_files import read_json
from moejax.runtime.atomic_files import write_json

FILE = "step_times.json"
"""In the directory of the study."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """What one training step takes: medians, and the quartiles of ``seconds``."""

    seconds: float
    low: float
    high: float
    processor_seconds: float
    """Of all threads together."""


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Of all shapes of a study, by name (``rows.Shape.name``), from one interleaved run."""

    shapes: Mapping[str, StepTime]
    about: Mapping[str, Any] = field(default_factory=dict)
    """Command, date, machine and versions."""

    def seconds(self, shape: str) -> float:
        """What a step of a shape takes; NaN if it was not measured."""
        found = self.shapes.get(shape)
        return found.seconds if found else math.nan

    @property
    def words(self) -> str:
        """Where and when, in a line."""
        machine = dict(self.about.get("machine") or {})
        cores = f"{machine['cores']} cores" if "cores" in machine else ""
        return ", ".join(str(x) for x in (machine.get("cpu"), cores, self.about.get("date")) if x)


def write_step_times(file: Path, found: StepTimes) -> None:
    """Write the file, and its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shapes = {name: vars(one) for name, one in found.shapes.items()}
    write_json(file, {"about": dict(found.about), "shapes": shapes})


def read_step_times(file: Path) -> StepTimes | None:
    """Read the file; None if there is none. Raises ``RunError`` if it is damaged."""
    if not file.is_file():
        return None
    try:
        read = read_json(file)
        shapes = {
            str(name): StepTime(**{key: float(value) for key, value in one.items()})
            for name, one in read["shapes"].items()
        }
        if not all(one.seconds > 0 for one in shapes.values()):
            raise ValueError("a time that is not greater than 0")
        return StepTimes(shapes=shapes, about=dict(read.get("about", {})))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{file} is not what `moejax bench steps` writes ({error}): run that again, or remove"
            " the file."
        ) from error
