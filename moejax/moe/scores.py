"""Around the router's product: how exactly it is computed, the noise of its input, and tokens whose
scores are not finite.
"""

from functools import partial

import jax
import jax.numpy as jnp

from moejax.config.moe import MoEConfig
from moejax.moe.dropout import Dropout
from moejax.moe.parameters import Matrix
from moejax.routing.contract import Rows


def multiply_exactly(x: jax.Array, w: Matrix) -> jax.Array:
    """A float32 product in full precision: else bfloat16 passes on TPU, TF32 on GPU."""
    return jnp.matmul(x, jnp.asarray(w), precision=jax.lax.Precision.HIGHEST)


def normalise(x: jax.Array, axis: int) -> jax.Array:
    """``x`` over its Euclidean norm."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis, keepdims=True) + 1e-12)


def add_noise(x_GSD: jax.Array, moe: MoEConfig, key: jax.Array | None, rows: Rows) -> jax.Array:
    """The router's input with the noise that training adds to it.

    Fedus et al. 2021, section 2.4 and appendix C: jitter multiplies by a uniform number in
    [1 - e, 1 + e]; router dropout zeroes numbers, as their input dropout.
    """
    if key is None:
        return x_GSD
    jitter_key, dropout_key = jax.random.split(key)
    if moe.router_jitter:
        low, high = 1 - moe.router_jitter, 1 + moe.router_jitter
        jitter = partial(jax.random.uniform, minval=low, maxval=high)
        x_GSD *= rows.draw(jitter, jitter_key, x_GSD.shape)
    if moe.router_dropout:
        x_GSD = Dropout(moe.router_dropout, dropout_key, rows)(x_GSD)
    return x_GSD


def zero_bad_tokens(
    scores: dict[str, jax.Array],
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Set the scores [G, S, ...] of tokens that have one which is not finite to 0; and which tokens
    those are, ``bad_GS``.
    """
    bad = sum(~jnp.isfinite(x).all(range(2, x.ndim)) for x in scores.values())
    bad_GS = jnp.asarray(bad) > 0
    clean = {
        name: jnp.where(bad_GS.reshape(*bad_GS.shape, *[1] * (x.ndim - 2)), 0, x)
        for name, x in scores.items()
    }
    return clean, bad_GS
