"""Parameters read where they lie: one layer's, or one expert's, out of stacked ones.

Cut out of its stack, a matrix in front of a loop or of a kernel is copied whole: a bank of experts,
of which a token needs a few, with it. So inference hands on the stack and the place in it.

On CPUs, XLA computes no bfloat16: it converts what a slice is taken of, which is all layers' banks.
It leaves integers alone. So bfloat16 is held as its bits there (uint16), and numbers are made of
them after slicing.

Letters: M: rows of a product; X: columns of a block; Y: what is summed over; Z: columns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moejax.moe.adapted import Adapted
from moejax.moe.float_bits import widen_bits
from moejax.moe.kernels.product import product
from moejax.moe.quantised import (
    Quantised,
    count_per_byte,
    dequantise,
    has_quantised,
    is_quantised,
)
from moejax.runtime import device_mesh

FEW_ROWS = 8
"""Up to so many rows, products in place are sums that XLA fuses with the reading of weights."""
SMALL = 1 << 18
"""With fewer numbers than this, a matrix is cut out: it stays in fast memory anyhow."""
BLOCK = 1 << 18
"""Numbers of a block of weights, or of sums, that fast memory holds."""
LARGE_BLOCK = 1 << 22
"""On other platforms, numbers that are decoded at once."""


@dataclass(frozen=True, eq=False)
class Lying:
    """The part of a stack at an index into its first dimensions: as an array where one is wanted.

    Not a pytree: it does not pass from one trace into another.
    """

    stack: jax.Array | Quantised
    index: tuple[Any, ...] = ()
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.stack.shape[len(self.index) :])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        """That of the numbers, not of their bits."""
        return jnp.dtype(jnp.bfloat16) if self.stack.dtype == jnp.uint16 else self.stack.dtype

    @property
    def is_coded(self) -> bool:
        """Whether numbers are made of what is read."""
        return is_quantised(self.stack) or self.stack.dtype == jnp.uint16

    def at_index(self, *more: Any) -> "Lying":
        """The part at a further index."""
        return Lying(self.stack, (*self.index, *more))

    def cut(self, start: tuple[Any, ...], sizes: tuple[int, ...]) -> jax.Array:
        """A block of the part; what is coded comes as float32."""
        at = (*self.index, *start)
        if not at:
            return widen(self.stack)
        if isinstance(self.stack, Quantised):
            return self.stack.cut(at, sizes)
        block = lax.dynamic_slice(self.stack, at, (1,) * len(self.index) + sizes)
        return widen(block.reshape(sizes))

    def __jax_array__(self) -> jax.Array:
        return self.cut((0,) * self.ndim if self.index else (), self.shape).astype(self.dtype)

    def astype(self, dtype: Any) -> jax.Array:
        return self.cut((0,) * self.ndim if self.index else (), self.shape).astype(dtype)


def lie(params: Any) -> Any:
    """All arrays of a tree of parameters, where they lie."""
    return jax.tree.map(Lying, params, is_leaf=is_quantised)


def lie_quantised(params: Any) -> Any:
    """Parameters as a model applies them: where they lie, if some are quantised."""
    return lie(params) if has_quantised(params) else params


def lie_at(stacks: dict[str, Any], layer: Any) -> dict[str, Any]:
    """The parameters of a layer in stacks; without one, arrays where they lie."""
    index = () if layer is None else (layer,)
    return jax.tree.map(lambda stack: Lying(stack, index), stacks, is_leaf=is_quantised)


def open_bank(params: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The inverse of ``lie_at``: the stacks of a bank, and its layer or None."""
    (layer,) = jax.tree.leaves(params)[0].index or (None,)
    return jax.tree.map(lambda p: p.stack, params), layer


def widen(x: jax.Array | Quantised) -> jax.Array:
    """Bits of bfloat16, or what is quantised, as float32; else the array."""
    return dequantise(x) if isinstance(x, Quantised) else widen_bits(x)


def take(w: Any, rows: jax.Array) -> jax.Array:
    """Some rows of a parameter."""
    if not isinstance(w, Lying):
        return w[rows]
    return widen(jax.tree.map(lambda x: x[(*w.index, rows)], w.stack))


