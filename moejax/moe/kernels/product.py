"""One matrix product whose gradient XLA:CPU computes without transposing the wrong operand.

Letters: X: rows of the product; Y: what is summed over; Z: columns of the product.
"""

import jax
from jax import lax


@jax.custom_vjp
def product(a_XY: jax.Array, b_YZ: jax.Array) -> jax.Array:
    """``a @ b``, over any equal leading dimensions: [..., X, Z].

    JAX writes the gradient of ``b`` as a transposed product with the incoming gradient first;
    XLA:CPU then transposes *that* operand, and with it computes all that leads to it again, column
    by column. Here ``a`` comes first: it is there already, and often serves several products
    (docs/benchmarks.md has the figures).
    """
    return a_XY @ b_YZ


Both = tuple[jax.Array, jax.Array]


def _forward(a_XY: jax.Array, b_YZ: jax.Array) -> tuple[jax.Array, Both]:
    return a_XY @ b_YZ, (a_XY, b_YZ)


def _backward(saved: Both, d_XZ: jax.Array) -> Both:
    a_XY, b_YZ = saved
    n = a_XY.ndim
    leading = (tuple(range(n - 2)),) * 2
    da_XY = lax.dot_general(d_XZ, b_YZ, (((n - 1,), (n - 1,)), leading))
    db_YZ = lax.dot_general(a_XY, d_XZ, (((n - 2,), (n - 2,)), leading))
    return da_XY, db_YZ


product.defvjp(_forward, _backward)
