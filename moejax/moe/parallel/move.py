"""Experts of one layer copied to other places, on the devices and in place.

Letters: M: places of a device; P: places of experts and replicas; Q: devices; R: layers of a stack;
S: how many devices further a copy goes; X: turns.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


@cache
def make_move(sharding: NamedSharding) -> Any:
    """``(w, repeat, turns_S, take_SQX, put_SQX) -> w``, jitted: a stack [R, P, ...] of the banks of
    several layers, with the copies of one of them made (see ``replan.Copies``). The stack, which
    lies as ``sharding`` says, is overwritten; beside it a device needs its own part of one layer,
    and two experts. Only what changes its device is sent.
    """
    return _jit(lambda w, repeat, *copies: _copy(w, w[repeat], repeat, *copies), sharding, 1)


@cache
def make_fill(sharding: NamedSharding) -> Any:
    """``(w, source, repeat, turns_S, take_SQX, put_SQX) -> w``, as ``make_move``, but the experts
    come from another stack, [R, E, ...], which lies likewise.
    """

    def fill(w: jax.Array, source: jax.Array, repeat: jax.Array, *copies: jax.Array) -> jax.Array:
        return _copy(w, source[repeat], repeat, *copies)

    return _jit(fill, sharding, 2)


def _jit(function: Callable, sharding: NamedSharding, stacks: int) -> Any:
    """A function of so many stacks, of which the first is overwritten, on each device."""
    spec = sharding.spec
    mapped = jax.shard_map(
        function,
        mesh=sharding.mesh,
        in_specs=(*[spec] * stacks, *[P()] * 4),
        out_specs=spec,
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0, out_shardings=sharding)


def _copy(
    w: jax.Array,
    before: jax.Array,
    repeat: jax.Array,
    turns_S: jax.Array,
    take_SQX: jax.Array,
    put_SQX: jax.Array,
) -> jax.Array:
    """Of each device, with its own M of the P places, and its own experts ``before``."""
    devices, M, me = len(turns_S), w.shape[1], lax.axis_index("expert")

    def turn(further: int, x: jax.Array, w: jax.Array) -> jax.Array:
        got = before[take_SQX[further, me, x]]
        if further:
            got = send(got, further, devices)
        place = put_SQX[further, me, x]
        there = jnp.minimum(place, M - 1)
        return w.at[repeat, there].set(jnp.where(place < M, got, w[repeat, there]))

    for further in range(devices):
        w = lax.fori_loop(0, turns_S[further], partial(turn, further), w)
    return w


def send(x: jax.Array, further: int, devices: int) -> jax.Array:
    """An array to the device so many further on the expert axis, and what comes from the one so
    many before. Bytes travel as such: XLA does not exchange all types of a byte on all platforms.
    """
    pairs = [(q, (q + further) % devices) for q in range(devices)]
    if x.dtype.itemsize > 1:
        return lax.ppermute(x, "expert", pairs)
    sent = lax.ppermute(lax.bitcast_convert_type(x, jnp.uint8), "expert", pairs)
    return lax.bitcast_convert_type(sent, x.dtype)
