"""Grouped products on NVIDIA Hopper, by the Pallas kernels on Mosaic GPU that ship with JAX.

They compute all blocks of rows, and one more for each expert after the first. The gradient masks by
multiplying, so it needs rows that are finite everywhere, also those of nobody.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu.ragged_dot_mgpu import ragged_dot
from jax.experimental.pallas.ops.gpu.transposed_ragged_dot_mgpu import transposed_ragged_dot

from moejax.moe.kernels import mosaic_stack
from moejax.moe.kernels.grouped_products import Params, Products

MOST_EXPERTS = 256
"""The kernels compare a tile with every expert, one by one, and want at most 64."""
UNIT = 64
STEPS = {"block_k": UNIT, "max_concurrent_steps": 4, "grid_block_n": 4}
"""Sums go 64 deep a step, and the blocks of four steps are in shared memory at a time."""


def products(params: Params, x_TD: jax.Array) -> Products | None:
    """The two products for these arguments, or None where the kernels do not serve: they want
    16-bit numbers of one type, widths that are multiples of ``UNIT``, few experts, a Hopper GPU.
    """
    if not has_hopper() or x_TD.dtype not in (jnp.bfloat16, jnp.float16):
        return None
    matrices = [p for name, p in params.items() if name.startswith("w_")]
    if any(p.dtype != x_TD.dtype for p in jax.tree.leaves(matrices)):
        return None
    if any(p.shape[-2] % UNIT or p.shape[-1] % UNIT for p in matrices):
        return None
    return Products(product, gradient, unit=UNIT) if matrices[0].shape[-3] <= MOST_EXPERTS else None


def has_hopper() -> bool:
    """Whether the GPUs are Hopper ones; so is a GPU that a program is only compiled for."""
    try:
        return all(d.compute_capability.startswith("9.") for d in jax.local_devices(backend="cuda"))
    except RuntimeError:  # there is none
        return True


def product(
    x_RD: jax.Array,
    w_EDF: jax.Array,
    size_E: jax.Array,
    transposed: bool,
    layer: jax.Array | None,
) -> jax.Array:
    """See ``Products.product``; in the type of ``x_RD``."""
    F = w_EDF.shape[-2 if transposed else -1]
    settings = choose_blocks(x_RD, size_E, F) | {"transpose_rhs": transposed}
    if layer is not None:
        return mosaic_stack.product(x_RD, w_EDF, size_E, layer, **settings)
    return ragged_dot(x_RD, w_EDF, group_sizes=size_E, **settings)


def gradient(x_RD: jax.Array, dy_RF: jax.Array, size_E: jax.Array) -> jax.Array:
    """See ``Products.gradient``; in the type of ``x_RD``."""
    D, F = x_RD.shape[1], dy_RF.shape[1]
    return transposed_ragged_dot(
        x_RD, dy_RF, group_sizes=size_E, **STEPS, block_m=choose_width(D), block_n=choose_width(F)
    )


def choose_blocks(x_RD: jax.Array, size_E: jax.Array, F: int) -> dict[str, Any]:
    """Blocks of a product: 128 x 128, with 64 rows where experts have few."""
    few = x_RD.shape[0] < 512 * size_E.shape[0]
    return STEPS | {"block_m": 64 if few else 128, "block_n": choose_width(F)}


def choose_width(width: int) -> int:
    """The width of a block, which must divide ``width``."""
    return 128 if width % 128 == 0 else 64
