"""A decoder for inference with replicas of its experts.

Letters: P: places of experts and replicas; Q: devices; R: repeats of a block, or replicas.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.models.layer_runs import get_stack, set_stack, stack_layers
from moejax.moe.experts import take_bank
from moejax.moe.parallel.move import make_fill
from moejax.moe.parallel.placement import Placement
from moejax.moe.parallel.replan import plan_copies
from moejax.moe.parallel.replicas import list_places
from moejax.runtime import partition


def replicate(
    config: ModelConfig,
    params: dict,
    plan: Placement,
    mesh: Mesh | None = None,
    fsdp: bool = False,
    free: bool = False,
) -> tuple[dict, np.ndarray]:
    """A decoder's parameters with a bank of P places in each routed layer instead of E experts, and
    ``place_LER``, which goes with them into ``DecoderLM``: for inference, on a mesh whose expert
    axis has the plan's devices. With ``mesh``, the new banks lie there as parameters do; one matrix
    of them after the other is made, and experts are sent to where they go alone. With ``free``, the
    banks that are given are of no more use: their memory is free then. Raises ``ConfigError`` if
    the plan is of another model.
    """
    L, E = sum(config.routed_blocks), config.moe.num_experts
    planned = (plan.expert_LP.shape[0], plan.replicas_LE.shape[1])
    check(
        planned == (L, E),
        f"the plan is of {planned[0]} layers of {planned[1]} experts, but the model has {L} routed"
        f" layers of {E}.",
    )
    for stack in stack_layers(config):
        if stack.routed is not None:
            block, expert_RP = get_stack(params, stack), plan.expert_LP[list(stack.routed)]
            params = set_stack(params, stack, _place_bank(block, expert_RP, mesh, fsdp, free))
    return params, list_places(plan)


def check_devices(plan: Placement, mesh: Mesh) -> None:
    """Raise ``ConfigError`` if the experts lie on another number of devices than was planned."""
    planned, there = plan.load_LQ.shape[1], mesh.shape["expert"]
    check(
        planned == there,
        f"the plan is for {planned} devices that hold experts, but on this mesh there are {there}:"
        f" give --mesh.expert {planned}, or plan with --devices {there}.",
    )


def _place_bank(
    block: dict, expert_RP: np.ndarray, mesh: Mesh | None, fsdp: bool, free: bool
) -> dict:
    """A block of R repeats with its experts in their places."""
    bank = take_bank(block["moe"])
    if mesh is None:
        repeat_R1 = np.arange(expert_RP.shape[0])[:, None]
        bank = jax.tree.map(lambda x: x[repeat_R1, expert_RP], bank)
        return block | {"moe": block["moe"] | bank}
    shardings = partition.tree_shardings(mesh, bank, fsdp)
    experts, devices = jax.tree.leaves(bank)[0].shape[1], mesh.shape["expert"]
    copies = [plan_copies(np.arange(experts), row_P, devices, anew=True) for row_P in expert_RP]

    def place(w: jax.Array, sharding: NamedSharding) -> jax.Array:
        w = jax.device_put(w, sharding)
        shape = (*expert_RP.shape, *w.shape[2:])
        new = jnp.zeros(shape, w.dtype, device=sharding)
        for repeat, of_layer in enumerate(copies):
            new = make_fill(sharding)(new, w, np.int32(repeat), *of_layer.arrays)
        new = jax.block_until_ready(new)
        if free:
            w.delete()
        return new

    return block | {"moe": block["moe"] | jax.tree.map(place, bank, shardings)}
