"""Weights in 8 or 4 bits: codes, and a scale for each group of numbers that are summed together.

    w = code * scale                                    weights only; products stay in their type

A group is a stretch of the summed dimension (of a matrix [..., D, F] it is D) in one output
channel, or all of it. Scales are bfloat16. Codes are ``int8``; ``fp8``, which is float8_e4m3fn as
its bits; or ``int4``, two of neighbouring entries of the summed dimension in a byte, the first in
its lower half. Scales of int4 have the least squared error in their group among a few, of either
sign, as there is a code -8 but no 8; the others map the largest number to the largest code.

The parts are arrays like the weights, so that ``jax.tree.map`` slices leading dimensions.
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from moejax.moe.float_bits import widen_bits

Kind = Literal["int8", "int4", "fp8"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LARGEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
"""The largest code of a kind."""
INT4_PARTS = (7.0, 7.5, 8.0, 8.5)
"""The largest number of a group over these is tried as its scale."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantised:
    """A matrix, a bank, or a stack of these, as codes and scales."""

    codes: jax.Array
    """Like the weights; int4 has half the entries in the summed dimension."""
    scales: jax.Array
    """bfloat16, or its bits (uint16). Like the weights, with an entry of the summed dimension for
    each group."""
    kind: Kind = field(metadata={"static": True})
    axis: int = field(default=-2, metadata={"static": True})
    """The summed dimension, counted from the last: -2, or -1 of an embedding."""

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weights."""
        shape = list(self.codes.shape)
        shape[self.axis] *= count_per_byte(self.kind)
        return tuple(shape)

    @property
    def ndim(self) -> int:
        return self.codes.ndim

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        """That of the weights when they are decoded."""
        return jnp.dtype(jnp.float32)

    @property
    def group(self) -> int:
        """How many numbers share a scale."""
        return self.shape[self.axis] // self.scales.shape[self.axis]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def cut(self, start: tuple[Any, ...], sizes: tuple[int, ...]) -> jax.Array:
        """The block of the weights (float32) that begins at ``start`` and has these ``sizes``: one
        entry of each leading dimension that ``sizes`` leave out, which the block has not.

        Of the summed dimension it has one entry, or whole groups, or a part of one that begins at a
        multiple of its size.
        """
        per_byte = count_per_byte(self.kind)
        codes = self._take(self.codes, start, sizes, per_byte)
        scales = self._take(self.scales, start, sizes, self.group)
        if sizes[self.axis] % per_byte == 0:
            return dequantise(replace(self, codes=codes, scales=scales))
        return _halve(codes, start[self.axis] % 2).astype(jnp.float32) * _widen(scales)

    def cut_codes(self, start: tuple[Any, ...], rows: int, columns: int) -> list[jax.Array]:
        """Of a block of rows, the codes of each: float32 [1, columns]. Of int4, an even number of
        rows from an even one on.
        """
        per_byte = count_per_byte(self.kind)
        found = []
        for row in range(0, rows, per_byte):
            at = (*start[:-2], start[-2] + row, start[-1])
            codes = self._take(self.codes, at, (per_byte, columns), per_byte)
            each = [_halve(codes, half) for half in (0, 1)] if per_byte == 2 else [codes]
            found += [_unpack_bytes(one, self.kind).astype(jnp.float32) for one in each]
        return found

    def cut_scales(self, start: tuple[Any, ...], sizes: tuple[int, ...]) -> jax.Array:
        """The scales (float32) of a block."""
        return _widen(self._take(self.scales, start, sizes, self.group))

    def _take(
        self, x: jax.Array, start: tuple[Any, ...], sizes: tuple[int, ...], share: int
    ) -> jax.Array:
        """A block of an array in which ``share`` entries of the summed dimension are one."""
        at, of, axis = list(start), list(sizes), self.axis
        at[axis], of[axis] = at[axis] // share, -(-of[axis] // share)
        leading = (1,) * (len(at) - len(of))
        return lax.dynamic_slice(x, at, (*leading, *of)).reshape(of)


@partial(jax.jit, static_argnums=(1, 2, 3))
def quantise(w: jax.Array, kind: Kind, group: int | None = None, axis: int = -2) -> Quantised:
    """Weights [..., D, F] as codes and scales, one for each ``group`` numbers of the summed
    dimension ``axis``, by default (None) for all of it.

    Raises ``ValueError`` if the group, or two to a byte, does not divide that dimension.
    """
    if reason := find_obstacle(w.shape[axis], kind, group):
        raise ValueError(reason)
    x = _split(w.astype(jnp.float32), group or w.shape[axis], axis)
    largest = jnp.abs(x).max(axis, keepdims=True)
    scales = _fit_int4(x, largest, axis) if kind == "int4" else _round(largest / LARGEST[kind])
    codes = _merge(_encode(x, scales, kind), axis)
    if kind == "int4":
        pairs = _split(codes, 2, axis).astype(jnp.uint8) & 15
        first, second = jnp.split(pairs, 2, axis)
        codes = _merge(first | (second << 4), axis)
    return Quantised(codes, _merge(scales, axis).astype(jnp.bfloat16), kind, axis)


def find_obstacle(size: int, kind: Kind, group: int | None) -> str | None:
    """Why a summed dimension of this size cannot be quantised so, or None."""
    if kind == "int4" and size % 2:
        return f"{size} numbers are summed, but int4 takes two to a byte: use int8"
    if group is not None and (group < 1 or size % group):
        return f"groups of {group} do not divide the {size} numbers that are summed"
    if kind == "int4" and group is not None and group % 2:
        return f"int4 takes two numbers to a byte, so a group cannot have {group}"
    return None


def dequantise(w: Quantised, dtype: Any = jnp.float32) -> jax.Array:
    """The weights that codes and scales stand for."""
    values = _unpack(w.codes, w.kind, w.axis)
    x = _split(values.astype(jnp.float32), w.group, w.axis)
    return _merge(x * _split(_widen(w.scales), 1, w.axis), w.axis).astype(dtype)


def is_quantised(w: Any) -> bool:
    """Whether a leaf of a tree of parameters is quantised: what ``jax.tree.map`` wants as
    ``is_leaf``.
    """
    return isinstance(w, Quantised)


def has_quantised(params: Any) -> bool:
    """Whether something in a tree of parameters is quantised."""
    return any(map(is_quantised, jax.tree.leaves(params, is_leaf=is_quantised)))


def count_per_byte(kind: Kind) -> int:
    """Codes in a byte."""
    return 2 if kind == "int4" else 1


def _split(x: jax.Array, size: int, axis: int) -> jax.Array:
    """The dimension ``axis`` as groups and, at its place from the last, entries of a group."""
    at = x.ndim + axis
    return x.reshape(*x.shape[:at], x.shape[at] // size, size, *x.shape[at + 1 :])


def _merge(x: jax.Array, axis: int) -> jax.Array:
    """The inverse of ``_split``."""
    at = x.ndim + axis
    return x.reshape(*x.shape[: at - 1], -1, *x.shape[at + 1 :])


def _round(scales: jax.Array) -> jax.Array:
    """Scales as they will be stored; 1 for groups of zeros."""
    rounded = scales.astype(jnp.bfloat16).astype(jnp.float32)
    return jnp.where(rounded == 0, 1.0, rounded)


def _encode(x: jax.Array, scales: jax.Array, kind: Kind) -> jax.Array:
    """The nearest codes; a byte each, those of int4 as int8."""
    codes = x / scales
    if kind == "fp8":
        codes = jnp.clip(codes, -LARGEST[kind], LARGEST[kind]).astype(jnp.float8_e4m3fn)
        return lax.bitcast_convert_type(codes, jnp.uint8)
    least = -8 if kind == "int4" else -LARGEST[kind]
    return jnp.clip(jnp.round(codes), least, LARGEST[kind]).astype(jnp.int8)


def _fit_int4(x: jax.Array, largest: jax.Array, axis: int) -> jax.Array:
    """Scales of least squared error: of some parts of the largest number, with either sign, and of
    what fits the codes of the best of these.
    """

    def try_scale(best: tuple[jax.Array, jax.Array], scales: jax.Array) -> tuple:
        scales = _round(scales)
        wrong = jnp.square(_encode(x, scales, "int4") * scales - x).sum(axis, keepdims=True)
        better = wrong < best[0]
        return jnp.where(better, wrong, best[0]), jnp.where(better, scales, best[1])

    parts = jnp.array([sign / part for part in INT4_PARTS for sign in (1, -1)], jnp.float32)
    best = (jnp.full_like(largest, jnp.inf), jnp.ones_like(largest))
    best, _ = lax.scan(lambda best, part: (try_scale(best, largest * part), None), best, parts)
    codes = _encode(x, best[1], "int4").astype(jnp.float32)
    squares = jnp.square(codes).sum(axis, keepdims=True)
    fitted = (codes * x).sum(axis, keepdims=True) / jnp.maximum(squares, 1)
    return try_scale(best, fitted)[1]


def _unpack(codes: jax.Array, kind: Kind, axis: int) -> jax.Array:
    """One code an entry, as numbers."""
    if kind != "int4":
        return _unpack_bytes(codes, kind)
    shape = [1] * (codes.ndim + 1)
    shape[axis] = 2
    half = jnp.arange(2, dtype=jnp.uint8).reshape(shape)
    return _merge(_halve(_split(codes, 1, axis), half), axis)


def _unpack_bytes(codes: jax.Array, kind: Kind) -> jax.Array:
    """Codes that have a byte each, as numbers."""
    return lax.bitcast_convert_type(codes, jnp.float8_e4m3fn) if kind == "fp8" else codes


def _halve(byte: jax.Array, half: Any) -> jax.Array:
    """The code in the lower half (0) or in the upper (1) of bytes, int8."""
    shifted = byte << (4 * (1 - jnp.asarray(half, jnp.uint8)))
    return lax.bitcast_convert_type(shifted, jnp.int8) >> 4


def _widen(scales: jax.Array) -> jax.Array:
    """Scales as float32."""
    return widen_bits(scales).astype(jnp.float32)
