"""Triangular systems with ones on the diagonal, solved by matrix products alone.

LAPACK's solver, which XLA calls on CPUs, never returns where a program runs on several of them
(jaxlib 0.10.2); and products are what accelerators are made for.

Letters: M: columns; P: rows, as many; W: right-hand sides; X: what there are many of.
"""

import jax
import jax.numpy as jnp

EXACTLY = jax.lax.Precision.HIGHEST


def solve_unit_lower(below_XPM: jax.Array, b_XPW: jax.Array) -> jax.Array:
    """``(1 + below)^-1 b``, of matrices that are 0 on and above the diagonal (any leading
    dimensions).
    """
    return jnp.matmul(invert_unit_lower(below_XPM), b_XPW, precision=EXACTLY)


def invert_unit_lower(below_XPM: jax.Array) -> jax.Array:
    """``(1 + below)^-1``: of the blocks on the diagonal, which grow by halves that are inverted
    already, as [A 0; C B]^-1 = [A^-1 0; -B^-1 C A^-1 B^-1].
    """
    P = below_XPM.shape[-1]
    size = 1 << (P - 1).bit_length()
    outside = [(0, 0)] * (below_XPM.ndim - 2) + [(0, size - P)] * 2
    below_XPM = jnp.pad(below_XPM, outside)
    leading = below_XPM.shape[:-2]
    inverse = jnp.ones((*leading, size, 1, 1), below_XPM.dtype)
    half = 1
    while half < size:
        cut = below_XPM.reshape(
            *leading, size // (2 * half), 2 * half, size // (2 * half), 2 * half
        )
        blocks = jnp.moveaxis(jnp.diagonal(cut, axis1=-4, axis2=-2), -1, -3)
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = jnp.matmul(blocks[..., half:, :half], first, precision=EXACTLY)
        corner = -jnp.matmul(second, corner, precision=EXACTLY)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], -1)
        inverse = jnp.concatenate([upper, jnp.concatenate([corner, second], -1)], -2)
        half *= 2
    return inverse[..., 0, :P, :P]
