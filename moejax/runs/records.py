"""A run directory, read back; whatever is missing or cut short is survived."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moejax.config.json_files import MOST_TABLE_BYTES, read_json
from moejax.config.material import read_material
from moejax.config.measure import Measure
from moejax.runs.checksums import CHECKSUM, sum_json
from moejax.runs.class_counts import Sorted, read_sorted
from moejax.runs.expert_load import Load, read_load
from moejax.runs.held_out_choices import HeldOutChoices, read_choices
from moejax.runs.history import explain_run
from moejax.runs.metric_lines import read_lines, select_split, sort_steps
from moejax.runs.run_layout import CHOICES, OPERATIONS, PART_CHOICES, PROFILE


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory in memory. Lines are dicts of plain values, in order of their steps."""

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    train: tuple[dict[str, Any], ...] = ()
    validation: tuple[dict[str, Any], ...] = ()
    part: tuple[dict[str, Any], ...] = ()
    """Evaluations of a part of what is held out."""
    load: Load | None = None
    choices: HeldOutChoices | None = None
    sorted: Sorted | None = None
    profile: dict[str, Any] = field(default_factory=dict)
    """The table of a trace; empty if there is none."""
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
        return read_material(self.config).measure

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
    lines, damaged_lines = read_lines(directory / "metrics.jsonl")
    config, damaged_config = _read_dict(directory / "config.json")
    summary, damaged_summary = _read_dict(directory / "summary.json")
    load, damaged_load = read_load(directory / "load", columns)
    folder = directory / PART_CHOICES
    choices, damaged_choices = read_choices(folder if folder.is_dir() else directory / CHOICES)
    found, damaged_classes = read_sorted(directory / "classes")
    profile, damaged_profile = _read_dict(directory / PROFILE / OPERATIONS)
    damage = damaged_lines + damaged_config + damaged_summary + damaged_profile
    damage += damaged_load + damaged_choices + damaged_classes
    damage += explain_run(directory)
    return Run(
        directory=directory,
        config=config,
        summary=summary,
        train=sort_steps(select_split(lines, "train")),
        validation=sort_steps(select_split(lines, "validation")),
        part=sort_steps(select_split(lines, "part")),
        load=load,
        choices=choices,
        sorted=found,
        profile=profile,
        sample=_read_text(directory / "sample.txt"),
        damage=tuple(damage),
    )


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _read_dict(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A JSON object, empty if there is none; and in words what cannot be read."""
    try:
        value = read_json(path, MOST_TABLE_BYTES) if path.exists() else {}
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        return {}, [f"{path.name} is damaged"]
    if value.get(CHECKSUM, sum_json(value)) != sum_json(value):
        return value, [f"{path.name} is not what was written"]
    return value, []
