"""The grouped feed-forward: every expert on its own rows, however many; one file a platform."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moejax.moe import experts
from moejax.moe.adapted import split
from moejax.moe.kernels import block_loop, grouped_products
from moejax.moe.kernels.by_platform import by_platform
from moejax.moe.kernels.rows import Rows
from moejax.moe.lying import lie_at
from moejax.moe.quantised import is_quantised
from moejax.moe.trained_bank import part_bank
from moejax.runtime import device_mesh

Params = dict[str, Any]
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
    be quantised. Matrices may be ``Adapted``; of what is not differentiated no gradient is made.
    """
    own, stacks, layer = part_bank(params)
    if own:
        return _differentiable(own, stacks, layer, x_TD, weight_TK, rows, activation, weigh)
    static = {"activation": activation, "weigh": weigh, "kept_rows": 0}
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
    inputs = (stacks or own, x_TD, weight_TK, rows, layer)
    return forward(*inputs, activation=activation, weigh=weigh, kept_rows=0)[0]


Kept = dict[str, jax.Array]
"""The products in front of the activation, by name."""


def count_kept_rows(rows: Rows) -> int:
    """Rows of the arrays that are kept for the backward pass, on the platform in use."""
    R, E = rows.choice_R.shape[0], rows.size_E.shape[0]
    if device_mesh.platform() == "cpu":
        return block_loop.count_rows(R, E)
    return grouped_products.count_rows(R)


def _forward(own: Params, stacks: Params, layer: Any, *more: Any) -> tuple[jax.Array, tuple]:
    """Arrays come with a mark whether they are differentiated."""
    *arrays, activation, weigh = more

    def want(p: Any) -> jax.Array | None:
        """An empty array of the type of the gradient, if one is wanted."""
        return None if is_quantised(p) or not p.perturbed else jnp.zeros(0, p.value.dtype)

    wanted = jax.tree.map(want, own, is_leaf=is_quantised)
    inputs = jax.tree.map(lambda p: p.value, (stacks or own, *arrays, layer))
    kept_rows = count_kept_rows(inputs[3])
    y_TD, kept = forward(*inputs, activation=activation, weigh=weigh, kept_rows=kept_rows)
    kept = checkpoint_name(kept, "hidden")
    return y_TD, (wanted, *inputs, kept)


def _backward(activation: str, weigh: str, saved: tuple, dy_TD: jax.Array) -> tuple:
    wanted, *_ = saved
    grads, dx_TD, dweight_TK = backward(*saved, dy_TD, activation=activation, weigh=weigh)
    grads = jax.tree.map(lambda w, d: d.astype(w.dtype), wanted, grads)
    return grads, None, None, dx_TD, dweight_TK, None


_differentiable.defvjp(_forward, _backward, symbolic_zeros=True)


def forward_shapes(
    params: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    layer: Any,
    *,
    kept_rows: int,
    **static: Any,
) -> tuple[jax.ShapeDtypeStruct, dict[str, jax.ShapeDtypeStruct]]:
    """What ``forward`` returns. Of no ``kept_rows`` nothing is kept."""
    y_TD = jax.ShapeDtypeStruct(x_TD.shape, x_TD.dtype)
    return y_TD, kept_shapes(params, x_TD, kept_rows)


def kept_shapes(params: Params, x_TD: jax.Array, kept_rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What ``forward`` keeps: the products in front of the activation, by name."""
    widths = {n: p.shape[-1] for n, p in experts.strip_dimensions(params).items()}
    names = [name for name in ("up", "gate") if kept_rows and f"w_{name}" in widths]
    return {n: jax.ShapeDtypeStruct((kept_rows, widths[f"w_{n}"]), x_TD.dtype) for n in names}


def backward_shapes(
    wanted: Params,
    params: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    layer: Any,
    kept: Kept,
    dy_TD: jax.Array,
    **static: str,
) -> tuple[Params, jax.Array, jax.Array]:
    """What ``backward`` returns: of stacks, the gradient of one layer's."""
    skip = 0 if layer is None else 1
    trained, _ = split(params, wanted)
    grads = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[skip:], p.dtype), trained)
    return grads, x_TD, weight_TK


