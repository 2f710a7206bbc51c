"""A decode step compiled from shapes alone: no weights are made, so a model may have any size."""

from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from moejax.config.config import Config
from moejax.config.model import FloatType
from moejax.inference.engine.packing import empty_call, pack
from moejax.inference.engine.runner import make_program
from moejax.inference.engine.sizes_together import sizes_together
from moejax.inference.engine.state import make_empty_state
from moejax.inference.inference_config import inference_config
from moejax.models.by_kind import state_shapes
from moejax.models.used_types import cast_shapes
from moejax.moe.lying import hold
from moejax.moe.quantise_params import Weights, quantise_shapes
from moejax.runtime import device_mesh, partition

LOWERED = {"gpu": "cuda"}
"""What JAX calls a platform when it lowers a program for it, where that has another name."""


def compile_decode(
    config: Config,
    rows: int,
    dtype: FloatType,
    slots: int,
    *,
    vocab_size: int | None = None,
    tokens: int = 1,
    mesh: Mesh | None = None,
    weights: Weights | None = None,
) -> Any:
    """Compile what ``Generator`` runs for each token of ``rows`` texts, with parameters in
    ``dtype`` (see ``cast_shapes``) and pages for ``slots`` positions of each.

    With ``weights``, they are quantised. ``vocab_size`` is by default that of the settings. With
    more ``tokens`` than 1 it is the call that reads prompts of that length. ``mesh`` may have
    described devices (see ``runtime.targets``); by default, one device of this machine. Returns
    JAX's compiled program, whose ``memory_analysis``, ``cost_analysis`` and ``as_text`` tell what
    it takes.
    """
    vocab_size = vocab_size or config.model.vocab_size
    if vocab_size is None:
        raise ValueError("vocab_size: the settings have none, so give it.")
    mesh = mesh or device_mesh.make_mesh(config.mesh, jax.devices()[:1])
    config = replace(
        config, model=inference_config(replace(config.model, dtype=dtype, next_tokens=0))
    )
    with jax.set_mesh(mesh):
        state = decode_state(config, vocab_size, mesh, weights)
        sizes = sizes_together(mesh, rows, tokens, slots - tokens + 1)
        program = make_program(config.model, vocab_size, config.mesh, mesh)
        kept = jax.eval_shape(make_empty_state(config.model, mesh), sizes)
        N = 0 if tokens == 1 else sizes.chunk
        table = (sizes.prompt_tables if N else sizes.tables)[-1]
        packed = pack(empty_call(sizes.lanes * sizes.seats, N, table))
        everywhere = partition.activation_sharding(mesh, "everywhere")
        like = jax.ShapeDtypeStruct(packed.shape, packed.dtype, sharding=everywhere)
        held = (hold(state["params"]), state.get("bias_LE"), None)
        traced = program.trace(held, kept, like, N=N, every=False)
        platform = mesh.devices.flat[0].platform
        return traced.lower(lowering_platforms=(LOWERED.get(platform, platform),)).compile()


def decode_state(
    config: Config, vocab_size: int, mesh: Mesh, weights: Weights | None = None
) -> dict[str, Any]:
    """Shapes of the parameters, in the types in which they are used, and of the selection bias."""
    state = state_shapes(config, vocab_size)
    state["params"] = quantise_shapes(cast_shapes(state["params"], config.model), weights)
    shardings = partition.tree_shardings(mesh, state, config.mesh.fsdp)
    return partition.set_shardings(state, shardings)
