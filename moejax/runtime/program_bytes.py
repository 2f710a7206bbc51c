"""The bytes that a compiled program moves to and from memory, counted in its text.

XLA's own count takes the body of a loop once, and all of an array that a fusion reads a slice of
through a conversion. This one takes a body as often as it runs, and of what is sliced the slices.
Arrays that fast memory holds (``FAST``) count as nothing.
"""

import math
import re
from dataclasses import dataclass, field

from moejax.runtime.targets import NUMBER_BYTES

FAST = 1 << 20
"""A core's second-level cache, about, in bytes."""
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota")
NUMBERS = NUMBER_BYTES | {"u16": 2, "s16": 2, "s64": 8, "u64": 8, "f64": 8}
THROUGH = ("bitcast", "bitcast-convert", "convert", "reshape")


@dataclass(frozen=True)
class Step:
    """An instruction of a program."""

    kind: str
    size: int
    """Bytes of its result, of a tuple's parts together."""
    operands: list[str]
    rest: str
    """What stands behind the operands."""


@dataclass
class Computation:
    """A function of a program: its instructions by name, and the last one."""

    steps: dict[str, Step] = field(default_factory=dict)
    root: str = ""


def count_bytes(text: str) -> int:
    """The bytes of a program (``compiled.as_text()``) as it runs once; of the branches of a
    conditional, those of the dearest. Raises ``ValueError`` for a loop of unknown length.
    """
    computations, entry = read_program(text)
    return _count(computations, entry, {})


def read_program(text: str) -> tuple[dict[str, Computation], str]:
    """A program's computations by name, and the name of the one that is run."""
    computations: dict[str, Computation] = {}
    entry = now = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            now = head[2]
            entry = now if head[1] else entry
            computations[now] = Computation()
            continue
        made = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)", line)
        if made is None or not now:
            continue
        inside, _, rest = made[5].partition(")")
        operands = re.findall(r"%([\w.\-]+)", inside)
        step = Step(made[4], _size(made[3]), operands, inside + ")" + rest)
        computations[now].steps[made[2]] = step
        if made[1]:
            computations[now].root = made[2]
    return computations, entry


def _size(shape: str) -> int:
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(
        NUMBERS.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in arrays
    )


def _count(computations: dict[str, Computation], name: str, known: dict[str, int]) -> int:
    if name not in known:
        steps = computations[name].steps
        known[name] = sum(_count_step(computations, steps, step, known) for step in steps.values())
    return known[name]


def _count_step(
    computations: dict[str, Computation], steps: dict[str, Step], step: Step, known: dict[str, int]
) -> int:
    """The bytes of one instruction."""
    if step.kind in FREE:
        return 0
    called = re.findall(r"(?:to_apply|calls|body)=%?([\w.\-]+)", step.rest)
    if step.kind == "while":
        times = re.search(r'known_trip_count":\{"n":"(\d+)"', step.rest)
        body = _count(computations, called[0], known)
        if times is None and body:
            raise ValueError(f"a loop of unknown length: {called[0]}")
        return body * int(times[1]) if times else 0
    if step.kind == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", step.rest)
        names = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", step.rest)
        names = re.findall(r"[\w.\-]+", branches[1]) if branches else names
        return max(_count(computations, one, known) for one in names)
    if step.kind == "call":
        return _count(computations, called[0], known)
    inside = computations[called[0]] if step.kind == "fusion" else None
    total = 0
    for number, operand in enumerate(step.operands):
        whole = steps[operand].size
        if whole >= FAST:
            read = whole if inside is None else _read_of(inside, number, whole)
            total += _read_alone(step, steps, number, whole) if inside is None else read
    return total + _written(step, steps, inside)


def _read_alone(step: Step, steps: dict[str, Step], number: int, whole: int) -> int:
    """What an instruction reads of an operand."""
    if number == 0 and step.kind in ("dynamic-slice", "slice", "gather"):
        return step.size
    if number == 0 and step.kind in ("dynamic-update-slice", "scatter"):
        return 0
    return whole


def _read_of(inside: Computation, number: int, whole: int) -> int:
    """What a fusion reads of its parameter of this number."""
    start = next(
        name
        for name, step in inside.steps.items()
        if step.kind == "parameter" and step.rest.startswith(f"{number})")
    )
    total, names = 0, [start]
    while names:
        name = names.pop()
        for user, step in inside.steps.items():
            if name not in step.operands:
                continue
            if step.kind in ("dynamic-slice", "slice", "gather") and step.operands[0] == name:
                total += step.size
            elif step.kind == "dynamic-update-slice" and step.operands[0] == name:
                continue
            elif step.kind in THROUGH:
                names.append(user)
            else:
                return whole
    return min(total, whole)


def _written(step: Step, steps: dict[str, Step], inside: Computation | None) -> int:
    """What an instruction writes."""
    if step.size < FAST:
        return 0
    of = steps if inside is None else inside.steps
    last = step if inside is None else inside.steps[inside.root]
    while last.kind in THROUGH and last.operands[0] in of and inside is not None:
        last = of[last.operands[0]]
    if last.kind == "dynamic-update-slice":
        return of[last.operands[1]].size
    return step.size
