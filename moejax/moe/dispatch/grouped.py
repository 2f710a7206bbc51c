"""Dispatch without slots: choices sorted by expert, each expert on as many as there are."""

import jax
import jax.numpy as jnp

from moejax.moe.kernels.grouped_feed_forward import grouped_feed_forward
from moejax.moe.kernels.rows import sort_rows
from moejax.moe.travel import Travel
from moejax.routing.contract import TokenChoice, spread
from moejax.routing.seating import Seating, seat_choices


def route(
    params: dict[str, jax.Array],
    x_GSD: jax.Array,
    choice: TokenChoice,
    real_GS: jax.Array,
    travel: Travel,
) -> tuple[jax.Array, jax.Array]:
    """As ``einsum.route``, also in what is dropped: nothing, where the capacity is the whole group.

    Of one device's tokens, with the whole bank (see ``parallel.on_each_device``); where experts
    are spread, ``parallel.by_rows.route``. Empty slots cost nothing here.
    """
    num_experts = params["w_down_EFD"].shape[0]
    expert_GSK = drop_unseated(choice, real_GS, num_experts, travel.capacity, travel.seating)
    expert_TK = expert_GSK.reshape(-1, expert_GSK.shape[-1])
    y_TD = grouped_feed_forward(
        params,
        x_GSD.reshape(expert_TK.shape[0], -1),
        choice.weight_GSK.reshape(expert_TK.shape),
        sort_rows(expert_TK, num_experts),
        travel.activation,
        choice.weigh,
    )
    return y_TD.reshape(x_GSD.shape), spread_seated(expert_GSK, num_experts)


def drop_unseated(
    choice: TokenChoice, real_GS: jax.Array, num_experts: int, capacity: int, seating: Seating
) -> jax.Array:
    """``expert_GSK`` with -1 (int32) for choices that no expert of the bank takes."""
    expert_GSK = choice.expert_GSK
    seated_GSK = (expert_GSK >= 0) & (expert_GSK < num_experts) & real_GS[..., None]
    if capacity < real_GS.shape[1]:
        seated_GSK = seat_choices(choice, real_GS, num_experts, capacity, seating) >= 0
    return jnp.where(seated_GSK, expert_GSK, -1)


def spread_seated(expert_GSK: jax.Array, num_experts: int) -> jax.Array:
    """What each token got of each expert, ``seated_GSE`` (float32), from ``drop_unseated``."""
    return spread(expert_GSK, (expert_GSK >= 0).astype(jnp.float32), num_experts)
