"""Grouped products on TPUs, by the Pallas kernels ``megablox`` that ship with JAX.

They walk over tiles of rows and visit a tile once for each expert that has rows in it, so that E
experts cost up to E - 1 visits more than there are tiles. The best tiles follow from a small model
of what a kernel computes and moves (``Work``), with which ``moejax bench compiled`` counts, too.
"""

import itertools
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module

import jax
import jax.numpy as jnp

from moejax.moe.kernels.grouped_products import Params, Products
from moejax.moe.kernels.rows import round_up

# In the package itself ``gmm`` is a function of that name, which hides the module.
kernels = import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")

FLOPS_PER_BYTE = 240
"""What a TPU computes while it moves a byte: v4 220, v5e 240, v5p 170, v6e 560."""
VMEM_BYTES = 14 * 2**20
"""Of the 16 MiB that the compiler grants a kernel."""

Tile = tuple[int, int, int]
"""Rows, and the parts of D and of F (as in ``Work``) that one step of a kernel takes."""


@dataclass(frozen=True)
class Work:
    """A product ``x_RD, w_EDF -> y_RF``, or a gradient ``x_RD, dy_RF -> dw_EDF``."""

    R: int
    D: int
    F: int
    E: int
    itemsize: int
    gradient: bool = False

    def flops(self, tile: Tile, visits: int) -> int:
        """Arithmetic of so many visits to tiles of rows; what hangs over an edge counts as well."""
        r, d, f = tile
        return 2 * visits * r * round_up(self.D, d) * round_up(self.F, f)

    def bytes(self, tile: Tile, visits: int) -> int:
        """Bytes to and from memory: a block that two steps in a row need is read once."""
        r, d, f = tile
        D, F = round_up(self.D, d), round_up(self.F, f)
        if self.gradient:  # for each f, for each d: all visits
            numbers = F // f * visits * r * D + D // d * visits * r * F + self.E * D * F
        elif d >= self.D:  # for each f: all visits; an expert's matrix stays
            numbers = F // f * self.R * D + self.E * D * F + self.R * F
        else:  # for each f: all visits; for each visit: all d
            numbers = F // f * visits * r * D + visits * D * F + self.R * F
        return self.itemsize * numbers

    def vmem(self, tile: Tile) -> int:
        """Fast memory: two of each block, and the float32 sums."""
        r, d, f = tile
        return 2 * self.itemsize * (r * d + r * f + d * f) + 4 * f * (d if self.gradient else r)


@cache
def choose_tile(work: Work) -> Tile:
    """The tile of least modelled time: arithmetic or bytes, whichever takes longer.

    Large tiles of rows read an expert's matrix less often, small ones compute less at the borders
    between experts; where all of D fits, a matrix is read once anyhow, and 128 rows are best. The
    sums move through fast memory in each step, so steps of a product go 512 deep, if D does.
    """

    def time(tile: Tile) -> tuple[float, int]:
        visits = work.R // tile[0] + work.E - 1  # about, where all experts have rows
        moved = FLOPS_PER_BYTE * work.bytes(tile, visits)
        return max(work.flops(tile, visits), moved), moved

    rows = [r for r in (128, 256, 512) if work.R % r == 0]
    deep = 1 if work.gradient else min(work.D, 512)
    parts = [d for d in list_widths(work.D) if d >= deep], list_widths(work.F)
    fitting = (t for t in itertools.product(rows, *parts) if work.vmem(t) <= VMEM_BYTES)
    return min(fitting, key=time)


def list_widths(width: int) -> list[int]:
    """Widths of blocks: multiples of 128 lanes, or all of it."""
    return [*range(128, min(width, 4096), 128), *([width] if width <= 4096 else [])]


def products(params: Params, x_TD: jax.Array, *, interpret: bool = False) -> Products | None:
    """The two products for these arguments, or None where the kernels have none of their type."""
    if x_TD.dtype not in (jnp.float32, jnp.bfloat16):
        return None
    if any(p.dtype != x_TD.dtype for p in jax.tree.leaves(params)):
        return None
    return Products(partial(product, interpret=interpret), partial(gradient, interpret=interpret))


def product(
    x_RD: jax.Array,
    w_EDF: jax.Array,
    size_E: jax.Array,
    transposed: bool,
    layer: jax.Array | None,
    *,
    interpret: bool,
) -> jax.Array:
    """See ``Products.product``; in the type of ``x_RD``. All layers' experts are experts without
    rows, which are not visited: so a layer's bank is read in its stack.
    """
    *_, E, D, F = w_EDF.shape
    shape = D, F
    if layer is not None:
        w_EDF = w_EDF.reshape(-1, D, F)
        none_E = jnp.zeros(w_EDF.shape[0], size_E.dtype)
        size_E = jax.lax.dynamic_update_slice(none_E, size_E, (layer * E,))
    D, F = reversed(shape) if transposed else shape
    tile = choose_tile(Work(x_RD.shape[0], D, F, E, x_RD.dtype.itemsize))
    return kernels.gmm(
        x_RD, w_EDF, size_E, x_RD.dtype, tile, transpose_rhs=transposed, interpret=interpret
    )


def gradient(x_RD: jax.Array, dy_RF: jax.Array, size_E: jax.Array, *, interpret: bool) -> jax.Array:
    """See ``Products.gradient``; in the type of ``x_RD``."""
    (R, D), F, E = x_RD.shape, dy_RF.shape[1], size_E.shape[0]
    tile = choose_tile(Work(R, D, F, E, x_RD.dtype.itemsize, gradient=True))
    # The kernel transposes its first argument back, so that no copy is made.
    return kernels.tgmm(x_RD.T, dy_RF, size_E, x_RD.dtype, tile, interpret=interpret)