def as_type(w: Any, dtype: Any) -> Any:
    """A parameter in a type; one that lies somewhere, or is quantised, gets it in its product."""

    def change(p: Any) -> Any:
        return p if isinstance(p, Lying) or is_quantised(p) else p.astype(dtype)

    return jax.tree.map(change, w, is_leaf=is_quantised)


def multiply(x_MY: jax.Array, w_YZ: Any) -> jax.Array:
    """``x @ w`` in the type of ``x``, for an array, a matrix that is read where it lies, an adapted
    one, or a quantised one, which is decoded again for the gradient of ``x``.
    """
    if isinstance(w_YZ, Adapted):
        more_MZ = multiply(multiply(x_MY, w_YZ.a) * w_YZ.scale, w_YZ.b)
        return multiply(x_MY, w_YZ.w) + more_MZ
    if isinstance(w_YZ, Quantised):
        return jax.checkpoint(lambda x, w: multiply(x, dequantise(w, x.dtype)))(x_MY, w_YZ)
    if not isinstance(w_YZ, Lying):
        # Its gradient wants equal leading dimensions.
        return product(x_MY, w_YZ) if x_MY.ndim == w_YZ.ndim else x_MY @ w_YZ
    whole = not w_YZ.index and not w_YZ.is_coded
    x = x_MY.reshape(-1, x_MY.shape[-1])
    in_place = reads_in_place(w_YZ)
    if whole or not (in_place or _decodes_in_blocks(len(x), w_YZ)):
        return x_MY @ w_YZ.astype(x_MY.dtype)
    x, block = x.astype(jnp.float32), BLOCK if in_place else LARGE_BLOCK
    in_rows = in_place and len(x) <= FEW_ROWS
    y = sum_rows(x, w_YZ) if in_rows else sum_blocks(x, w_YZ, block)
    return y.reshape(*x_MY.shape[:-1], -1).astype(x_MY.dtype)


def reads_in_place(w: Lying) -> bool:
    """Whether a product reads this matrix block by block: on one CPU, where it is large. Other
    compilers fuse the slice with the product, and there is no slicing of what is spread.
    """
    on_cpu = device_mesh.platform() == "cpu" and device_mesh.devices() == 1
    return on_cpu and math.prod(w.shape) >= SMALL


def _decodes_in_blocks(rows: int, w: Lying) -> bool:
    """Whether a product decodes a quantised matrix in blocks on one TPU or GPU: where all of it
    would be large, and the sums are smaller.
    """
    alone = device_mesh.platform() != "cpu" and device_mesh.devices() == 1
    large = math.prod(w.shape) > LARGE_BLOCK and rows <= w.shape[0]
    return alone and large and is_quantised(w.stack)


