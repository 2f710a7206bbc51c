"""The bytes that a compiled program moves to and from memory, counted in its text.

XLA's own count takes the body of a loop once, and all of an array that a fusion reads a slice of
through a conversion. This one takes a body as often as it runs, and of what is sliced the slices.
Arrays that fast memory holds (``FAST``) count as nothing.
"""

import math
import re
from dataclasses import dataclass, field
from functools import cached_property

from moejax.runtime.targets import NUMBER_BYTES

FAST = 1 << 20
"""A core's second-level cache, about, in bytes."""
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota")
NUMBERS = NUMBER_BYTES | {"u16": 2, "s16": 2, "s64": 8, "u64": 8, "f64": 8}
IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
"""What writes into its first operand (where that cannot be, XLA copies it first), and which one is
what is written."""
THROUGH = ("bitcast", "bitcast-convert", "convert", "reshape")


@dataclass(frozen=True)
class Step:
    """An instruction of a program."""

    kind: str
    shape: str
    """The type of its result: ``f32[3,128]{1,0}``, or a tuple of such."""
    operands: list[str]
    rest: str
    """What stands behind the operands."""

    @cached_property
    def size(self) -> int:
        """Bytes of its result, of a tuple's parts together."""
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", self.shape)
        return sum(
            NUMBERS.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
            for kind, dims in arrays
        )

    @property
    def called(self) -> list[str]:
        """The computations that it runs: a fusion, a call, a loop's body."""
        return re.findall(r"(?:to_apply|calls|body)=%?([\w.\-]+)", self.rest)

    @property
    def branches(self) -> list[str]:
        """The computations of which a conditional runs one."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        if listed:
            return re.findall(r"[\w.\-]+", listed[1])
        return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.rest)


@dataclass
class Computation:
    """A function of a program: its instructions by name, and the last one."""

    steps: dict[str, Step] = field(default_factory=dict)
    root: str = ""


def count_bytes(text: str) -> int:
    """The bytes of a program (``compiled.as_text()``) as it runs once; of the branches of a
    conditional, those of the dearest. Raises ``ValueError`` for a loop of unknown length.
    """
    return bytes_of(*read_program(text))


def bytes_of(computations: dict[str, "Computation"], entry: str) -> int:
    """``count_bytes`` of a program that has been read."""
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
        step = Step(made[4], made[3], operands, inside + ")" + rest)
        computations[now].steps[made[2]] = step
        if made[1]:
            computations[now].root = made[2]
    return computations, entry


def count_repeats(computations: dict[str, Computation], steps: dict[str, Step], loop: Step) -> int:
    """How often a loop runs its body: as the compiler says, or, as it does not for TPUs, by the
    number that its counter is compared with. Raises ``ValueError`` if that is not known.
    """
    if said := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(said[1])
    named = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    if named:
        inside = computations[named[1]]
        last = inside.steps[inside.root]
        counter, limit = (_behind(inside.steps, name) for name in (last.operands * 2)[:2])
        index = re.search(r"index=(\d+)", counter.rest)
        if last.kind == "compare" and "direction=LT" in last.rest and index:
            start = _behind(steps, steps[loop.operands[0]].operands[int(index[1])])
            first, end = _constant(start), _constant(limit)
            if first is not None and end is not None:
                return max(0, end - first)
    raise ValueError(f"a loop of unknown length: {loop.rest}")


def _behind(steps: dict[str, Step], name: str) -> Step:
    """An instruction, or what it copies."""
    step = steps[name]
    while step.kind in ("copy", "bitcast"):
        step = steps[step.operands[0]]
    return step


def _constant(step: Step) -> int | None:
    value = re.match(r"(-?\d+)\)", step.rest)
    return int(value[1]) if step.kind == "constant" and value else None


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
    if step.kind == "while":
        body = _count(computations, step.called[0], known)
        return body and body * count_repeats(computations, steps, step)
    if step.kind == "conditional":
        return max(_count(computations, one, known) for one in step.branches)
    if step.kind == "call":
        return _count(computations, step.called[0], known)
    inside = computations[step.called[0]] if step.kind == "fusion" else None
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
    if number == 0 and step.kind in IN_PLACE:
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
            elif step.kind in IN_PLACE and step.operands[0] == name:
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
    if last.kind in IN_PLACE:
        return of[last.operands[IN_PLACE[last.kind]]].size
    return step.size
