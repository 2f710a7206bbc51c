"""The grouped feed-forward from two products of a platform: everything that lies between them.

Rows are gathered, pass the three grouped products with the activation between, and are gathered
back; no scatter-add, forward or backward. What the activation gets is kept for the backward pass,
which therefore computes no product twice; ``jax.checkpoint`` around a layer trades that for memory.

Rows past those of the last expert belong to nobody. Kernels leave them unwritten, so anything may
stand there, NaN included: they are replaced (by ``where``, never by multiplying) before arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from moejax.moe import experts
from moejax.moe.kernels.rows import Rows, copy_tokens, round_up, sum_copies
from moejax.moe.lying import lie_at

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Products:
    """What a platform brings. Both accumulate in float32."""

    product: Callable[..., jax.Array]
    """``(x_RD, w_EDF, size_E, transposed, layer) -> y_RF``: the rows of each expert times its
    matrix, or with ``transposed`` times its transpose, given ``w_EFD``; with a ``layer`` (else
    None), given a stack ``w_LEDF``. Rows beyond may be left unwritten."""
    gradient: Callable[..., jax.Array]
    """``(x_RD, dy_RF, size_E) -> dw_EDF``: exact zeros for experts without rows. All rows of the
    arguments are finite."""


def count_rows(rows: int) -> int:
    """Rows of the arrays: a multiple of 512, or of 128 where that would be much."""
    return round_up(rows, 512 if rows > 4096 else 128)


def kept_shapes(params: Params, x_TD: jax.Array, rows: Rows) -> dict[str, jax.ShapeDtypeStruct]:
    """What ``forward`` keeps: the products in front of the activation, by name."""
    R = count_rows(rows.choice_R.shape[0])
    w = {
        name: p
        for name, p in experts.strip_dimensions(params).items()
        if name in ("w_up", "w_gate")
    }
    return {name[2:]: jax.ShapeDtypeStruct((R, p.shape[-1]), x_TD.dtype) for name, p in w.items()}


def forward(
    products: Products,
    params: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    layer: jax.Array | None = None,
    *,
    activation: str,
    weigh: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``y_TD`` as in ``grouped_feed_forward``, and what ``backward`` needs beside the inputs."""
    made = {}

    def product(x_RD: jax.Array, w_EDF: jax.Array, name: str) -> jax.Array:
        made[name] = products.product(x_RD, w_EDF, rows.size_E, False, layer)
        return made[name]

    y_TD = _run_network(
        product, cut_biases(params, layer), x_TD, weight_TK, rows, activation, weigh
    )
    return y_TD, {name: y_RF for name, y_RF in made.items() if name != "down"}


def backward(
    products: Products,
    params: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    layer: jax.Array | None,
    kept: dict[str, jax.Array],
    dy_TD: jax.Array,
    *,
    activation: str,
    weigh: str,
) -> tuple[Params, jax.Array, jax.Array]:
    """The gradients of ``params`` (of stacks, those of one layer's), ``x_TD`` and ``weight_TK``,
    from that of ``y_TD``.
    """
    matrices = {n: p for n, p in params.items() if n.startswith("w_")}
    stacks = experts.strip_dimensions(matrices)
    params = cut_biases(params, layer)
    if layer is not None:  # what gradients go to: only shape and type matter
        params |= {n: jnp.zeros(p.shape[1:], p.dtype) for n, p in matrices.items()}

    def product(x_RD: jax.Array, w_EDF: jax.Array, name: str) -> jax.Array:
        # The last product's value has no part in any gradient.
        last = jnp.zeros((x_RD.shape[0], w_EDF.shape[-1]), x_RD.dtype)
        where = (stacks[f"w_{name}"], layer, rows.size_E)
        return _reuse(products, x_RD, w_EDF, where, kept.get(name, last))

    def run(params: Params, x_TD: jax.Array, weight_TK: jax.Array) -> jax.Array:
        return _run_network(product, params, x_TD, weight_TK, rows, activation, weigh)

    _, pull = jax.vjp(run, params, x_TD, weight_TK)
    return pull(dy_TD)


