"""Sequences that are spread over devices in pieces.

With a mesh axis ``context`` of C devices, each row of a batch is a piece: a C-th of the positions
of a sequence. Row c B + b has the c-th piece of sequence b, of B. So whatever looks at single
positions, or at routing groups, which lie inside a piece, sees rows like any others; what looks
further is told C, and here is what it needs. Works on arrays of numpy and of JAX.
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = Any
"""Of numpy or of JAX."""


def cut(x_BN: Array, pieces: int) -> Array:
    """Sequences [B, N, ...] as rows [C B, N / C, ...]."""
    B, N, *rest = x_BN.shape
    x_BCN = x_BN.reshape(B, pieces, N // pieces, *rest)
    return x_BCN.swapaxes(0, 1).reshape(-1, N // pieces, *rest)


def join(x_RN: Array, pieces: int) -> Array:
    """Rows [C B, N / C, ...] as sequences [B, N, ...]."""
    R, N, *rest = x_RN.shape
    return x_RN.reshape(pieces, -1, N, *rest).swapaxes(0, 1).reshape(-1, pieces * N, *rest)


def join_for_each(x_RN: jax.Array, pieces: int) -> jax.Array:
    """For each row all positions of its sequence: [C B, N, ...]."""
    if pieces == 1:
        return x_RN
    return jnp.concatenate([join(x_RN, pieces)] * pieces)


def shift(x_RN: jax.Array, count: int = 1, pieces: int = 1) -> jax.Array:
    """What stands ``count`` positions further on in each sequence, [C B, N / C, ...]; 0 beyond its
    end. ``count`` is at most N / C.
    """
    R, N, *rest = x_RN.shape
    first = x_RN[:, :count].reshape(pieces, R // pieces, min(count, N), *rest)
    after = jnp.concatenate([first[1:], jnp.zeros_like(first[:1])])
    return jnp.concatenate([x_RN[:, count:], after.reshape(R, min(count, N), *rest)], axis=1)
