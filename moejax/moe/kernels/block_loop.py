"""The grouped feed-forward as a loop over experts and blocks of their rows: for CPUs, and wherever
there is no better kernel. It does the arithmetic of the chosen experts and little more.

A block is gathered, computed, and written; weights multiply inside it, so no array of all rows is
ever weighted. Hidden numbers are computed again in the backward pass: kept, they would take most of
the memory of a dense layer. An expert's last block is computed in the smallest of a few sizes that
holds its rows; what it writes beyond them the next expert overwrites.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moejax.moe.adapted import join, split
from moejax.moe.experts import network
from moejax.moe.kernels import few_rows
from moejax.moe.kernels.rows import Rows, round_up, sum_choices, take
from moejax.moe.lying import reads_in_place

Params = dict[str, Any]
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


def forward(
    bank: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    *,
    activation: str,
    weigh: str,
    sizes: Sizes | None = None,
) -> jax.Array:
    """``y_TD``, each token's chosen experts weighted and added up: see ``grouped_feed_forward``."""
    if few_rows.serves(bank, x_TD):
        branches = sizes is None
        return few_rows.forward(bank, x_TD, weight_TK, rows, activation, weigh, branches)
    R, E = rows.choice_R.shape[0], rows.size_E.shape[0]
    sizes = sizes or choose_block_sizes(R, E)
    block, blocks = sizes[-1], _cut_blocks(rows, weight_TK, sizes[-1])
    few = R <= FEW_AN_EXPERT * E and reads_in_place(few_rows.take_expert(bank, 0)["w_down_EFD"])

    def expert(e: jax.Array, y_RD: jax.Array) -> jax.Array:
        params_e: dict[str, Any] = (few_rows.take_expert if few else _take_expert)(bank, e)
        number, cut = blocks(e)

        def run(token: jax.Array, weight: jax.Array) -> jax.Array:
            x = take(x_TD, token)
            y = network(params_e, x, activation, weight_T1=weight[:, None], weigh=weigh)
            return pad_rows(y.astype(y_RD.dtype), block)

        def step(i: jax.Array, y_RD: jax.Array) -> jax.Array:
            at, left, *inputs, _ = cut(i)
            y = _run_by_size(sizes, left, run, *inputs)
            return lax.dynamic_update_slice_in_dim(y_RD, y, at, 0)

        return lax.fori_loop(0, number, step, y_RD)

    y_RD = jnp.zeros((R + block, x_TD.shape[1]), x_TD.dtype)
    y_RD = lax.fori_loop(0, E, expert, y_RD)
    return sum_choices(y_RD, rows.row_TK).astype(x_TD.dtype)


def backward(
    wanted: Params,
    bank: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    dy_TD: jax.Array,
    *,
    activation: str,
    weigh: str,
    sizes: Sizes | None = None,
) -> tuple[Params, jax.Array, jax.Array]:
    """The gradients of what is ``wanted`` (see ``adapted.split``) of ``bank``, of ``x_TD`` and of
    ``weight_TK``, from that of ``y_TD``.
    """
    R, E = rows.choice_R.shape[0], rows.size_E.shape[0]
    sizes = sizes or choose_block_sizes(R, E)
    block, blocks = sizes[-1], _cut_blocks(rows, weight_TK, sizes[-1])
    trained, frozen = split(bank, wanted)

    def run(
        params_e: tuple[Params, Params], token: jax.Array, weight: jax.Array, mine: jax.Array
    ) -> tuple:
        trained_e, frozen_e = params_e

        def compute(trained_e: Params, x: jax.Array, weight: jax.Array) -> jax.Array:
            whole_e = join(trained_e, frozen_e)
            return network(whole_e, x, activation, weight_T1=weight[:, None], weigh=weigh)

        _, pull = jax.vjp(compute, trained_e, take(x_TD, token), weight)
        dparams, dx, dweight = pull(jnp.where(mine[:, None], take(dy_TD, token), 0))
        dparams = jax.tree.map(lambda d: d.astype(jnp.float32), dparams)
        return pad_rows(dx, block), pad_rows(dweight, block), dparams

    def expert(e: jax.Array, carry: tuple) -> tuple:
        *grads, dparams = carry
        params_e = (_take_expert(trained, e), _take_expert(frozen, e))
        number, cut = blocks(e)

        def add_block(i: jax.Array, carry: tuple) -> tuple:
            *grads, dparams_e = carry
            at, _, *inputs = cut(i)
            dx, dweight, more_e = run(params_e, *inputs)
            return *_write_block(at, dx, dweight, *grads), jax.tree.map(jnp.add, dparams_e, more_e)

        # The last block comes first: there is one for an expert without rows, too, and gives zeros.
        last = jnp.maximum(number - 1, 0)
        at, left, *inputs = cut(last)
        dx, dweight, dparams_e = _run_by_size(sizes, left, partial(run, params_e), *inputs)
        carry = *_write_block(at, dx, dweight, *grads), dparams_e
        dx_RD, dweight_R, dparams_e = lax.fori_loop(0, last, add_block, carry)
        return dx_RD, dweight_R, _put_expert(dparams, e, dparams_e)

    # XLA would merge equal constants into one buffer, and then copy it in every round: each buffer
    # begins with a zero of its own, which only the running program knows to be one.
    seeds = (jnp.minimum(take(rows.choice_R, jnp.int32(i % R)), 0) for i in itertools.count())
    dparams = jax.tree.map(lambda p: _fill(p.shape, p.dtype, next(seeds)), trained)
    dx_RD = _fill((R + block, x_TD.shape[1]), x_TD.dtype, next(seeds))
    dweight_R = _fill((R + block,), jnp.float32, next(seeds))
    carry = (dx_RD, dweight_R, dparams)
    dx_RD, dweight_R, dparams = lax.fori_loop(0, E, expert, carry)
    dx_TD = sum_choices(dx_RD, rows.row_TK).astype(x_TD.dtype)
    there_TK = rows.row_TK >= 0
    dweight_TK = jnp.where(there_TK, take(dweight_R, jnp.maximum(rows.row_TK, 0)), 0)
    return dparams, dx_TD, dweight_TK.astype(weight_TK.dtype)


