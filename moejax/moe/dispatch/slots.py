"""Experts on slots: what comes between filling and emptying them."""

from functools import partial

import jax
from jax.ad_checkpoint import checkpoint_name

from moejax.moe import experts
from moejax.moe.adapted import map_parts
from moejax.moe.parallel import all_to_all
from moejax.moe.travel import Travel
from moejax.runtime import device_mesh, partition


def compute(
    params: dict[str, jax.Array],
    x_GRD: jax.Array,
    travel: Travel,
    weight_GR1: jax.Array | None = None,
) -> jax.Array:
    """Each expert on its own slots: ``y_GRD``, R the slots of all experts, expert after expert.
    ``weight_GR1`` (float32) is what the output of each slot is multiplied by.

    Unless slots are exchanged explicitly, XLA moves them to the experts' devices and back. Both
    ends of both moves are pinned to the mesh: with one end free, XLA inserts all-gathers.
    """
    if weight_GR1 is not None and device_mesh.expert_devices() > 1:
        # By who has the tokens: weights would have to travel, too.
        return (compute(params, x_GRD, travel) * weight_GR1).astype(x_GRD.dtype)
    if travel.exchange == "all_to_all":
        return checkpoint_name(all_to_all.compute(params, x_GRD, travel), "expert_outputs")
    E, (G, R, D) = params["w_down_EFD"].shape[0], x_GRD.shape
    gather = partial(_gather, fsdp=travel.layout.fsdp)
    params = {name: map_parts(gather, name, w) for name, w in params.items()}
    x_GRD = partition.pin(x_GRD, "tokens_GSD")
    x_EGCD = partition.pin(x_GRD.reshape(G, E, -1, D).swapaxes(0, 1), "slots_EGCD")
    x_EGCD = checkpoint_name(x_EGCD, "expert_inputs")
    weight_EGC1 = None
    if weight_GR1 is not None:  # of hidden numbers, so that no gradient asks for the outputs
        weight_EGC1 = weight_GR1.reshape(G, E, -1, 1).swapaxes(0, 1)
    y_EGCD = experts.bank(params, x_EGCD, travel.activation, travel.dropout, weight_EGC1)
    y_EGCD = partition.pin(y_EGCD, "slots_EGCD")
    y_GRD = partition.pin(y_EGCD.swapaxes(0, 1).reshape(G, R, D), "tokens_GSD")
    return checkpoint_name(y_GRD, "expert_outputs")


def _gather(name: str, w: jax.Array, fsdp: bool) -> jax.Array:
    return partition.gather_weight(w, name, fsdp)
