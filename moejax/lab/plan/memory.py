"""What lies in a device's memory: what stays, and what is there at the peak of a training step."""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from moejax.config.config import Config
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.lab.plan.step_flops import dispatch_of, slots_of
from moejax.models.decoder import DecoderLM, cache_for, seen
from moejax.models.layer_runs import find_stack
from moejax.models.layers import Block
from moejax.moe.experts import matrices
from moejax.runtime import device_mesh
from moejax.runtime.partition import parameter_spec

FLOAT = 4
"""Bytes of a float32: parameters, gradients and what the optimizer keeps."""


@dataclass(frozen=True)
class Parameter:
    """A parameter, layers and experts stacked, on one device of the mesh in use."""

    name: str
    size: float
    """Numbers of it that lie here."""
    gathered: float
    """Numbers of it that products need here: without FSDP, the same."""
    layer: tuple[str, ...]
    """Which layers' it is; empty for those outside the layers."""
    layers: int
    """How many they are."""
    copies: int
    """How many devices with other tokens have the same numbers."""


def parameter_shapes(config: Config, vocab_size: int) -> dict:
    """The parameters of a decoder, as shapes; without a mesh."""
    model = DecoderLM(config.model, vocab_size)
    length = config.data.sequence_length
    tokens = jax.ShapeDtypeStruct((config.sequences_per_group, length), jnp.int32)
    batch = {"inputs": tokens, "segments": tokens, "positions": tokens}
    return jax.eval_shape(
        lambda key, b: model.init(key, b, True)["params"], jax.random.key(0), batch
    )


def local_parameters(config: Config, params: dict, grid: AbstractMesh) -> list[Parameter]:
    """All parameters (their shapes), as they lie on a device of the mesh."""
    sizes = dict(grid.shape)

    def parts(name: str, fsdp: bool, of: tuple[str, ...] = device_mesh.AXES) -> int:
        axes = [a for axis in parameter_spec(name, fsdp) for a in _several(axis)]
        return math.prod(sizes[axis] for axis in axes if axis in of)

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> Parameter:
        name, layer = path[-1].key, find_stack([key.key for key in path])
        here, whole = leaf.size / parts(name, config.mesh.fsdp), leaf.size / parts(name, False)
        alike = math.prod(sizes[axis] for axis in device_mesh.TOKENS)
        copies = alike // parts(name, config.mesh.fsdp, device_mesh.TOKENS)
        return Parameter(name, here, whole, layer, leaf.shape[0] if layer else 0, copies)

    found = jax.tree_util.tree_map_with_path(one, params)
    return jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, Parameter))


def _several(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axis,) if isinstance(axis, str) else axis or ()


def optimizer_bytes(config: Config, parameters: list[Parameter]) -> dict[str, float]:
    """What the optimizer keeps of a device's parameters: AdamW two moments, Muon one."""
    found = {"muon": 0.0, "adamw": 0.0}
    for p in parameters:
        muon = config.optim.kind_of(p.name) == "muon"
        found["muon" if muon else "adamw"] += FLOAT * p.size * (1 if muon else 2)
    return {name: size for name, size in found.items() if size}


@dataclass(frozen=True)
class Step:
    """The sizes of a training step on one device."""

    T: int
    """Tokens of a micro-batch."""
    N: int
    D: int
    V: int
    itemsize: int
    """Bytes of an activation."""
    heads: float
    kv_heads: float
    slots: float
    """Slots of all groups here, or rows of the grouped form."""
    hidden: float
    """Hidden width of an expert, as far as it is here."""
    split: int
    """Devices of the model axis."""
    dispatch: str
    form: str


