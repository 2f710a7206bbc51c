"""The grouped feed-forward as a loop over experts and blocks of their rows: for CPUs, and wherever
there is no better kernel. It does the arithmetic of the chosen experts and no more.

Weights multiply inside a block, so no array of all rows is ever weighted; hidden numbers are
computed again in the backward pass, which is cheaper than keeping them. Blocks may hang over the
end of their expert: in the output the next expert overwrites that, in the gradients it is masked.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from moejax.experts import network
from moejax.kernels.rows import Rows, sum_choices, take

Params = dict[str, jax.Array]


def block_size(rows: int, num_experts: int) -> int:
    """Rows of a block: about what an expert has, so that little work is lost on overhang."""
    return max(32, min(256, 1 << max(0, (rows // num_experts).bit_length() - 1)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def feed_forward(
    params: Params, x_TD: jax.Array, weight_TK: jax.Array, rows: Rows, activation: str, weigh: str
) -> jax.Array:
    """``y_TD``, each token's chosen experts weighted and added up: see ``kernels.feed_forward``."""
    return _forward(params, x_TD, weight_TK, rows, activation, weigh)[0]


def _forward(params, x_TD, weight_TK, rows, activation, weigh):
    block = block_size(rows.choice_R.shape[0], rows.size_E.shape[0])
    window = _windows(x_TD, weight_TK, rows, block)

    def expert(e: jax.Array, y_RD: jax.Array) -> jax.Array:
        params_e = _of(params, e)

        def step(i: jax.Array, y_RD: jax.Array) -> jax.Array:
            at, _, x, weight = window(e, i)
            y = network(params_e, x, activation, weight_T1=weight, weigh=weigh)
            return lax.dynamic_update_slice_in_dim(y_RD, y.astype(y_RD.dtype), at, 0)

        return lax.fori_loop(0, _blocks(rows, e, block), step, y_RD)

    y_RD = jnp.zeros((rows.choice_R.shape[0] + block, x_TD.shape[1]), x_TD.dtype)
    y_RD = lax.fori_loop(0, rows.size_E.shape[0], expert, y_RD)
    y_TD = sum_choices(y_RD, rows.row_TK).astype(x_TD.dtype)
    return y_TD, (params, x_TD, weight_TK, rows)


def _backward(activation, weigh, saved, dy_TD):
    params, x_TD, weight_TK, rows = saved
    R, E = rows.choice_R.shape[0], rows.size_E.shape[0]
    block = block_size(R, E)
    window = _windows(x_TD, weight_TK, rows, block)

    def expert(e: jax.Array, carry: tuple) -> tuple:
        dx_RD, dweight_R, dparams = carry
        params_e = _of(params, e)

        def step(i: jax.Array, carry: tuple) -> tuple:
            dx_RD, dweight_R, dparams_e = carry
            at, token, x, weight = window(e, i)
            mine = i * block + jnp.arange(block) < rows.size_E[e]
            dy = jnp.where(mine[:, None], take(dy_TD, token), 0)
            _, pull = jax.vjp(
                lambda p, x, w: network(p, x, activation, weight_T1=w, weigh=weigh),
                params_e,
                x,
                weight,
            )
            grads, dx, dweight = pull(dy)
            dx_RD = lax.dynamic_update_slice_in_dim(dx_RD, dx.astype(dx_RD.dtype), at, 0)
            dweight_R = lax.dynamic_update_slice_in_dim(dweight_R, dweight[:, 0], at, 0)
            return dx_RD, dweight_R, jax.tree.map(jnp.add, dparams_e, grads)

        # The first block always runs, also for an expert without rows: it gives its zeros.
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params_e)
        carry = step(jnp.int32(0), (dx_RD, dweight_R, zeros))
        dx_RD, dweight_R, dparams_e = lax.fori_loop(1, _blocks(rows, e, block), step, carry)
        dparams = jax.tree.map(
            lambda all_, one: lax.dynamic_update_index_in_dim(all_, one.astype(all_.dtype), e, 0),
            dparams,
            dparams_e,
        )
        return dx_RD, dweight_R, dparams

    # XLA would merge equal constants into one buffer, and then copy it in every round: each buffer
    # begins with a zero of its own, which only the running program knows to be one.
    seeds = (jnp.minimum(take(rows.choice_R, jnp.int32(i % R)), 0) for i in itertools.count())
    dparams = {name: _filled(p.shape, p.dtype, next(seeds)) for name, p in params.items()}
    dx_RD = _filled((R + block, x_TD.shape[1]), x_TD.dtype, next(seeds))
    dweight_R = _filled((R + block,), jnp.float32, next(seeds))
    carry = (dx_RD, dweight_R, dparams)
    dx_RD, dweight_R, dparams = lax.fori_loop(0, E, expert, carry)
    dx_TD = sum_choices(dx_RD, rows.row_TK).astype(x_TD.dtype)
    there_TK = rows.row_TK >= 0
    dweight_TK = jnp.where(there_TK, take(dweight_R, jnp.maximum(rows.row_TK, 0)), 0)
    return dparams, dx_TD, dweight_TK.astype(weight_TK.dtype), None


feed_forward.defvjp(_forward, _backward)


def _windows(x_TD: jax.Array, weight_TK: jax.Array, rows: Rows, block: int):
    """A function that gives block i of expert e: where it starts, its tokens, inputs, weights."""
    choice_R = jnp.pad(rows.choice_R, (0, block))
    start_E, K = rows.start_E, weight_TK.shape[1]
    weight_R = weight_TK.reshape(-1)

    def window(e: jax.Array, i: jax.Array) -> tuple[jax.Array, ...]:
        at = start_E[e] + i * block
        choice = lax.dynamic_slice_in_dim(choice_R, at, block)
        token = choice // K
        return at, token, take(x_TD, token), take(weight_R, choice)[:, None]

    return window


def _blocks(rows: Rows, e: jax.Array, block: int) -> jax.Array:
    return (rows.size_E[e] + block - 1) // block


def _of(params: Params, e: jax.Array) -> Params:
    """The parameters of one expert."""
    return jax.tree.map(lambda p: lax.dynamic_index_in_dim(p, e, 0, keepdims=False), params)


def _filled(shape: tuple[int, ...], dtype: jnp.dtype, value: jax.Array) -> jax.Array:
    return jnp.broadcast_to(value, shape).astype(dtype)
