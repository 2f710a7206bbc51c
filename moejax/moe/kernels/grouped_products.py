"""The grouped feed-forward from two products of a platform: everything that lies between them.

Rows are gathered, pass the three grouped products with the activation between, and are gathered
back; no scatter-add, forward or backward. What the activation gets is kept for the backward pass,
which therefore computes no product twice; ``jax.checkpoint`` around a layer trades that for memory.

Rows past those of the last expert belong to nobody. Kernels leave them unwritten, so anything may
stand there, NaN included: they are replaced (by ``where``, never by multiplying) before arithmetic.

Letters: P: rank of adapters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moejax.moe import experts
from moejax.moe.adapted import Adapted, join, split
from moejax.moe.kernels.rows import Rows, copy_tokens, round_up, sum_copies
from moejax.moe.lying import Lying

Params = dict[str, Any]


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
    unit: int = 1
    """Widths must be multiples of it."""


def count_rows(rows: int) -> int:
    """Rows of the arrays: a multiple of 512, or of 128 where that would be much."""
    return round_up(rows, 512 if rows > 4096 else 128)


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

    def product(x_RD: jax.Array, w_EDF: jax.Array, name: str | None) -> jax.Array:
        if name is None:
            return products.product(x_RD, w_EDF, rows.size_E, False, None)
        made[name] = products.product(x_RD, w_EDF, rows.size_E, False, layer)
        return made[name]

    params, unit = cut_small(params, layer), products.unit
    y_TD = _run_network(product, unit, params, x_TD, weight_TK, rows, activation, weigh)
    return y_TD, {name: y_RF for name, y_RF in made.items() if name != "down"}


def backward(
    products: Products,
    wanted: Params,
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
    """The gradients of what is ``wanted`` (see ``adapted.split``) of ``params`` (of stacks, those
    of one layer's), of ``x_TD`` and of ``weight_TK``, from that of ``y_TD``.
    """
    bases = {n: p.w if isinstance(p, Adapted) else p for n, p in params.items() if n[:2] == "w_"}
    stacks = experts.strip_dimensions(bases)
    params = cut_small(params, layer)
    if layer is not None:  # what gradients go to: only shape and type matter
        empty = {n: jnp.zeros(p.shape[1:], p.dtype) for n, p in bases.items()}
        params |= {n: put_base(params[n], base) for n, base in empty.items()}
    trained, frozen = split(params, wanted)

    def product(x_RD: jax.Array, w_EDF: jax.Array, name: str | None) -> jax.Array:
        if name is None:
            fixed = jax.lax.stop_gradient((x_RD, w_EDF))
            y_RF = products.product(*fixed, rows.size_E, False, None)
            return _reuse(products, x_RD, w_EDF, (fixed[1], None, rows.size_E), y_RF)
        # The last product's value has no part in any gradient.
        last = jnp.zeros((x_RD.shape[0], w_EDF.shape[-1]), x_RD.dtype)
        where = (stacks[f"w_{name}"], layer, rows.size_E)
        return _reuse(products, x_RD, w_EDF, where, kept.get(name, last))

    def run(trained: Params, x_TD: jax.Array, weight_TK: jax.Array) -> jax.Array:
        params, unit = join(trained, frozen), products.unit
        return _run_network(product, unit, params, x_TD, weight_TK, rows, activation, weigh)

    _, pull = jax.vjp(run, trained, x_TD, weight_TK)
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
    products: Products, x_RD: Any, w_EDF: Any, where: Any, y_RF: Any
) -> tuple[jax.Array, tuple[jax.Array | None, Where]]:
    """Arrays come with a mark whether they are differentiated; only a matrix that is needs x."""
    x = x_RD.value if w_EDF.perturbed else None
    return y_RF.value, (x, jax.tree.map(lambda p: p.value, where))


def _reuse_backward(
    products: Products, saved: tuple[jax.Array | None, Where], dy_RF: jax.Array
) -> tuple[jax.Array, jax.Array | None, None, None]:
    x_RD, (w, layer, size_E) = saved
    dx_RD = products.product(dy_RF, w, size_E, True, layer)
    dx_RD = _keep_owned(_mark_owned(size_E, dx_RD.shape[0]), dx_RD)
    if x_RD is None:
        return dx_RD, None, None, None
    return dx_RD, products.gradient(x_RD, dy_RF, size_E).astype(w.dtype), None, None


_reuse.defvjp(_reuse_forward, _reuse_backward, symbolic_zeros=True)


def cut_small(params: Params, layer: jax.Array | None) -> Params:
    """A bank with the biases and the adapters of a layer, where it is in a stack."""
    if layer is None:
        return params

    def cut(part: Any) -> jax.Array:
        return jnp.asarray(Lying(part, (layer,)))

    found: Params = {n: cut(p) for n, p in params.items() if n.startswith("b_")}
    for name, p in params.items():
        if isinstance(p, Adapted):
            found[name] = replace(p, a=cut(p.a), b=cut(p.b))
    return params | found


def _run_network(
    product: Callable,
    unit: int,
    params: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    activation: str,
    weigh: str,
) -> jax.Array:
    """The feed-forward of ``experts`` on gathered rows: ``y_TD``. ``product`` gets the name of a
    matrix, or None for one of an adapter, whose rank is filled up to a multiple of ``unit``.
    """
    R = count_rows(rows.choice_R.shape[0])
    owned_R = _mark_owned(rows.size_E, R)
    choice_R = jnp.pad(rows.choice_R, (0, R - rows.choice_R.shape[0]))
    # The others repeat the first row, which is finite if anything is.
    choice_R = jnp.where(owned_R, choice_R, choice_R[0])
    token_R, row_TK = choice_R // weight_TK.shape[1], rows.row_TK
    parts = experts.strip_dimensions(params)

    def affine(x_RD: jax.Array, name: str, scale: jax.Array | float) -> jax.Array:
        w = parts[f"w_{name}"]
        if isinstance(w, Adapted):
            a, b = fill_rank(w, unit)
            less_RP = _keep_owned(owned_R, product(x_RD, a, None))
            y_RF = product(x_RD, w.w, name) + product(less_RP * w.scale, b, None)
        else:
            y_RF = product(x_RD, w, name)
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


def put_base(w: Any, base: jax.Array) -> Any:
    """``base`` in the place of a matrix, or of that which has an adapter."""
    return replace(w, w=base) if isinstance(w, Adapted) else base


def fill_rank(w: Adapted, unit: int) -> tuple[jax.Array, jax.Array]:
    """Both parts of an adapter, with zeros up to a rank that is a multiple of ``unit``."""
    more = (0, -w.b.shape[-2] % unit)
    return jnp.pad(w.a, [(0, 0), (0, 0), more]), jnp.pad(w.b, [(0, 0), more, (0, 0)])


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