def step_of(config: Config, vocab_size: int) -> Step:
    """The sizes of a step on a device of the mesh in use."""
    model, moe, data = config.model, config.model.moe, config.data
    tokens = data.batch_size * data.sequence_length // config.optim.accumulate
    T, split = (
        tokens // device_mesh.token_devices(),
        device_mesh.devices() // device_mesh.token_devices(),
    )
    dispatch, form = dispatch_of(config) if moe.every else ("none", "auto")
    rows = T * moe.top_k
    if dispatch in ("einsum", "gather"):
        rows = T // moe.group_size * moe.num_experts * slots_of(config)
    elif device_mesh.expert_devices() > 1:
        rows = received_rows(config, T)
    return Step(
        T=T,
        N=data.sequence_length,
        D=model.width,
        V=vocab_size,
        itemsize=jnp.dtype(model.dtype).itemsize,
        heads=model.num_heads / split,
        kv_heads=model.key_value_heads / split,
        slots=rows / config.mesh.chunks,
        hidden=moe.hidden_size / split,
        split=split,
        dispatch=dispatch,
        form=form,
    )


def received_rows(config: Config, T: int) -> int:
    """Rows that a device makes room for under ``ragged`` and ``all_gather``: those of the worst
    case, or of ``receive_factor`` fair shares.
    """
    moe, n = config.model.moe, device_mesh.expert_devices()
    here = moe.num_experts // n
    worst = (
        n
        * T
        // moe.group_size
        * min(moe.group_size * min(moe.top_k, here), here * slots_of(config))
    )
    if config.mesh.receive_factor is None:
        return worst
    return min(worst, math.ceil(config.mesh.receive_factor * T * moe.top_k))


def score_bytes(config: Config, step: Step, itemsize: int) -> float:
    """One number for each head, position and position it may see, of one layer."""
    return step.T * step.N * step.heads * itemsize


def attention_kept(config: Config, step: Step) -> float:
    """What the gradient of one attention layer needs, recomputed or not: queries, keys, values,
    probabilities and output.
    """
    model = config.model
    A, U = model.query_head_size, model.value_head_size
    latent = (model.attention.kv_rank or 0) + (model.attention.query_rank or 0)
    numbers = step.heads * (A + U) + step.kv_heads * (A + U) + latent + step.D
    return step.T * numbers * step.itemsize + score_bytes(config, step, step.itemsize)


def attention_workspace(config: Config, step: Step) -> float:
    """What one attention layer's gradient holds for a moment: the gradient of the probabilities in
    float32, and what becomes of it.
    """
    return score_bytes(config, step, FLOAT) + score_bytes(config, step, step.itemsize)


def dispatch_bytes(config: Config, step: Step) -> float:
    """The one-hot tensors of the einsum dispatch: a number for each token and slot of its group,
    as a truth for each choice and as a weight in both products.
    """
    if step.dispatch != "einsum":
        return 0.0
    pairs = step.T * config.model.moe.num_experts * slots_of(config)
    return pairs * (config.model.moe.top_k + 2 * step.itemsize)


def experts_kept(config: Config, step: Step) -> float:
    """What the gradient of the experts needs: their input, and what the activation gets."""
    inner = len(matrices(config.model.activation)) - 1
    return step.slots * (inner * step.hidden + step.D) * step.itemsize


def experts_workspace(config: Config, step: Step) -> float:
    """What the gradient of the experts holds for a moment: that of what they gave, before and after
    it travelled, or that of hidden numbers. ``gather`` weights what they gave in float32.
    """
    ends = (FLOAT if step.dispatch == "gather" else step.itemsize) + step.itemsize
    return step.slots * max(ends * step.D, step.hidden * step.itemsize)


def dense_bytes(config: Config, step: Step, hidden: float) -> float:
    """A dense feed-forward network and its gradient: hidden numbers, theirs, and the output."""
    inner = len(matrices(config.model.activation)) - 1
    return step.T * 2 * inner * hidden / step.split * step.itemsize


