"""Experts on slots: what comes between filling and emptying them."""

from functools import partial

import jax
from jax.ad_checkpoint import checkpoint_name

from moejax.moe import experts
from moejax.moe.adapted import map_parts
from moejax.moe.parallel import all_to_all
from moejax.moe.travel import Travel
from moejax.runtime import partition


def compute(params: dict[str, jax.Array], x_GRD: jax.Array, travel: Travel) -> jax.Array:
    """Each expert on its own slots: ``y_GRD``, R the slots of all experts, expert after expert.

    Unless slots are exchanged explicitly, XLA moves them to the experts' devices and back. Both
    ends of both moves are pinned to the mesh: with one end free, XLA inserts all-gathers.
    """
    if travel.exchange == "all_to_all":
        return checkpoint_name(all_to_all.compute(params, x_GRD, travel), "expert_outputs")
    E, (G, R, D) = params["w_down_EFD"].shape[0], x_GRD.shape
    gather = partial(_gather, fsdp=travel.layout.fsdp)
    params = {name: map_parts(gather, name, w) for name, w in params.items()}
    x_GRD = partition.pin(x_GRD, "tokens_GSD")
    x_EGCD = partition.pin(x_GRD.reshape(G, E, -1, D).swapaxes(0, 1), "slots_EGCD")
    x_EGCD = checkpoint_name(x_EGCD, "expert_inputs")
    y_EGCD = experts.bank(params, x_EGCD, travel.activation, travel.dropout)
    y_EGCD = partition.pin(y_EGCD, "slots_EGCD")
    y_GRD = partition.pin(y_EGCD.swapaxes(0, 1).reshape(G, R, D), "tokens_GSD")
    return checkpoint_name(y_GRD, "expert_outputs")


def _gather(name: str, w: jax.Array, fsdp: bool) -> jax.Array:
    return partition.gather_weight(w, name, fsdp)
