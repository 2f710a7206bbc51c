"""Dispatch without slots: choices sorted by expert, each expert on as many as there are."""

from functools import partial

import jax
import jax.numpy as jnp

from moejax import kernels, mesh
from moejax.experts import Dropout
from moejax.kernels.rows import sort_rows
from moejax.routing.contract import TokenChoice, spread
from moejax.routing.seating import Seating, seat_choices


def route(
    params: dict[str, jax.Array],
    x_GSD: jax.Array,
    choice: TokenChoice,
    real_GS: jax.Array,
    *,
    activation: str,
    capacity: int,
    seating: Seating = "position",
    dropout: Dropout | None = None,
) -> tuple[jax.Array, jax.Array]:
    """As ``einsum.route``, also in what is dropped: nothing, where the capacity is the whole group.

    Empty slots cost nothing here. ``dropout`` must be None.
    """
    if dropout is not None:
        raise ValueError("the grouped dispatch has no expert dropout: use gather or einsum.")
    run = partial(_route, activation=activation, capacity=capacity, seating=seating)
    # Each device sorts its own tokens; none is moved.
    return mesh.by_tokens(run)(params, x_GSD, choice, real_GS)


def _route(params, x_GSD, choice, real_GS, *, activation, capacity, seating):
    num_experts = params["w_down_EFD"].shape[0]
    G, S, D = x_GSD.shape
    expert_GSK = choice.expert_GSK
    seated_GSK = (expert_GSK >= 0) & (expert_GSK < num_experts) & real_GS[..., None]
    if capacity < S:
        seated_GSK = seat_choices(choice, real_GS, num_experts, capacity, seating) >= 0
    expert_TK = jnp.where(seated_GSK, expert_GSK, -1).reshape(G * S, -1)
    y_TD = kernels.feed_forward(
        params,
        x_GSD.reshape(-1, D),
        choice.weight_GSK.reshape(expert_TK.shape),
        sort_rows(expert_TK, num_experts),
        activation,
        choice.weigh,
    )
    seated_GSE = spread(expert_GSK, seated_GSK.astype(jnp.float32), num_experts)
    return y_TD.reshape(x_GSD.shape), seated_GSE
