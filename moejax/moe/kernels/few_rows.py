"""The grouped feed-forward of few tokens: the experts that they chose, one after another, each read
where it lies. For CPUs, and for what the products of other platforms do not take.

The number of steps is fixed: as many as there can be chosen experts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moejax.moe import lying
from moejax.moe.experts import network
from moejax.moe.kernels.rows import Rows, sum_choices, take

Params = dict[str, Any]


def serves(params: Params, x_TD: jax.Array) -> bool:
    """Whether this is the better way for these shapes."""
    _, F, D = params["w_down_EFD"].shape
    return x_TD.shape[0] <= lying.FEW_ROWS and D * F >= lying.SMALL


def forward(
    params: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    activation: str,
    weigh: str,
    branches: bool = True,
) -> jax.Array:
    """``y_TD``: see ``grouped_feed_forward``. ``params`` are ``Lying``. Without ``branches``, for
    which a GPU would wait for the host, each expert computes T rows, and so do some without any.
    """
    (T, D), K, R, E = x_TD.shape, weight_TK.shape[1], rows.choice_R.shape[0], rows.size_E.shape[0]
    chosen_first_E = jnp.argsort(rows.size_E == 0, stable=True)
    choice_R = jnp.pad(rows.choice_R, (0, T))
    weight_R = take(weight_TK.reshape(-1), choice_R)

    def run(most: int, e: jax.Array, start: jax.Array) -> jax.Array:
        """So many rows of an expert; what is not its own the next expert overwrites."""
        x = take(x_TD, lax.dynamic_slice_in_dim(choice_R, start, most) // K)
        weight = lax.dynamic_slice_in_dim(weight_R, start, most)
        y = network(take_expert(params, e), x, activation, weight_T1=weight[:, None], weigh=weigh)
        return jnp.pad(y, ((0, T - most), (0, 0)))

    def visit(i: jax.Array, y_RD: jax.Array) -> jax.Array:
        e = chosen_first_E[i]
        start, size = rows.start_E[e], rows.size_E[e]
        if not branches:
            y = run(T, e, start)
            return lax.dynamic_update_slice_in_dim(y_RD, y, jnp.where(size > 0, start, R), 0)
        forms = [lambda e, start, most=most: run(most, e, start) for most in sorted({1, T})]
        none = [lambda e, start: jnp.zeros((T, D), x_TD.dtype)]
        y = lax.switch((size > 0).astype(jnp.int32) + (size > 1), none + forms, e, start)
        start = jnp.where(size > 0, start, R)
        return lax.dynamic_update_slice_in_dim(y_RD, y, start, 0)

    y_RD = lax.fori_loop(0, min(E, R), visit, jnp.zeros((R + T, D), x_TD.dtype))
    return sum_choices(y_RD, rows.row_TK).astype(x_TD.dtype)


def take_expert(params: Params, e: Any) -> Params:
    """One expert of a bank."""
    return jax.tree.map(lambda p: p.at_index(e), params)
