"""The grouped product of Hopper GPUs with experts that lie in the stack of all layers' banks.

JAX's own kernel (``ragged_dot_mgpu.ragged_dot``, by the JAX authors, Apache License 2.0) finds the
expert of a tile by comparing the tile with every expert, one by one; it is shown one layer's
experts here as well, and their place in the stack is added. Else it is the same.

Letters: M: rows; X: what is summed over; N: columns of the product.
"""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas.ops.gpu.ragged_dot_mgpu import GroupInfo

MULTIPROCESSORS = 132
"""Of an H100."""


def product(
    x_MX: jax.Array,
    w_LEXN: jax.Array,
    size_E: jax.Array,
    layer: jax.Array,
    *,
    block_m: int,
    block_n: int,
    block_k: int,
    max_concurrent_steps: int,
    grid_block_n: int,
    transpose_rhs: bool,
) -> jax.Array:
    """``y_MN``: the rows of each expert of a layer times its matrix, or its transpose; settings as
    of JAX's kernel.
    """
    M, X = x_MX.shape
    E, N = w_LEXN.shape[1], w_LEXN.shape[2 if transpose_rhs else 3]
    grid_m, grid_n = pl.cdiv(M, block_m) + E - 1, pl.cdiv(N, block_n)

    def body(size_ref: Any, first_ref: Any, x_ref: Any, w_ref: Any, y_ref: Any) -> None:
        @plgpu.nd_loop((grid_m * grid_n,), collective_axes="sm")
        def _(loop: Any) -> None:
            mi, ni = plgpu.planar_snake(loop.index[0], (grid_m, grid_n), 1, grid_block_n)
            group = GroupInfo.create(size_ref, block_m, mi)
            expert = first_ref[0] + group.group_id

            def step(_: Any, x_smem: Any, w_smem: Any) -> None:
                w = plgpu.transpose_ref(w_smem, (1, 0)) if transpose_rhs else w_smem
                plgpu.wgmma(sums_of[0], x_smem, w)

            sums_of: list[Any] = []

            def add_up(sums: Any) -> jax.Array:
                sums_of.append(sums)
                w_block = (block_n, block_k) if transpose_rhs else (block_k, block_n)
                plgpu.emit_pipeline(
                    step,
                    grid=(X // block_k,),
                    in_specs=[
                        plgpu.BlockSpec(
                            (block_m, block_k), lambda k: (group.block, k), delay_release=1
                        ),
                        plgpu.BlockSpec(
                            w_block,
                            lambda k: (ni, k) if transpose_rhs else (k, ni),
                            delay_release=1,
                        ),
                    ],
                    max_concurrent_steps=max_concurrent_steps,
                )(x_ref, w_ref.at[expert])
                return sums[...]

            y = pl.run_scoped(add_up, plgpu.ACC((block_m, block_n)))
            store = functools.partial(_store, y, y_ref, group, ni * block_n, min(block_m, M))
            pl.run_scoped(store, plgpu.SMEM(y.shape, dtype=y_ref.dtype))

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((M, N), x_MX.dtype),
        grid=(MULTIPROCESSORS,),
        grid_names=("sm",),
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
        ),
    )
    return kernel(size_E, (layer * E)[None], x_MX, w_LEXN.reshape(-1, *w_LEXN.shape[2:]))


def _store(y: jax.Array, y_ref: Any, group: Any, column: Any, most: int, y_smem: Any) -> None:
    """Write the rows of a tile that belong to its expert. A copy has a fixed number of rows, so
    there is one for each power of two, and those that add up to the number are made.
    """
    y_smem[...] = y.astype(y_smem.dtype)
    plgpu.commit_smem()
    start = group.start_within_block
    for bit in reversed(range(most.bit_length())):
        rows = 1 << bit

        @pl.when(group.actual_size & rows != 0)
        def _(start: Any = start, rows: int = rows) -> None:
            here = y_smem.at[pl.ds(start, rows)]
            there = y_ref.at[pl.ds(group.block_start + start, rows), pl.ds(column, y_smem.shape[1])]
            plgpu.copy_smem_to_gmem(here, there)

        start += group.actual_size & rows
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
