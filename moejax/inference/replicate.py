"""A decoder for inference with replicas of its experts.

Letters: P: places of experts and replicas; Q: devices; R: repeats of a block, or replicas.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.models.layer_runs import get_stack, set_stack, stack_layers
from moejax.moe.experts import take_bank
from moejax.moe.parallel.placement import Placement
from moejax.moe.parallel.replicas import list_places
from moejax.runtime import partition


def replicate(
    config: ModelConfig, params: dict, plan: Placement, mesh: Mesh | None = None, fsdp: bool = False
) -> tuple[dict, np.ndarray]:
    """A decoder's parameters with a bank of P places in each routed layer instead of E experts, and
    ``place_LER``, which goes with them into ``DecoderLM``: for inference, on a mesh whose expert
    axis has the plan's devices. With ``mesh``, the new banks lie there as parameters do, and one
    after the other is made. Raises ``ConfigError`` if the plan is of another model.
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
            params = set_stack(params, stack, _place_bank(block, expert_RP, mesh, fsdp))
    return params, list_places(plan)


def check_devices(plan: Placement, mesh: Mesh) -> None:
    """Raise ``ConfigError`` if the experts lie on another number of devices than was planned."""
    planned, there = plan.load_LQ.shape[1], mesh.shape["expert"]
    check(
        planned == there,
        f"the plan is for {planned} devices that hold experts, but on this mesh there are {there}:"
        f" give --mesh.expert {planned}, or plan with --devices {there}.",
    )


def _place_bank(block: dict, expert_RP: np.ndarray, mesh: Mesh | None, fsdp: bool) -> dict:
    """A block of R repeats with its experts in their places."""
    repeat_R1 = np.arange(expert_RP.shape[0])[:, None]
    bank = take_bank(block["moe"])
    shardings: dict[str, Any] = dict.fromkeys(bank)
    if mesh is not None:
        shardings = partition.tree_shardings(mesh, bank, fsdp)
    for name, sharding in shardings.items():
        place = jax.jit(
            lambda w: jax.tree.map(lambda x: x[repeat_R1, expert_RP], w), out_shardings=sharding
        )
        bank[name] = jax.block_until_ready(place(bank[name]))
    return block | {"moe": block["moe"] | bank}
