"""Moments of the optimizer stored in bfloat16: half the bytes, the arithmetic in float32."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

MOMENTS = ("mu", "nu")
"""What optax calls moments: the means of gradients, and those of their squares."""
GOLDEN, FIRST, SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35
"""Odd numbers that mix bits: the golden ratio, and those of MurmurHash3's last step."""


class Stored(NamedTuple):
    """The state of an optimizer whose moments are stored in bfloat16."""

    step: jax.Array
    """Updates so far."""
    inner: optax.OptState


def store_moments(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer; between updates, its moments are bfloat16.

    They are rounded up or down at random, so that the mean is right. Rounded to the nearest, a mean
    of squares that changes by less than 1/256 in a step would stay as it is: with a decay of 0.999
    it would never fall. The random numbers follow from the step and the place, so that a run which
    is resumed, or lies on another mesh, rounds alike.
    """

    def init(params: optax.Params) -> Stored:
        stored = _change(lambda x, _: x.astype(jnp.bfloat16), inner.init(params))
        return Stored(jnp.zeros((), jnp.int32), stored)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Stored]:
        assert isinstance(state, Stored)
        exact = _change(lambda x, _: x.astype(jnp.float32), state.inner)
        updates, exact = inner.update(updates, exact, params)
        stored = _change(lambda x, place: round_at_random(x, state.step, place), exact)
        return updates, Stored(state.step + 1, stored)

    return optax.GradientTransformation(init, update)


def _change(function: Callable[[jax.Array, int], jax.Array], state: optax.OptState) -> Any:
    """A state with its moments changed, each of which gets a number."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    changed = [
        function(x, place) if any(getattr(k, "name", None) in MOMENTS for k in path) else x
        for place, (path, x) in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, changed)


def round_at_random(x: jax.Array, step: jax.Array, place: int) -> jax.Array:
    """Float32 as bfloat16: one of its two neighbours, the nearer one more often, so that the mean
    is ``x``. The same ``step`` and ``place`` give the same.
    """
    seed = mix(step.astype(jnp.uint32) * jnp.uint32(GOLDEN) + place)
    strides = [1]
    for size in x.shape[:0:-1]:
        strides.insert(0, strides[0] * size % 2**32)
    indices = [
        jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
        for axis, stride in enumerate(strides[-x.ndim :] if x.ndim else [])
    ]
    noise = mix(sum(indices, seed)) >> 16
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) >> 16
    rounded = jax.lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def mix(x: jax.Array) -> jax.Array:
    """Uint32 with all bits mixed: neighbours become unlike."""
    for shift, factor in ((16, FIRST), (13, SECOND)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
