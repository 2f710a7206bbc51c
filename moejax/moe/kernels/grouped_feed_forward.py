"""The grouped feed-forward: every expert on its own rows, however many; one file a platform."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from moejax.moe.kernels import block_loop, grouped_products
from moejax.moe.kernels.by_platform import by_platform
from moejax.moe.kernels.rows import Rows
from moejax.moe.lying import lie_at
from moejax.moe.quantised import is_quantised
from moejax.moe.trained_bank import part_bank

Params = dict[str, jax.Array]
FILES = {"tpu": "megablox", "cuda": "mosaic_gpu"}
"""The platforms that have grouped products, and where."""
LARGEST_BLOCK = 1024
"""Rows of a block of the loop, on such a platform, where its products do not serve."""


def grouped_feed_forward(
    params: dict[str, Any],
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    activation: str,
    weigh: str = "output",
) -> jax.Array:
    """Each token's chosen experts, weighted and added up: ``y_TD``, in the type of ``x_TD``.

    ``params`` is a bank (see ``experts.bank``), ``rows`` the choices sorted by expert. Costs the
    arithmetic of the chosen rows; choices without an expert add exact zeros, and no gradient.

    In programs for TPUs, and for Hopper GPUs in 16 bits, grouped products of these platforms do
    the work; in others a loop over experts. The choice is made when the program is lowered.

    ``params`` may be ``Lying`` or ``Trained``: a bank in a stack of layers' banks, of which no more
    is read than the chosen experts. One that is ``Lying``, at inference, has no gradient, and may
    be quantised.
    """
    own, stacks, layer = part_bank(params)
    if own:
        return _differentiable(own, stacks, layer, x_TD, weight_TK, rows, activation, weigh)
    static = {"activation": activation, "weigh": weigh}
    return forward(stacks, x_TD, weight_TK, rows, layer, **static)[0]


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _differentiable(
    own: Params,
    stacks: Params,
    layer: Any,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    activation: str,
    weigh: str,
) -> jax.Array:
    return _forward(own, stacks, layer, x_TD, weight_TK, rows, activation, weigh)[0]


Kept = dict[str, jax.Array]
"""The products in front of the activation, by name."""


def _forward(
    own: Params,
    stacks: Params,
    layer: Any,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    activation: str,
    weigh: str,
) -> tuple[jax.Array, tuple]:
    inputs = (stacks or own, x_TD, weight_TK, rows, layer)
    y_TD, kept = forward(*inputs, activation=activation, weigh=weigh)
    empty = {name: jnp.zeros(0, p.dtype) for name, p in own.items()}  # of the types of gradients
    return y_TD, (empty, *inputs, kept)


def _backward(activation: str, weigh: str, saved: tuple, dy_TD: jax.Array) -> tuple:
    empty, *inputs = saved
    grads, dx_TD, dweight_TK = backward(*inputs, dy_TD, activation=activation, weigh=weigh)
    grads = {name: d.astype(empty[name].dtype) for name, d in grads.items()}
    return grads, None, None, dx_TD, dweight_TK, None


_differentiable.defvjp(_forward, _backward)


def forward_shapes(
    params: Params, x_TD: jax.Array, weight_TK: jax.Array, rows: Rows, layer: Any, **static: str
) -> tuple[jax.ShapeDtypeStruct, dict[str, jax.ShapeDtypeStruct]]:
    """What ``forward`` returns."""
    y_TD = jax.ShapeDtypeStruct(x_TD.shape, x_TD.dtype)
    return y_TD, grouped_products.kept_shapes(params, x_TD, rows)


def backward_shapes(
    params: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    layer: Any,
    kept: Kept,
    dy_TD: jax.Array,
    **static: str,
) -> tuple[dict[str, jax.ShapeDtypeStruct], jax.Array, jax.Array]:
    """What ``backward`` returns: of stacks, the gradient of one layer's."""
    skip = 0 if layer is None else 1
    grads = {n: jax.ShapeDtypeStruct(p.shape[skip:], p.dtype) for n, p in params.items()}
    return grads, x_TD, weight_TK


def loop_forward(
    params: Params, x_TD: jax.Array, weight_TK: jax.Array, rows: Rows, layer: Any, **static: Any
) -> tuple[jax.Array, Kept]:
    """By the loop, which keeps nothing: XLA deletes these zeros, as nobody reads them."""
    y_TD = block_loop.forward(lie_at(params, layer), x_TD, weight_TK, rows, **static)
    kept = grouped_products.kept_shapes(params, x_TD, rows)
    return y_TD, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), kept)


def loop_backward(
    params: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    layer: Any,
    kept: Kept,
    dy_TD: jax.Array,
    **static: Any,
) -> tuple[Params, jax.Array, jax.Array]:
    """By the loop."""
    bank = lie_at(params, layer)
    return block_loop.backward(bank, x_TD, weight_TK, rows, dy_TD, **static)


def find_products(platform: str, params: Params, x: jax.Array) -> grouped_products.Products | None:
    """The grouped products of a platform for a bank and input of these shapes and types, or None.

    Their file, and with it Pallas, is imported when a platform is first asked for them. What is
    quantised the loop decodes, an expert at a time.
    """
    if platform not in FILES or any(is_quantised(getattr(p, "stack", p)) for p in params.values()):
        return None
    return import_module(f"moejax.moe.kernels.{FILES[platform]}").products(params, x)


def prefer_products(platform: str, form: Callable, loop: Callable) -> Callable:
    """``form`` with the grouped products of a platform, or the loop where it has none."""

    def run(params: Params, x_TD: jax.Array, *rest: Any, **static: str) -> Any:
        products = find_products(platform, params, x_TD)
        if products is None:
            # One size: a choice between several would wait for the host.
            sizes = (choose_block_size(rest[1]),)
            return loop(params, x_TD, *rest, **static, sizes=sizes)
        return form(products, params, x_TD, *rest, **static)

    return run


def choose_block_size(rows: Rows) -> int:
    """The size of a block where there is but one: about the rows of an expert, a power of two."""
    mean = rows.choice_R.shape[0] // rows.size_E.shape[0]
    return max(32, min(LARGEST_BLOCK, 1 << max(0, mean.bit_length() - 1)))


forward = by_platform(
    "grouped_feed_forward",
    forward_shapes,
    loop_forward,
    **{p: prefer_products(p, grouped_products.forward, loop_forward) for p in FILES},
)
backward = by_platform(
    "grouped_feed_forward_gradient",
    backward_shapes,
    loop_backward,
    **{p: prefer_products(p, grouped_products.backward, loop_backward) for p in FILES},
)
