"""How much memory there is, and a message where something cannot fit into it."""

import math
from collections.abc import Iterable
from typing import Any

import jax

from moejax.config.errors import ConfigError
from moejax.runtime.host_memory import read_host_memory
from moejax.runtime.number_words import short

ROOM = (
    "bfloat16 takes half of float32 (--dtype), int8 or int4 less (--weights), and on a mesh every"
    " device holds a part (--mesh)."
)
"""What to do where a model is too large to be run."""


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