def layer_workspace(config: Config, step: Step) -> dict[str, float]:
    """The largest moment of one layer's gradient, recomputed from the layer's input: that of the
    feed-forward network, with what attention needs afterwards; or that of attention.
    """
    model, moe = config.model, config.model.moe
    shared = moe.shared_experts * moe.hidden_size
    attention, scores = attention_kept(config, step), attention_workspace(config, step)
    feed_forward = {"attention kept": attention}
    if any(model.routed_layers):
        feed_forward |= {
            "dispatch": dispatch_bytes(config, step),
            "experts": experts_kept(config, step) + experts_workspace(config, step),
            "shared experts": dense_bytes(config, step, shared),
        }
    else:
        feed_forward["dense"] = dense_bytes(config, step, model.dense_hidden)
    moments = [feed_forward, {"attention kept": attention, "attention scores": scores}]
    return max(moments, key=lambda moment: sum(moment.values()))


def block_residuals(config: Config, step: Step, routed: bool) -> float:
    """Bytes that autodiff keeps of one layer, as it says itself: what is there of the parameters is
    left out. Without a mesh, but for one that says which platform it is.
    """
    model, split = config.model, step.split
    moe = replace(model.moe, hidden_size=model.moe.hidden_size // split)
    if model.moe.every:
        moe = replace(moe, dispatch=step.dispatch)
    model = replace(
        model,
        moe=moe,
        num_heads=model.num_heads // split,
        num_kv_heads=model.key_value_heads // split,
        head_size=model.plain_head_size,
        dense_hidden_size=model.dense_hidden // split,
    )
    return _residuals(model, routed, step.T // step.N, step.N)


@functools.cache
def _residuals(model: ModelConfig, routed: bool, rows: int, length: int) -> float:
    block = Block(model, MeshConfig(), routed, True)
    x_BND = jax.ShapeDtypeStruct((rows, length, model.width), jnp.dtype(model.dtype))
    ids_BN = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    batch = {"segments": ids_BN, "positions": ids_BN, "inputs": ids_BN}
    context = jax.eval_shape(lambda batch: seen(model, batch, None, None)[0], batch)
    each = {"layer": jnp.int32(0)}
    if model.attention.window is not None:
        each["window"] = jnp.int32(0)
    bias_E = jax.ShapeDtypeStruct((model.moe.num_choices,), jnp.float32)
    own = {"bias_E": bias_E} if routed and model.moe.has_selection_bias else {}

    def init(key: jax.Array, x: jax.Array, context: dict, own: dict) -> dict:
        return block.init(key, x, {}, context, each, own)

    def pull(params: dict, x: jax.Array, context: dict, own: dict) -> object:
        def run(params: dict, x: jax.Array) -> object:
            return block.apply(params, x, {}, context, each, own)[::2]

        return jax.vjp(run, params, x)[1]  # its leaves are what is kept

    params = jax.eval_shape(init, jax.random.key(0), x_BND, context, own)
    traced = jax.make_jaxpr(pull)(params, x_BND, context, own).jaxpr
    return kept_bytes(traced, given=len(jax.tree.leaves(params)))


VIEWS = (
    "reshape",
    "squeeze",
    "transpose",
    "expand_dims",
    "broadcast_in_dim",
    "convert_element_type",
)


def kept_bytes(traced: jax.extend.core.Jaxpr, given: int) -> float:
    """Bytes of a program's results, each but once in all its shapes, types and multiples, in the
    smallest of them; what follows from the first ``given`` arguments alone is left out.
    """
    made = {variable: equation for equation in traced.eqns for variable in equation.outvars}

    def origin(variable: Any) -> Any:
        while variable in made:
            equation = made[variable]
            name, big = equation.primitive.name, [v for v in equation.invars if v.aval.shape]
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
        size, source = variable.aval.size * variable.aval.dtype.itemsize, origin(variable)
        if source not in there:
            sizes[source] = min(size, sizes.get(source, size))
    return float(sum(sizes.values()))


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they hold."""

    state: dict[str, float]
    """There before and after a step."""
    moments: dict[str, dict[str, float]]
    """What is there beside it at the moments of a step that may be its peak."""

    @property
    def peak(self) -> float:
        """State and the largest moment."""
        return sum(self.state.values()) + max(sum(m.values()) for m in self.moments.values())

    @property
    def peak_moment(self) -> str:
        """The moment of the peak, by name."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))


def saved_bytes(config: Config, step: Step, remat: str) -> float:
    """What the layers keep for the backward pass: with recomputation their inputs, else all that
    autodiff asks for.
    """
    model = config.model
    if remat == "layer":
        return model.num_layers * step.T * step.D * step.itemsize
    routed = sum(model.routed_layers)
    dense = model.num_layers - routed
    found = routed * block_residuals(config, step, True) if routed else 0.0
    return found + (dense * block_residuals(config, step, False) if dense else 0.0)


def largest_layer(parameters: list[Parameter], field: str) -> float:
    """The most numbers that one layer has of these parameters."""
    of_layer: dict[tuple[str, ...], float] = {}
    for p in parameters:
        of_layer[p.layer] = of_layer.get(p.layer, 0.0) + getattr(p, field) / p.layers
    return max(of_layer.values(), default=0.0)


def memory(config: Config, vocab_size: int, grid: AbstractMesh) -> Memory:
    """What a training step holds on a device of the mesh.

    The peak is at one of three moments: after the logits, when they, their gradient and all that
    layers saved are there; in the backward pass through a layer, when in place of logits there are
    all gradients, and the layer's own intermediate values; at the update. Loops over layers turn
    the parameters of all of them to the type of products first.
    """
    with jax.sharding.use_abstract_mesh(grid):
        step = step_of(config, vocab_size)
    parameters = local_parameters(config, parameter_shapes(config, vocab_size), grid)
    remat, B = config.model.remat, step.itemsize
    layers = [p for p in parameters if p.layers]
    rest = sum(p.gathered for p in parameters if p.name in ("w_head_DV",))
    narrow = B if B < FLOAT else 0
    weights = FLOAT * sum(p.size for p in parameters)
    state = {"weights": weights}
    state |= {f"optimizer, {k}": v for k, v in optimizer_bytes(config, parameters).items()}
    copies = narrow * (sum(p.size for p in layers) + rest)
    gathered = 2 * B * largest_layer(layers, "gathered") if config.mesh.fsdp else 0.0
    added_up = FLOAT * largest_layer([p for p in layers if p.copies > 1], "size")
    saved = saved_bytes(config, step, remat)
    logits = step.T * step.V * (FLOAT + narrow)
    moments = {
        "logits": {"saved for backward": saved, "copies of weights": copies, "logits": logits},
        "backward": {
            "gradients": FLOAT * sum(p.size for p in parameters if p.name != "embedding_VD"),
            "gradients on their way": added_up,
            "copies of weights": copies,
            "gathered weights": gathered,
            "saved for backward": saved,
            "residual stream, mask": step.T * (2 * step.D * B + step.N),
        }
        | (layer_workspace(config, step) if remat == "layer" else transient(config, step)),
        "update": {"gradients": FLOAT * sum(p.size for p in parameters)},
    }
    return Memory(state, {m: {k: v for k, v in has.items() if v} for m, has in moments.items()})


def transient(config: Config, step: Step) -> dict[str, float]:
    """What the gradient of a layer adds for a moment where everything else was saved."""
    found = {"attention scores": attention_workspace(config, step)}
    if any(config.model.routed_layers):
        found["experts"] = experts_workspace(config, step)
        found = dict([max(found.items(), key=lambda item: item[1])])
    return found


def cache_bytes(config: Config, sequences: int, context: int, grid: AbstractMesh) -> float:
    """Keys and values of a device's share of so many sequences, of so many positions."""
    sizes = dict(grid.shape)
    here = math.ceil(sequences / math.prod(sizes[axis] for axis in device_mesh.TOKENS))
    cache = jax.eval_shape(lambda: cache_for(config.model, here, context))
    return sum(
        x.size
        * x.dtype.itemsize
        / (sizes["model"] if "model" in parameter_spec(name, False) else 1)
        for layer in cache.layers
        for name, x in layer.items()
    )
