"""What the layers keep from the forward to the backward pass."""

import functools
from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from moejax.config.config import Config
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig, Remat
from moejax.lab.plan.step_sizes import StepSizes
from moejax.models.layer_runs import LayerKind, list_blocks
from moejax.models.layers import Block, settings_of_layers
from moejax.models.make_context import make_context
from moejax.models.recompute import recompute


def block_residuals(config: Config, step: StepSizes, kind: LayerKind) -> float:
    """Bytes that autodiff keeps of one layer, read from its program; copies of parameters, and what
    all layers look at, are left out. The layer has the sizes of one device's part, so no mesh is
    needed but to know the platform.
    """
    model, split = config.model, step.split
    moe = replace(model.moe, hidden_size=model.moe.hidden_size // split)
    if step.dispatch != "none":
        moe = replace(moe, dispatch=step.dispatch)
    sizes = model.delta_sizes
    delta = replace(
        model.delta,
        key_heads=sizes.key_heads // split,
        value_heads=sizes.value_heads // split,
    )
    model = replace(
        model,
        moe=moe,
        delta=delta,
        num_heads=model.num_heads // split,
        num_kv_heads=model.key_value_heads // split,
        head_size=model.plain_head_size,
        dense_hidden_size=model.dense_hidden // split,
        # All forms but one keep the same.
        attention=replace(
            model.attention, form="dense" if step.attention == "dense" else "blockwise"
        ),
    )
    # Those of a row's sequence, of which a device has a piece.
    pieces, length = step.pieces, step.N // step.pieces
    rows = pieces * (step.T // length)
    return trace_residuals(model, kind, rows, length, pieces) / pieces


@functools.cache
def trace_residuals(
    model: ModelConfig, kind: LayerKind, rows: int, length: int, pieces: int = 1
) -> float:
    """``block_residuals`` of a layer of a model, for so many rows of a length, which are ``pieces``
    of sequences.
    """
    block = recompute(Block, model, True)(model, MeshConfig(context=pieces), kind, True)
    x_BND = jax.ShapeDtypeStruct((rows, length, model.width), jnp.dtype(model.dtype))
    ids_BN = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    batch = {"segments": ids_BN, "positions": ids_BN, "inputs": ids_BN}
    context = jax.eval_shape(lambda batch: make_context(model, batch, pieces), batch)
    each = {"layer": jnp.int32(0)}
    each |= {name: jnp.int32(0) for name in settings_of_layers(model)}
    bias_E = jax.ShapeDtypeStruct((model.moe.num_choices,), jnp.float32)
    own = {"bias_E": bias_E} if kind.routed and model.moe.has_selection_bias else {}

    def init(key: jax.Array, x: jax.Array, context: dict, own: dict) -> Any:
        return block.init(key, x, {}, context, each, own)

    def pull(params: dict, context: dict, own: dict, x: jax.Array) -> Any:
        def run(params: dict, x: jax.Array) -> Any:
            return block.apply(params, x, {}, context, each, own)[::2]

        return jax.vjp(run, params, x)[1]  # its leaves are what is kept

    params = jax.eval_shape(init, jax.random.key(0), x_BND, context, own)
    given = (params, context, own)
    traced = jax.make_jaxpr(pull)(*given, x_BND).jaxpr
    return kept_bytes(traced, given=len(jax.tree.leaves(given)))


VIEWS = (
    "reshape",
    "squeeze",
    "transpose",
    "expand_dims",
    "broadcast_in_dim",
    "convert_element_type",
    "name",
)


def _abstract(variable: Any) -> jax.core.ShapedArray:
    return variable.aval


def kept_bytes(traced: jax.extend.core.Jaxpr, given: int) -> float:
    """Bytes of a program's results. A result that appears in several shapes, types or multiples
    counts once, at its smallest; what comes from the first ``given`` arguments alone is left out.
    """
    made = {variable: equation for equation in traced.eqns for variable in equation.outvars}

    def origin(variable: Any) -> Any:
        while variable in made:
            equation = made[variable]
            name, big = equation.primitive.name, [v for v in equation.invars if _abstract(v).shape]
            scaled = name in ("mul", "add") and len(big) == 1
            if not big or name not in VIEWS and not scaled:
                break
            variable = big[0]
        return variable

    there = set(traced.invars[:given])
    sizes: dict[Any, int] = {}
    for variable in traced.outvars:
        if isinstance(variable, jax.extend.core.Literal):
            continue
        array, source = _abstract(variable), origin(variable)
        size = array.size * array.dtype.itemsize
        if source not in there:
            sizes[source] = min(size, sizes.get(source, size))
    return float(sum(sizes.values()))


def saved_bytes(config: Config, step: StepSizes, remat: Remat) -> float:
    """What all layers keep for the backward pass under a policy of recomputation: everything that
    autodiff needs, or only their inputs, or what lies between.
    """
    model = config.model
    if remat in ("layer", "offload") and not model.remat_keep:
        return len(model.routed_blocks) * step.T * step.D * step.itemsize
    config = replace(config, model=replace(model, remat=remat))
    counts = Counter(list_blocks(model))
    return sum(n * block_residuals(config, step, kind) for kind, n in counts.items())
