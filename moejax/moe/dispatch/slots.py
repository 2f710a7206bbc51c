"""Experts on slots: what comes between filling and emptying them."""

import jax

from moejax.moe import experts
from moejax.moe.experts import Dropout
from moejax.runtime import partition


def compute(
    params: dict[str, jax.Array],
    x_GRD: jax.Array,
    activation: str,
    dropout: Dropout | None = None,
    *,
    fsdp: bool = False,
) -> jax.Array:
    """Each expert on its own slots: ``y_GRD``, R the slots of all experts, expert after expert.

    Both ends of both moves are pinned to the mesh: with one end free, XLA inserts all-gathers.
    """
    E, (G, R, D) = params["w_down_EFD"].shape[0], x_GRD.shape
    params = {name: partition.gather_weight(w, name, fsdp) for name, w in params.items()}
    x_GRD = partition.pin(x_GRD, "tokens_GSD")
    x_EGCD = partition.pin(x_GRD.reshape(G, E, -1, D).swapaxes(0, 1), "slots_EGCD")
    y_EGCD = partition.pin(experts.bank(params, x_EGCD, activation, dropout), "slots_EGCD")
    return partition.pin(y_EGCD.swapaxes(0, 1).reshape(G, R, D), "tokens_GSD")