Where = tuple[jax.Array, jax.Array | None, jax.Array]
"""A matrix for each expert or a stack of them, the layer in it or None, and each expert's rows."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reuse(
    products: Products, x_RD: jax.Array, w_EDF: jax.Array, where: Where, y_RF: jax.Array
) -> jax.Array:
    """The product of ``x_RD`` and the matrices of ``where``, known to be ``y_RF``, so that only its
    gradient is computed; that of the matrices goes to ``w_EDF``.
    """
    return y_RF


def _reuse_forward(
    products: Products, x_RD: jax.Array, w_EDF: jax.Array, where: Where, y_RF: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, Where]]:
    return y_RF, (x_RD, where)


def _reuse_backward(
    products: Products, saved: tuple[jax.Array, Where], dy_RF: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    x_RD, (w, layer, size_E) = saved
    dx_RD = products.product(dy_RF, w, size_E, True, layer)
    dw_EDF = products.gradient(x_RD, dy_RF, size_E)
    dx_RD = _keep_owned(_mark_owned(size_E, dx_RD.shape[0]), dx_RD)
    return dx_RD, dw_EDF.astype(w.dtype), None, None


_reuse.defvjp(_reuse_forward, _reuse_backward)


def cut_biases(params: Params, layer: jax.Array | None) -> Params:
    """A bank with the biases of a layer, where it is in a stack: they are small."""
    if layer is None:
        return params
    cut = lie_at(params, layer)
    return {n: jnp.asarray(cut[n]) if n.startswith("b_") else p for n, p in params.items()}


def _run_network(
    product: Callable,
    params: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    activation: str,
    weigh: str,
) -> jax.Array:
    """The feed-forward of ``experts`` on gathered rows: ``y_TD``."""
    R = count_rows(rows.choice_R.shape[0])
    owned_R = _mark_owned(rows.size_E, R)
    choice_R = jnp.pad(rows.choice_R, (0, R - rows.choice_R.shape[0]))
    # The others repeat the first row, which is finite if anything is.
    choice_R = jnp.where(owned_R, choice_R, choice_R[0])
    token_R, row_TK = choice_R // weight_TK.shape[1], rows.row_TK
    parts = experts.strip_dimensions(params)

    def affine(x_RD: jax.Array, name: str, scale: jax.Array | float) -> jax.Array:
        y_RF = product(x_RD, parts[f"w_{name}"], name)
        if name != "down":  # of the last product's rows only those with a choice are read
            y_RF = _keep_owned(owned_R, y_RF)
        bias_EF = parts.get(f"b_{name}")
        if bias_EF is None:
            return y_RF
        return y_RF + (scale * _spread_bias(bias_EF, rows, R)).astype(y_RF.dtype)

    x_RD = copy_tokens(x_TD, token_R, row_TK)
    weight_R1 = copy_tokens(weight_TK.reshape(-1, 1), choice_R, row_TK.reshape(-1, 1))
    y_RD = experts.feed_forward(affine, x_RD, activation, weight_T1=weight_R1, weigh=weigh)
    return sum_copies(y_RD, token_R, row_TK)


def _spread_bias(bias_EF: jax.Array, rows: Rows, R: int) -> jax.Array:
    """The bias of each row's expert, ``bias_RF``; zeros in rows without. A product with a one-hot
    matrix, as its gradient then needs no scatter-add.
    """
    past_R1 = jnp.arange(R)[:, None] - rows.start_E
    one_hot_RE = ((past_R1 >= 0) & (past_R1 < rows.size_E)).astype(bias_EF.dtype)
    return jnp.dot(one_hot_RE, bias_EF, precision=jax.lax.Precision.HIGHEST)


def _mark_owned(size_E: jax.Array, R: int) -> jax.Array:
    """Which rows belong to an expert: ``owned_R``."""
    return jnp.arange(R) < size_E.sum()


def _keep_owned(owned_R: jax.Array, x_RD: jax.Array) -> jax.Array:
    return jnp.where(owned_R[:, None], x_RD, 0)
