"""Arrays put together on devices, part by part: each device is given what it holds, and the host
never holds more than one part.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

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


def place_rows(
    array: jax.Array | None, like: jax.ShapeDtypeStruct, start: int, count: int, get: Get
) -> jax.Array:
    """``array``, or zeros like ``like`` where there is none yet, with ``count`` entries of its
    first dimension placed from ``start`` on, in the same memory. That dimension must be whole on
    every device. ``get`` is asked for an index in these entries alone, [count, ...].
    """
    rows = jax.ShapeDtypeStruct((count, *like.shape[1:]), like.dtype, sharding=like.sharding)
    placed = place(rows, get)
    array = _make_zeros(like)() if array is None else array
    # Waited for: what is still on its way would add up on the host.
    return jax.block_until_ready(_set_rows(array, placed, start))


def is_whole(like: jax.ShapeDtypeStruct) -> bool:
    """Whether every device has all entries of the first dimension."""
    sharding = like.sharding
    if not isinstance(sharding, NamedSharding):
        return True
    return not sharding.spec or sharding.spec[0] is None


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
def _set_rows(array: jax.Array, rows: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, rows, start, 0)
