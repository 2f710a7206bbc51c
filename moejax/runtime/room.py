"""How much memory there is, and a message where something cannot fit into it."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from moejax.config.errors import ConfigError
from moejax.runtime.number_words import short

GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says what a container may have (control groups, version 2 and 1)."""
ROOM = (
    "bfloat16 takes half of float32 (--dtype), int8 or int4 less (--weights), and on a mesh every"
    " device holds a part (--mesh)."
)
"""What to do where a model is too large to be run."""


def read_host_memory() -> float | None:
    """Bytes that this machine, or this container, can give: its memory and its swap space. None
    where it is not known: elsewhere than on Linux, swap space grows as it is needed.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = {name: text.split()[0] for name, text in (line.split(":") for line in lines)}
        memory, swap = 1024 * int(fields["MemTotal"]), 1024 * int(fields["SwapTotal"])
    except (OSError, ValueError, KeyError, IndexError):
        return None
    for file in GROUP_LIMITS:
        try:
            memory = min(memory, int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such limit: "max", say
            continue
    return float(memory + swap)


def find_room() -> tuple[float, str] | None:
    """The bytes of one device of this process, and whose they are in words; None if not known.
    The devices of a CPU share the machine's memory.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        memory, count = read_host_memory(), jax.local_device_count()
        if memory is None:
            return None
        share = f", for {count} devices" if count > 1 else ""
        return memory / count, f"this machine has {short(memory)}B{share}"
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return None if not limit else (float(limit), f"a device has {short(limit)}B")


def check_room(need: float, what: str, advice: str) -> None:
    """Raise ``ConfigError`` if so many bytes, needed on each device at once, cannot be there.
    ``what`` needs them; ``advice`` says what to do.
    """
    room = find_room()
    if room is None or need <= room[0]:
        return
    count = jax.local_device_count() if jax.local_devices()[0].platform == "cpu" else 1
    raise ConfigError(
        f"{what} takes at least {short(need * count, 'kMGTPE')}B, but {room[1]}. {advice}"
    )


def count_bytes(arrays: Iterable[Any]) -> float:
    """Bytes of arrays, or of their shapes, on one device, by their shardings if they have some."""
    total = 0.0
    for array in arrays:
        sharding = getattr(array, "sharding", None)
        shape = array.shape if sharding is None else sharding.shard_shape(array.shape)
        total += math.prod(shape) * array.dtype.itemsize
    return total
