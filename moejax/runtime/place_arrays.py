"""Arrays put together on devices, part by part: each device is given what it holds, and the host
never holds more than one part.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

PART_BYTES = 64 << 20
"""About the size of a part of an array that is read at once."""
Get = Callable[[tuple[slice, ...]], np.ndarray]
"""What lies at an index of an array; all slices have a start and a stop."""


def place(like: jax.ShapeDtypeStruct, get: Get) -> jax.Array:
    """An array of which each device is given the part that it holds, and copies are read once."""
    parts: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        key = tuple(s.indices(size)[:2] for s, size in zip(index, like.shape, strict=True))
        if key not in parts:
            parts[key] = np.asarray(get(tuple(slice(*ends) for ends in key)), order="C")
        return parts[key]

    return jax.make_array_from_callback(like.shape, like.sharding, part)


def place_block(
    array: jax.Array | None,
    like: jax.ShapeDtypeStruct,
    start: tuple[int, ...],
    sizes: tuple[int, ...],
    get: Get,
) -> jax.Array:
    """``array``, or zeros like ``like`` where there is none yet, with a block placed in it, in the
    same memory. The block begins at ``start`` and has these ``sizes`` in the first dimensions,
    which must be whole on every device (``is_whole``); of the others it has all. ``get`` is asked
    for an index in the block.
    """
    shape = (*sizes, *like.shape[len(sizes) :])
    placed = place(jax.ShapeDtypeStruct(shape, like.dtype, sharding=like.sharding), get)
    array = _make_zeros(like)() if array is None else array
    at = (*start, *(0,) * (len(shape) - len(start)))
    # Waited for: what is still on its way would add up on the host.
    return jax.block_until_ready(_set_block(array, placed, at))


def is_whole(like: jax.ShapeDtypeStruct, dimension: int = 0) -> bool:
    """Whether every device has all entries of a dimension."""
    return like.sharding.shard_shape(like.shape)[dimension] == like.shape[dimension]


def take_layer(stack: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """One entry of the first dimension of an array."""
    sharding = stack.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype, sharding=sharding)


@cache
def _make_zeros(like: jax.ShapeDtypeStruct) -> Callable:
    return jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=like.sharding)


@partial(jax.jit, donate_argnums=0)
def _set_block(array: jax.Array, block: jax.Array, start: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_update_slice(array, block, start)
