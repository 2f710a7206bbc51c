"""One matrix product whose gradient XLA:CPU computes without transposing the wrong operand."""

import jax
from jax import lax


@jax.custom_vjp
def product(a_GXY: jax.Array, b_GYZ: jax.Array) -> jax.Array:
    """``a @ b`` for each G: [G, X, Z].

    JAX writes the gradient of ``b`` as a transposed product with the incoming gradient first;
    XLA:CPU then transposes *that* operand, and with it computes all that leads to it again, column
    by column. Here ``a`` comes first: it is there already, and often serves several products
    (docs/benchmarks.md has the figures).
    """
    return a_GXY @ b_GYZ


def _forward(a_GXY, b_GYZ):
    return a_GXY @ b_GYZ, (a_GXY, b_GYZ)


def _backward(saved, d_GXZ):
    a_GXY, b_GYZ = saved
    da_GXY = lax.dot_general(d_GXZ, b_GYZ, (((2,), (2,)), ((0,), (0,))))
    db_GYZ = lax.dot_general(a_GXY, d_GXZ, (((1,), (1,)), ((0,), (0,))))
    return da_GXY, db_GYZ


product.defvjp(_forward, _backward)