def _cut_blocks(rows: Rows, weight_TK: jax.Array, block: int) -> Callable:
    """A function that gives how many blocks expert e has, and a function that gives block i of
    them: where it starts, how many rows the expert has from there on, and of each row the token,
    the weight, and whether it is the expert's.
    """
    start_E, K = rows.start_E, weight_TK.shape[1]
    token_R = jnp.pad(rows.choice_R // K, (0, block))
    weight_R = jnp.pad(take(weight_TK.reshape(-1), rows.choice_R), (0, block))

    def blocks(e: jax.Array) -> tuple[jax.Array, Callable]:
        def cut(i: jax.Array) -> tuple[jax.Array, ...]:
            at, left = start_E[e] + i * block, rows.size_E[e] - i * block
            mine = jnp.arange(block) < left
            # What is not the expert's repeats the first row, which is finite if anything is.
            token = jnp.where(mine, lax.dynamic_slice_in_dim(token_R, at, block), token_R[0])
            weight = jnp.where(mine, lax.dynamic_slice_in_dim(weight_R, at, block), 0)
            return at, left, token, weight, mine

        return (rows.size_E[e] + block - 1) // block, cut

    return blocks


def _run_by_size(sizes: Sizes, left: jax.Array, run: Callable, *inputs: jax.Array) -> Any:
    """``run`` on so many rows of its inputs as ``left`` says, rounded up to the next size. As a
    conditional copies what it changes, ``run`` gives new arrays, with the rows of a whole block.
    """
    index = (jnp.array(sizes[:-1]) < left).sum()
    return lax.switch(index, [lambda m=m: run(*(x[:m] for x in inputs)) for m in sizes])


def pad_rows(x: jax.Array, rows: int) -> jax.Array:
    """``x`` with zeros below, up to so many rows."""
    return jnp.pad(x, ((0, rows - x.shape[0]), *((0, 0),) * (x.ndim - 1)))


def _take_expert(bank: Params, e: jax.Array) -> Params:
    """The parameters of one expert."""
    parts = few_rows.take_expert(bank, e)
    return jax.tree.map(lambda p: p.cut((0,) * p.ndim, p.shape), parts)


def _write_block(
    at: jax.Array, dx: jax.Array, dweight: jax.Array, dx_RD: jax.Array, dweight_R: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of all rows, with those of a block from row ``at`` on."""
    dx_RD = lax.dynamic_update_slice_in_dim(dx_RD, dx.astype(dx_RD.dtype), at, 0)
    return dx_RD, lax.dynamic_update_slice_in_dim(dweight_R, dweight, at, 0)


def _put_expert(all_params: Params, e: jax.Array, params_e: Params) -> Params:
    """The parameters of all experts, with these for one of them."""
    return jax.tree.map(
        lambda all_, one: lax.dynamic_update_index_in_dim(all_, one.astype(all_.dtype), e, 0),
        all_params,
        params_e,
    )


def _fill(shape: tuple[int, ...], dtype: jnp.dtype, value: jax.Array) -> jax.Array:
    return jnp.broadcast_to(value, shape).astype(dtype)