def loop_forward(
    params: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    layer: Any,
    *,
    kept_rows: int,
    **static: Any,
) -> tuple[jax.Array, Kept]:
    """By the loop. What has no room for all its blocks is not kept: nobody reads these zeros."""
    shapes = kept_shapes(params, x_TD, kept_rows)
    room = has_room(rows, kept_rows, static.get("sizes"))
    inputs = (lie_at(params, layer), x_TD, weight_TK, rows, shapes if room else None)
    y_TD, kept = block_loop.forward(*inputs, **static)
    return y_TD, kept or jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def loop_backward(
    wanted: Params,
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
    if not has_room(rows, len(kept["up"]), static.get("sizes")):
        kept = {}
    inputs = (lie_at(params, layer), x_TD, weight_TK, rows, kept, dy_TD)
    return block_loop.backward(wanted, *inputs, **static)


def has_room(rows: Rows, kept_rows: int, sizes: block_loop.Sizes | None) -> bool:
    """Whether arrays of so many rows hold all blocks of the loop."""
    R, E = rows.choice_R.shape[0], rows.size_E.shape[0]
    return kept_rows >= block_loop.count_rows(R, E, sizes)


def products_forward(
    products: grouped_products.Products, *inputs: Any, kept_rows: int, **static: Any
) -> tuple[jax.Array, Kept]:
    """By the grouped products of a platform."""
    y_TD, made = grouped_products.forward(products, *inputs, **static)
    return y_TD, {name: fit_rows(y, kept_rows) for name, y in made.items()} if kept_rows else {}


def products_backward(
    products: grouped_products.Products,
    wanted: Params,
    params: Params,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    layer: Any,
    kept: Kept,
    dy_TD: jax.Array,
    **static: Any,
) -> tuple[Params, jax.Array, jax.Array]:
    """By the grouped products of a platform."""
    R = grouped_products.count_rows(rows.choice_R.shape[0])
    kept = {name: fit_rows(y, R) for name, y in kept.items()}
    inputs = (wanted, params, x_TD, weight_TK, rows, layer, kept, dy_TD)
    return grouped_products.backward(products, *inputs, **static)


def fit_rows(y_RF: jax.Array, rows: int) -> jax.Array:
    """So many rows of an array, or zeros below it: where a program is not for the platform in use,
    that keeps more or fewer.
    """
    return jnp.pad(y_RF[:rows], ((0, max(0, rows - len(y_RF))), (0, 0)))


def find_products(platform: str, params: Params, x: jax.Array) -> grouped_products.Products | None:
    """The grouped products of a platform for a bank and input of these shapes and types, or None.

    Their file, and with it Pallas, is imported when a platform is first asked for them. What is
    quantised the loop decodes, an expert at a time.
    """
    leaves = jax.tree.leaves(params, is_leaf=is_quantised)
    if platform not in FILES or any(is_quantised(getattr(p, "stack", p)) for p in leaves):
        return None
    return import_module(f"moejax.moe.kernels.{FILES[platform]}").products(params, x)


def prefer_products(platform: str, form: Callable, loop: Callable) -> Callable:
    """``form`` with the grouped products of a platform, or the loop where it has none."""

    def run(*args: Any, **static: Any) -> Any:
        at = next(i for i, arg in enumerate(args) if isinstance(arg, Rows))
        params, x_TD = args[at - 3], args[at - 2]
        products = find_products(platform, params, x_TD)
        if products is None:
            # One size: a choice between several would wait for the host.
            return loop(*args, **static, sizes=(choose_block_size(args[at]),))
        return form(products, *args, **static)

    return run


def choose_block_size(rows: Rows) -> int:
    """The size of a block where there is but one: about the rows of an expert, a power of two."""
    mean = rows.choice_R.shape[0] // rows.size_E.shape[0]
    return max(32, min(LARGEST_BLOCK, 1 << max(0, mean.bit_length() - 1)))


forward = by_platform(
    "grouped_feed_forward",
    forward_shapes,
    loop_forward,
    **{p: prefer_products(p, products_forward, loop_forward) for p in FILES},
)
backward = by_platform(
    "grouped_feed_forward_gradient",
    backward_shapes,
    loop_backward,
    **{p: prefer_products(p, products_backward, loop_backward) for p in FILES},
)
