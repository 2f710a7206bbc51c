"""TPUs that are described instead of being here: what to compile for, and what came out."""

import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from moejax.config.errors import UserError

WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What libtpu would else ask a machine that has TPUs, and that others may load it as well."""

HBM_BYTES = {
    "TPU v4": 15.25 * 2**30,
    "TPU v5 lite": 15.75 * 2**30,
    "TPU v5": 95.74 * 2**30,
    "TPU v6 lite": 31.25 * 2**30,
}
"""What the compiler grants a program, by kind of device, as it says itself when that is too little.
"""

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)

NUMBER_BYTES = {"bf16": 2, "f32": 4, "s32": 4, "u32": 4, "f16": 2, "pred": 1, "s8": 1, "u8": 1}


def describe_devices(target: str, slices: int = 1) -> list[jax.Device]:
    """The devices of ``target`` (``v5e:2x2``, ``v5p:4x4x4``; ``v5e:1x1`` for one chip), of so many
    slices. Raises ``UserError`` where there is no compiler or no such TPU.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs its compiler: pip install -e '.[tpu]'")
    for name, value in WITHOUT_TPU.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if re.fullmatch(r"\w+:1x1(x1)?", target):  # else hosts have four chips
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=target, **options)
    except Exception as error:  # the type depends on what libtpu finds wrong
        raise UserError(
            f"--target {target}: {error}. It should be a TPU and its layout, such as v5e:2x2,"
            f" v5p:4x4x4, v6e:4x4."
        ) from error
    return list(topology.devices)


def count_collectives(text: str) -> dict[str, int]:
    """How many of each collective operation a compiled program has."""
    return {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}


def count_overlapping(text: str) -> int:
    """How many collective operations of a compiled program run beside products: those that have one
    between their start and their end in its schedule.
    """
    begun, count = {}, 0
    for line in text.splitlines():
        start = re.match(r"\s+%(\S+) = .* (?:" + "|".join(COLLECTIVES) + r")-start\(", line)
        done = re.search(r"-done\(%([^),]+)\)", line)
        if start:
            begun[start[1]] = False
        elif done and begun.pop(done[1], False):
            count += 1
        elif " fusion(" in line and "dot_general" in line:
            begun = dict.fromkeys(begun, True)
    return count


def array_dims(array: str) -> tuple[int, ...]:
    """The dimensions in the type of an array: ``array_dims("bf16[8,128]") == (8, 128)``."""
    return tuple(int(number) for number in re.findall(r"\d+", array.partition("[")[2]))


def list_largest_buffers(text: str, count: int = 8) -> list[tuple[int, str, str]]:
    """The largest arrays that a compiled program writes: bytes, type and shape, and its name."""
    found: dict[tuple[int, str], str] = {}
    inside_fusion = False
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            inside_fusion = "fused_computation" in line.split("(")[0]
        made = re.match(r"  (?:ROOT )?%\S+ = (\w+)(\[[\d,]*\])\S* ([\w-]+)\(", line)
        if (
            inside_fusion
            or made is None
            or made[3] in ("parameter", "get-tuple-element", "bitcast")
        ):
            continue
        size = NUMBER_BYTES.get(made[1], 4) * math.prod(array_dims(made[2]))
        name = re.search(r'op_name="([^"]*)"', line)
        found.setdefault((size, made[1] + made[2]), name[1] if name else made[3])
    largest = sorted(found.items(), reverse=True)[:count]
    return [(size, array, name) for (size, array), name in largest]
