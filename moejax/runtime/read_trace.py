"""How long each operation of a compiled program ran, from a trace of JAX's profiler."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.profiler import ProfileData

from moejax.runtime.program_bytes import Computation, Step, read_program

AROUND = ("while", "conditional", "call")
"""Instructions that take the time of others, which stand in the trace themselves."""


@dataclass(frozen=True)
class Operation:
    """An instruction of a compiled program, and the time that it took."""

    name: str
    kind: str
    """``fusion``, ``dot``, ``all-to-all``, ..."""
    source: str
    """The path of the JAX operation that it is from: ``jit(step)/.../dot_general``."""
    seconds: float
    """Of all of its runs in the trace, the mean over the devices of this process."""
    count: int
    """Of these runs, on all devices."""


def read_operations(trace: Path, text: str) -> tuple[list[Operation], int]:
    """The operations of the program ``text`` (``compiled.as_text()``) in the newest trace below a
    directory, the dearest first, and the number of devices; none if there is no trace.
    """
    files = sorted(trace.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        return [], 0
    times, devices = sum_times(ProfileData.from_file(str(files[-1])).planes, read_module(text))
    sources = find_sources(text)
    found = []
    for name, (seconds, count) in times.items():
        kind, source = sources.get(name, ("", ""))
        if kind not in AROUND:
            found.append(Operation(name, kind, source, seconds / max(1, devices), count))
    return sorted(found, key=lambda one: -one.seconds), devices


def read_module(text: str) -> str:
    """The name of a compiled program: ``jit_step``."""
    named = re.match(r"HloModule ([\w.\-]+)", text)
    return named[1] if named else ""


def sum_times(planes: Iterable[Any], module: str) -> tuple[dict[str, tuple[float, int]], int]:
    """Seconds and runs of each operation of a program, on all devices together, and how many there
    are. Accelerators have a plane each. CPU devices are told apart by a number at each event.
    """
    times: dict[str, tuple[float, int]] = {}
    devices: set[Any] = set()
    planes = list(planes)
    accelerators = [plane for plane in planes if re.match(r"/device:(TPU|GPU)", plane.name)]
    for plane in accelerators or planes:
        lines = list(plane.lines)
        # A TPU's has a line of operations beside those of steps, modules and scopes.
        lines = [line for line in lines if line.name == "XLA Ops"] or lines
        for event in (event for line in lines for event in line.events):
            stats = dict(event.stats)
            name = stats.get("hlo_op")
            if name is None and lines[0].name == "XLA Ops":
                name = event.name.split(" = ")[0]
            if name is None or event.name.startswith("end: "):
                continue
            if stats.get("hlo_module", module) != module:
                continue
            name = str(name).lstrip("%")
            seconds, count = times.get(name, (0.0, 0))
            times[name] = seconds + event.duration_ns / 1e9, count + 1
            devices.add(plane.name if accelerators else stats.get("device_ordinal", 0))
    return times, len(devices)


def find_sources(text: str) -> dict[str, tuple[str, str]]:
    """The kind of each instruction of a program, and the path of the JAX operation that it is from.
    A fusion is from its product, if there is one inside, else from what it says itself or from what
    it gives. What has no path of its own is from where its operands are from.
    """
    computations, _ = read_program(text)
    found: dict[str, tuple[str, str]] = {}
    for computation in computations.values():
        for name, step in computation.steps.items():
            source = _find_source(computations, step)
            if "/" not in source:
                before = (found[one][1] for one in step.operands if one in found)
                source = next((one for one in before if "/" in one), source)
            found[name] = step.kind, source
    return found


def _find_source(computations: dict[str, Computation], step: Step) -> str:
    said = _read_source(step)
    if step.kind != "fusion":
        return said
    inside = computations[step.called[0]]
    products = [one for one in inside.steps.values() if one.kind in ("dot", "convolution")]
    named = [_read_source(one) for one in products]
    return next((one for one in [*named, said] if one), _read_source(inside.steps[inside.root]))


def _read_source(step: Step) -> str:
    found = re.search(r'op_name="([^"]*)"', step.rest)
    return found[1] if found else ""