def sum_rows(x_MY: jax.Array, w_YZ: Lying) -> jax.Array:
    """``x @ w`` of few rows (float32): row after row of the matrix times a column of ``x``; of
    quantised rows the codes, and each group's sum times its scale.
    """
    (M, Y), Z, stack = x_MY.shape, w_YZ.shape[1], w_YZ.stack
    X, most = _divide(Z, max(BLOCK // M, 1)), 16 if M <= 2 else 8
    group = stack.group if isinstance(stack, Quantised) else Y
    at_once = _fit_rows(w_YZ, min(most, group))

    def columns(first: Any) -> jax.Array:
        def add(row: Any, i: Any, y_MX: jax.Array) -> jax.Array:
            row += i * at_once
            x_MB = lax.dynamic_slice_in_dim(x_MY, row, at_once, 1)
            if isinstance(stack, Quantised):
                rows = stack.cut_codes((*w_YZ.index, row, first), at_once, X)
            else:
                rows = [w_YZ.cut((row + j, first), (1, X)) for j in range(at_once)]
            for j, w_1X in enumerate(rows):
                y_MX += x_MB[:, j, None] * w_1X
            return y_MX

        def add_group(g: Any, y_MX: jax.Array) -> jax.Array:
            assert isinstance(stack, Quantised)
            more_MX = _repeat(group // at_once, partial(add, g * group), nothing_MX)
            return y_MX + more_MX * stack.cut_scales((*w_YZ.index, g * group, first), (1, X))

        nothing_MX = jnp.zeros((M, X), jnp.float32)
        if isinstance(stack, Quantised):
            return _repeat(Y // group, add_group, nothing_MX)
        return _repeat(Y // at_once, partial(add, 0), nothing_MX)

    return _fill_columns(columns, M, Z, X)


def sum_blocks(x_MY: jax.Array, w_YZ: Lying, block: int) -> jax.Array:
    """``x @ w`` (float32), a block of rows of the matrix after the other, of about ``block``
    numbers, or as many as ``x`` has: each one costs the reading and writing of all sums.
    """
    (M, Y), Z = x_MY.shape, w_YZ.shape[1]
    rows = _fit_rows(w_YZ, max(max(block, x_MY.size) // Z, 1))

    def add(i: jax.Array, y_MZ: jax.Array) -> jax.Array:
        x_MB = lax.dynamic_slice_in_dim(x_MY, i * rows, rows, 1)
        return y_MZ + x_MB @ w_YZ.cut((i * rows, 0), (rows, Z)).astype(jnp.float32)

    return lax.fori_loop(0, Y // rows, add, jnp.zeros((M, Z), jnp.float32))


def multiply_transposed(x_MY: jax.Array, w_ZY: Any) -> jax.Array:
    """``x @ w.T`` in the type of ``x``, of a matrix as in ``multiply``."""
    in_place = isinstance(w_ZY, Lying) and reads_in_place(w_ZY)
    if not in_place or not w_ZY.is_coded:
        return x_MY @ jnp.asarray(w_ZY).T.astype(x_MY.dtype)
    x = x_MY.reshape(-1, x_MY.shape[-1]).astype(jnp.float32)
    Z, Y = w_ZY.shape
    X = _divide(Z, max(BLOCK // Y, 1))
    y = _fill_columns(lambda first: x @ w_ZY.cut((first, 0), (X, Y)).T, len(x), Z, X)
    return y.reshape(*x_MY.shape[:-1], -1).astype(x_MY.dtype)


def _fill_columns(columns: Callable[[Any], jax.Array], M: int, Z: int, X: int) -> jax.Array:
    """[M, Z] from ``columns(first)``, X at a time."""
    if X == Z:
        return columns(0)

    def put(i: jax.Array, y_MZ: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(y_MZ, columns(i * X), i * X, 1)

    return lax.fori_loop(0, Z // X, put, jnp.zeros((M, Z), jnp.float32))


def _repeat(times: int, function: Callable, start: jax.Array) -> jax.Array:
    """A loop, where it goes round more than once."""
    return function(0, start) if times == 1 else lax.fori_loop(0, times, function, start)


def _fit_rows(w_YZ: Lying, most: int) -> int:
    """How many rows of a matrix are read at once, about ``most``: they divide it, and of quantised
    rows their group, or are several groups.
    """
    Y, stack = w_YZ.shape[0], w_YZ.stack
    if not isinstance(stack, Quantised):
        return _divide(Y, most)
    if most >= stack.group:
        return stack.group * _divide(Y // stack.group, most // stack.group)
    together = count_per_byte(stack.kind)
    return together * _divide(stack.group // together, max(most // together, 1))


def _divide(size: int, most: int) -> int:
    """The largest divisor of a size that is no more than ``most``."""
    return next(d for d in range(min(size, most), 0, -1) if size % d == 0)


def hold(params: Any) -> Any:
    """Parameters, or their shapes, as a decode step takes them on the devices in use: on CPUs
    bfloat16 as its bits, which share the memory of the arrays.
    """
    if device_mesh.platform() != "cpu":
        return params
    return jax.tree.map(lambda x: _view_bits(x) if x.dtype == jnp.bfloat16 else x, params)


def _view_bits(x: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, jnp.uint16, sharding=x.sharding)
    parts = [
        jax.device_put(np.asarray(shard.data).view(np.uint16), shard.device)
        for shard in x.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)
