"""What a trace says of a training step: its time by part of the model, its dearest operations."""

from pathlib import Path
from typing import Any

from moejax.models.parts import find_part
from moejax.runs.run_layout import OPERATIONS
from moejax.runtime.atomic_files import write_json
from moejax.runtime.read_trace import Operation, read_operations

MOST = 10
"""Operations in the table."""


def write_operations(profile: Path, steps: range, text: str) -> dict[str, Any]:
    """Sum up the newest trace below ``profile``, of these steps, each one run of the program
    ``text``, and write it there as ``operations.json``.
    """
    found, devices = read_operations(profile, text)
    table = sum_up(found, devices, steps)
    write_json(profile / OPERATIONS, table)
    return table


def sum_up(found: list[Operation], devices: int, steps: range) -> dict[str, Any]:
    """Milliseconds of a step on a device, by part of the model and of the dearest operations.
    Where operations run side by side, they add up to more than the step takes.
    """
    runs = len(steps)
    all_seconds = sum(one.seconds for one in found)
    parts: dict[str, float] = {}
    rows = []
    for one in found:
        part = find_part(one.source, one.kind)
        parts[part] = parts.get(part, 0.0) + one.seconds
        rows.append(
            {
                "name": one.name,
                "part": part,
                "kind": one.kind,
                "source": take_first(one.source),
                "milliseconds": 1e3 * one.seconds / runs,
                "share": one.seconds / all_seconds,
                "runs_in_a_step": one.count / max(1, devices) / runs,
            }
        )
    dearest = sorted(parts.items(), key=lambda item: -item[1])
    return {
        "first_step": steps.start,
        "steps": runs,
        "devices": devices,
        "milliseconds": 1e3 * all_seconds / runs,
        "parts": {
            part: {"milliseconds": 1e3 * seconds / runs, "share": seconds / all_seconds}
            for part, seconds in dearest
        },
        "operations": rows[:MOST],
    }


def take_first(source: str) -> str:
    """The path of an operation; of several that a compiler has made one, ``jit(step)/(a:b:c)``, the
    first path, and how many more there are.
    """
    before, opened, paths = source.partition("/(")
    if not opened or ":" not in paths:
        return source
    first, *others = paths.removesuffix(")").split(":")
    return f"{before}/{first} and {len(others)} more"


def describe_operations(table: dict[str, Any]) -> str:
    """The table for people."""
    last = table["first_step"] + table["steps"] - 1
    if not table["operations"]:
        return f"profile  the trace of the steps {table['first_step']} to {last} has no operations."
    lines = [
        f"profile  steps {table['first_step']} to {last}: operations of"
        f" {table['milliseconds']:.4g} ms a step and device",
        "  "
        + ", ".join(
            f"{part.replace('_', ' ')} {of['share']:.1%}" for part, of in table["parts"].items()
        ),
        f"  {'ms a step':>10}  {'share':>6}  {'part':<18}  operation",
    ]
    for one in table["operations"]:
        source = one["source"].rsplit("/", 2)
        lines.append(
            f"  {one['milliseconds']:>10.3f}  {one['share']:>6.1%}"
            f"  {one['part'].replace('_', ' '):<18}  {one['name']} ({'/'.join(source[-2:])})"
        )
    return "\n".join(lines)
