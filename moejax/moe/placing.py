"""Parameters placed on devices part by part (see ``runtime.place_arrays``), and quantised on the
way where that is asked for: beside the codes there is never more than one part.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from moejax.moe.quantised import Quantised, quantise
from moejax.runtime import place_arrays
from moejax.runtime.place_arrays import Get

Like = jax.ShapeDtypeStruct | Quantised
"""What is to be made: an array, or codes and scales (as shapes with shardings)."""


def read_as(like: Like) -> jax.ShapeDtypeStruct:
    """What is read for it: the weights themselves."""
    if not isinstance(like, Quantised):
        return like
    device = next(iter(like.codes.sharding.device_set))
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=SingleDeviceSharding(device))


def place(like: Like, get: Get) -> Any:
    """As ``place_arrays.place``."""
    if not isinstance(like, Quantised):
        return place_arrays.place(like, get)
    return place_block(None, like, (0,) * like.ndim, like.shape, get)


def place_block(
    array: Any, like: Like, start: tuple[int, ...], sizes: tuple[int, ...], get: Get
) -> Any:
    """As ``place_arrays.place_block``; a block that is quantised has all that is summed."""
    if not isinstance(like, Quantised):
        return place_arrays.place_block(array, like, start, sizes, get)
    shape = (*sizes, *like.shape[len(sizes) :])
    summed = like.ndim + like.axis
    if shape[summed] != like.shape[summed]:
        raise ValueError("a block must have all that is summed.")
    w = jnp.asarray(get(tuple(slice(0, size) for size in shape)))
    made = quantise(w, like.kind, like.group, like.axis)

    def put(of: str) -> jax.Array:
        part, target = np.asarray(getattr(made, of)), getattr(like, of)
        whole = tuple(target.shape[i] if i == summed else n for i, n in enumerate(sizes))
        before = None if array is None else getattr(array, of)
        return place_arrays.place_block(before, target, start, whole, lambda index: part[index])

    return Quantised(put("codes"), put("scales"), like.kind, like.axis)
