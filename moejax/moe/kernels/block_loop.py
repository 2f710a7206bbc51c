"""The grouped feed-forward as a loop over experts and blocks of their rows: for CPUs, and wherever
there is no better kernel. It does the arithmetic of the chosen experts and little more.

A block is gathered, computed, and written; weights multiply inside it, so no array of all rows is
ever weighted. What activation functions get can be kept for the backward pass; else it is computed
again. An expert's last block is computed in the smallest of a few sizes that holds its rows; what
it writes beyond them the next expert overwrites.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moejax.moe import experts
from moejax.moe.adapted import join, split
from moejax.moe.kernels import few_rows
from moejax.moe.kernels.rows import Rows, round_up, sum_choices, take
from moejax.moe.lying import reads_in_place

Params = dict[str, Any]
Kept = dict[str, jax.Array]
"""What activation functions get, by the names of the matrices."""
Sizes = tuple[int, ...]
"""Numbers of rows that a block may have, ascending."""

LARGEST_BLOCK = 512
FEW_AN_EXPERT = 64
"""With up to so many rows an expert on average, at inference, products read its matrices block by
block; with more, it is cut out, and converted, once."""


def choose_block_sizes(rows: int, num_experts: int) -> Sizes:
    """Sizes around the rows that an expert has on average, so that one block serves most experts:
    each block adds its own gradient to those of the weights. Where that would be large, experts
    have several blocks, all but the last of them of the largest size.

    More sizes waste fewer rows, but each takes a tenth of a second to compile.
    """
    mean = rows / num_experts
    sizes = [round_up(math.ceil(mean * part / 8), 16) for part in (4, 6, 7, 8, 9, 11)]
    if sizes[-1] > LARGEST_BLOCK:
        sizes = [LARGEST_BLOCK * part // 4 for part in range(1, 5)]
    return tuple(sorted(set(sizes)))


def count_rows(rows: int, num_experts: int, sizes: Sizes | None = None) -> int:
    """Rows of an array that every block can be written into: the last one may hang over."""
    return rows + (sizes or choose_block_sizes(rows, num_experts))[-1]


def forward(
    bank: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    kept: dict[str, jax.ShapeDtypeStruct] | None = None,
    *,
    activation: str,
    weigh: str,
    sizes: Sizes | None = None,
) -> tuple[jax.Array, Kept]:
    """``y_TD``, each token's chosen experts weighted and added up (``grouped_feed_forward``), and
    what is to be ``kept``, of these shapes.
    """
    kept = kept or {}
    if not kept and few_rows.serves(bank, x_TD):
        branches = sizes is None
        y_TD = few_rows.forward(bank, x_TD, weight_TK, rows, activation, weigh, branches)
        return y_TD, {}
    R, E = rows.choice_R.shape[0], rows.size_E.shape[0]
    sizes = sizes or choose_block_sizes(R, E)
    cut = _cut_rows(rows, weight_TK, sizes[-1])
    few = R <= FEW_AN_EXPERT * E and reads_in_place(few_rows.take_expert(bank, 0)["w_down_EFD"])
    take_expert = few_rows.take_expert if few and not kept else _take_expert

    def expert(e: jax.Array, carry: tuple) -> tuple:
        affine = experts.affine_of(take_expert(bank, e))

        def run(m: int, at: jax.Array, left: jax.Array, carry: tuple) -> tuple:
            y_RD, kept = carry
            token, weight, _ = cut(m, at, left)
            made = {}

            def make(x: jax.Array, name: str, scale: jax.Array | float) -> jax.Array:
                made[name] = affine(x, name, scale)
                return made[name]

            x = take(x_TD, token)
            y = experts.feed_forward(make, x, activation, weight_T1=weight[:, None], weigh=weigh)
            kept = {name: _write(kept[name], made[name], at) for name in kept}
            return _write(y_RD, y, at), kept

        return _visit_blocks(sizes, rows.start_E[e], rows.size_E[e], run, carry)

    new = _zeros(rows)
    made = {name: new(shape.shape, shape.dtype) for name, shape in kept.items()}
    carry = (new((R + sizes[-1], x_TD.shape[1]), x_TD.dtype), made)
    y_RD, made = lax.fori_loop(0, E, expert, carry)
    return sum_choices(y_RD, rows.row_TK).astype(x_TD.dtype), made


def backward(
    wanted: Params,
    bank: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    kept: Kept,
    dy_TD: jax.Array,
    *,
    activation: str,
    weigh: str,
    sizes: Sizes | None = None,
) -> tuple[Params, jax.Array, jax.Array]:
    """The gradients of what is ``wanted`` (see ``adapted.split``) of ``bank``, of ``x_TD`` and of
    ``weight_TK``, from that of ``y_TD``. What is not ``kept`` is computed again.
    """
    R, E = rows.choice_R.shape[0], rows.size_E.shape[0]
    sizes = sizes or choose_block_sizes(R, E)
    block, cut = sizes[-1], _cut_rows(rows, weight_TK, sizes[-1])
    trained, frozen = split(bank, wanted)

    def expert(e: jax.Array, carry: tuple) -> tuple:
        trained_e, frozen_e = _take_expert(trained, e), _take_expert(frozen, e)

        def run(m: int, at: jax.Array, left: jax.Array, carry: tuple) -> tuple:
            dx_RD, dweight_R, dparams = carry
            token, weight, mine = cut(m, at, left)
            # What is not the expert's may be anything, as another one left it.
            there = {n: jnp.where(mine[:, None], _read(k, at, m), 0) for n, k in kept.items()}

            def compute(trained_e: Params, x: jax.Array, weight: jax.Array) -> jax.Array:
                affine = experts.affine_of(join(trained_e, frozen_e))

                def make(x: jax.Array, name: str, scale: jax.Array | float) -> jax.Array:
                    y = affine(x, name, scale)
                    return _replace(y, there[name]) if name in there else y

                weight_T1 = weight[:, None]
                return experts.feed_forward(make, x, activation, weight_T1=weight_T1, weigh=weigh)

            _, pull = jax.vjp(compute, trained_e, take(x_TD, token), weight)
            dparams_e, dx, dweight = pull(jnp.where(mine[:, None], take(dy_TD, token), 0))

            def put(all_: jax.Array, one: jax.Array) -> jax.Array:
                if m == block:  # an expert may have several of these
                    one = one.astype(all_.dtype) + lax.dynamic_index_in_dim(all_, e, 0, False)
                return lax.dynamic_update_index_in_dim(all_, one.astype(all_.dtype), e, 0)

            dparams = jax.tree.map(put, dparams, dparams_e)
            return _write(dx_RD, dx, at), _write(dweight_R, dweight, at), dparams

        return _visit_blocks(sizes, rows.start_E[e], rows.size_E[e], run, carry, last_first=True)

    new = _zeros(rows)
    dparams = jax.tree.map(lambda p: new(p.shape, _sum_type(p.dtype)), trained)
    carry = (new((R + block, x_TD.shape[1]), x_TD.dtype), new((R + block,), jnp.float32), dparams)
    dx_RD, dweight_R, dparams = lax.fori_loop(0, E, expert, carry)
    dparams = jax.tree.map(lambda d, p: d.astype(p.dtype), dparams, trained)
    dx_TD = sum_choices(dx_RD, rows.row_TK).astype(x_TD.dtype)
    there_TK = rows.row_TK >= 0
    dweight_TK = jnp.where(there_TK, take(dweight_R, jnp.maximum(rows.row_TK, 0)), 0)
    return dparams, dx_TD, dweight_TK.astype(weight_TK.dtype)


Run = Callable[[int, jax.Array, jax.Array, tuple], tuple]
"""``(m, at, left, carry) -> carry``: a block of m rows from row ``at`` on, where the expert has
``left`` more rows."""


def _visit_blocks(
    sizes: Sizes,
    start: jax.Array,
    size: jax.Array,
    run: Run,
    carry: tuple,
    last_first: bool = False,
) -> tuple:
    """``run`` on the blocks of an expert with so many rows: those of the largest size, and a last
    one of the next size that holds the rest, which comes first if that is asked for.

    Sizes are chosen by loops that go round once or not at all: what a loop carries is changed where
    it lies, whereas a conditional gives new arrays.
    """
    block = sizes[-1]
    before = jnp.maximum(size - 1, 0) // block
    index = (jnp.array(sizes[:-1], jnp.int32) < size - before * block).sum()

    def visit(m: int, first: jax.Array, number: jax.Array, carry: tuple) -> tuple:
        def step(i: jax.Array, carry: tuple) -> tuple:
            # All depends on i. What does not, XLA computes in front of the loop, in any case.
            at = (first + i) * block
            return run(m, start + at, size - at, carry)

        return lax.fori_loop(0, number, step, carry)

    def visit_last(carry: tuple) -> tuple:
        for i, m in enumerate(sizes[:-1]):
            here = (size > 0) & (index == i)
            carry = visit(m, before, here.astype(jnp.int32), carry)
        return carry

    def visit_largest(carry: tuple) -> tuple:
        last = (size > 0) & (index == len(sizes) - 1)
        return visit(block, jnp.int32(0), before + last, carry)

    if last_first:
        return visit_largest(visit_last(carry))
    return visit_last(visit_largest(carry))


def _cut_rows(rows: Rows, weight_TK: jax.Array, block: int) -> Callable:
    """A function that gives of m rows from row ``at`` on, of which ``left`` are an expert's, the
    tokens, the weights, and whether they are the expert's.
    """
    token_R = jnp.pad(rows.choice_R // weight_TK.shape[1], (0, block))
    weight_R = jnp.pad(take(weight_TK.reshape(-1), rows.choice_R), (0, block))

    def cut(m: int, at: jax.Array, left: jax.Array) -> tuple[jax.Array, ...]:
        mine = jnp.arange(m) < left
        # What is not the expert's repeats the first row, which is finite if anything is.
        token = jnp.where(mine, _read(token_R, at, m), token_R[0])
        return token, jnp.where(mine, _read(weight_R, at, m), 0), mine

    return cut


def _take_expert(bank: Params, e: jax.Array) -> Params:
    """The parameters of one expert."""
    parts = few_rows.take_expert(bank, e)
    return jax.tree.map(lambda p: p.cut((0,) * p.ndim, p.shape), parts)


def _read(x_R: jax.Array, at: jax.Array, rows: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x_R, at, rows)


def _write(x_R: jax.Array, block: jax.Array, at: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x_R, block.astype(x_R.dtype), at, 0)


@jax.custom_vjp
def _replace(y: jax.Array, value: jax.Array) -> jax.Array:
    """``value``, known to be ``y``, which gets the gradient but need not be computed."""
    return value


_replace.defvjp(lambda y, value: (value, None), lambda _, d: (d, None))


def _sum_type(dtype: jnp.dtype) -> jnp.dtype:
    """That in which the gradients of several blocks are added up."""
    return jnp.promote_types(dtype, jnp.float32)


def _zeros(rows: Rows) -> Callable[[tuple[int, ...], jnp.dtype], jax.Array]:
    """A function that makes arrays of zeros. XLA would merge equal constants into one buffer, and
    then copy it in every round: each buffer begins with a zero of its own, which only the running
    program knows to be one.
    """
    numbers, R = itertools.count(), rows.choice_R.shape[0]

    def new(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        zero = jnp.minimum(take(rows.choice_R, jnp.int32(next(numbers) % R)), 0)
        return jnp.broadcast_to(zero, shape).astype(dtype)

    return new
