"""What a run's records were when a checkpoint was saved: what has changed or is gone since is said.

Records are for people, so nothing stops for them. They are: the lines of metrics, the names of the
files of arrays (each file has a checksum of its own inside), and the settings.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moejax.config.files import flatten
from moejax.config.json_files import MOST_TABLE_BYTES, read_json
from moejax.runs.array_files import list_steps
from moejax.runs.checksums import FILE, find_damage, sum_bytes
from moejax.runs.run_layout import FOLDERS, MAY_CHANGE

KEY = "history"
"""The name of the history in what is saved beside the arrays."""
MAY_DIFFER = MAY_CHANGE | {"data.tokenizer", "data.mixture", "run.init_from"}
"""Settings that a run may have changed since: a tokenizer, or a model, may lie elsewhere, and the
same weights may be written in another way."""


def note_history(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The history of a run so far, as JSON."""
    file = directory / "metrics.jsonl"
    lines = file.read_bytes() if file.exists() else b""
    steps = {name: _list_steps(directory / name) for name in FOLDERS}
    return {
        "settings": settings,
        "metrics": sum_bytes(lines),
        "files": {name: [len(found), _sum_steps(found)] for name, found in steps.items()},
    }


def explain_history(directory: Path, step: int, noted: Mapping[str, Any]) -> list[str]:
    """In words, what of a run's records up to ``step`` is not what was noted then."""
    found = []
    file, (size, crc) = directory / "metrics.jsonl", noted["metrics"]
    lines = file.read_bytes() if file.is_file() else b""
    if size and not file.is_file():
        found.append(f"{file.name} is missing")
    elif sum_bytes(lines[:size]) != [size, crc]:
        found.append(f"{file.name} is not what was written up to step {step}")
    for name, (count, crc) in noted["files"].items():
        there = [one for one in _list_steps(directory / name) if one <= step]
        if [len(there), _sum_steps(there)] != [count, crc]:
            found.append(
                f"{name}/ is not what was written up to step {step}: it has {len(there)} files of"
                f" {count}"
            )
    return found


def explain_settings(directory: Path, step: int, noted: Mapping[str, Any]) -> list[str]:
    """In words, which settings of ``config.json`` are not those of a checkpoint."""
    try:
        now = flatten(read_json(directory / "config.json"))
    except (OSError, ValueError, AttributeError):
        return ["config.json is missing or damaged"]
    then = flatten(noted["settings"])
    return [
        f"config.json says {name} {now[name]!r}, but checkpoint {step} was saved with"
        f" {then[name]!r}"
        for name in sorted(then.keys() & now.keys() - MAY_DIFFER)
        if then[name] != now[name]
    ]


def explain_run(directory: Path) -> list[str]:
    """In words, what of a run's records is not what its last whole checkpoint knows of them; empty
    if none knows anything.
    """
    steps = (int(p.name) for p in directory.glob("checkpoints/[0-9]*") if p.name.isdigit())
    for step in sorted(steps, reverse=True):
        place = directory / "checkpoints" / str(step)
        if (place / FILE).is_file() and find_damage(place, start="extra/") is None:
            extra = read_json(place / "extra" / "metadata", MOST_TABLE_BYTES)
            noted = extra.get(KEY)
            if noted is None:
                return []
            found = explain_history(directory, step, noted)
            return found + explain_settings(directory, step, noted)
    return []


def _list_steps(folder: Path) -> list[int]:
    return [int(path.stem) for path in list_steps(folder)]


def _sum_steps(steps: list[int]) -> str:
    return str(sum_bytes(json.dumps(steps).encode())[1])
