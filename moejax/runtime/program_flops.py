"""The FLOPs of a compiled program's products, counted in its text.

XLA's own count takes the body of a loop once. This one takes a body as often as it runs. It counts
products alone, 2 FLOPs for each multiply-add: those of matrices, convolutions (which products are
on TPUs), cuBLAS's, and what a Pallas kernel says of itself.
"""

import math
import re
from dataclasses import dataclass

from moejax.runtime.program_bytes import Computation, Step, bytes_of, count_repeats, read_program
from moejax.runtime.targets import array_dims


@dataclass(frozen=True)
class Work:
    """What a compiled program does when it runs once, on one device."""

    flops: float
    """Of its products."""
    bytes: float
    """Moved to and from memory; see ``program_bytes``."""


def read_work(text: str) -> Work | None:
    """The work of a program (``compiled.as_text()``); None if it has a loop of unknown length, or
    is written in another way than this file knows.
    """
    computations, entry = read_program(text)
    try:
        flops = _count(computations, entry, {})
        return Work(flops, bytes_of(computations, entry))
    except (ValueError, LookupError):
        return None


def count_flops(text: str) -> float:
    """The FLOPs of a program's products; of the branches of a conditional, those of the dearest.
    Raises ``ValueError`` for a loop of unknown length.
    """
    return _count(*read_program(text), {})


def _count(computations: dict[str, Computation], name: str, known: dict[str, float]) -> float:
    if name not in known:
        steps = computations[name].steps
        known[name] = sum(_count_step(computations, steps, one, known) for one in steps.values())
    return known[name]


def _count_step(
    computations: dict[str, Computation],
    steps: dict[str, Step],
    step: Step,
    known: dict[str, float],
) -> float:
    if step.kind == "dot":
        return _count_dot(steps, step, r"lhs_contracting_dims=\{([\d,]*)\}")
    if step.kind == "convolution":
        return _count_convolution(steps, step)
    if step.kind == "custom-call" and "cublas" in step.rest:
        return _count_dot(steps, step, r'"lhs_contracting_dimensions":\[([^\]]*)\]')
    if step.kind == "custom-call":
        told = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', step.rest)
        return float(told[1]) if told else 0.0
    if step.kind == "conditional":
        return max(_count(computations, one, known) for one in step.branches)
    if step.kind not in ("fusion", "call", "while", "async-start"):
        return 0.0
    inside = sum(_count(computations, one, known) for one in step.called)
    if step.kind != "while" or not inside:
        return inside
    return inside * count_repeats(computations, steps, step)


def _first_dims(shape: str) -> tuple[int, ...]:
    """The dimensions of an array, or of the first of a tuple."""
    array = re.search(r"\w+\[[\d,]*\]", shape)
    return array_dims(array[0]) if array else ()


def _count_dot(steps: dict[str, Step], step: Step, contracting: str) -> float:
    found = re.search(contracting, step.rest)
    dims = [int(number) for number in re.findall(r"\d+", found[1])] if found else []
    left = _first_dims(steps[step.operands[0]].shape)
    return 2.0 * math.prod(_first_dims(step.shape)) * math.prod(left[dim] for dim in dims)


def _count_convolution(steps: dict[str, Step], step: Step) -> float:
    """Each output adds up the numbers of the window that are no padding."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", step.rest)
    assert labels is not None  # all convolutions have them
    left, right = (_first_dims(steps[name].shape) for name in step.operands[:2])
    out = _first_dims(step.shape)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _window(step.rest)))
    spatial = sorted(set(re.findall(r"\d", labels[1])))
    pairs = 1
    for i, dim in enumerate(spatial):
        options = {name: value.split("x")[i] for name, value in window.items()}
        size, reach = left[labels[1].index(dim)], right[labels[2].index(dim)]
        pairs *= _count_pairs(size, reach, out[labels[3].index(dim)], options)
    batch, features = left[labels[1].index("b")], out[labels[3].index("f")]
    groups = re.search(r"batch_group_count=(\d+)", step.rest)
    fed = right[labels[2].index("i")]  # features that one output reads
    return 2.0 * batch / (int(groups[1]) if groups else 1) * features * fed * pairs


def _window(rest: str) -> str:
    found = re.search(r"window=\{([^}]*)\}", rest)
    return found[1] if found else ""


def _count_pairs(size: int, reach: int, places: int, options: dict[str, str]) -> int:
    """How many (place of the output, number of the window) lie on a number of the input."""
    stride, spread = int(options.get("stride", 1)), int(options.get("lhs_dilate", 1))
    step, before = int(options.get("rhs_dilate", 1)), int(options.get("pad", "0_0").split("_")[0])
    last = (size - 1) * spread
    found = 0
    for number in range(reach):
        first = number * step - before
        on = range(first, first + places * stride, stride)
        found += sum(0 <= at <= last and at % spread == 0 for at in on)
    return found
