"""Seating: which choices get one of an expert's C slots in their group, and which are dropped."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from moejax.routing.contract import TokenChoice

Seating = Literal["position", "priority"]


def capacity(group_size: int, top_k: int, num_experts: int, factor: float | None) -> int:
    """Slots of one expert in one group: C = ceil(factor * S * K / E), at most S (Fedus et al. 2021,
    Eq. 3; rounded up, so that a factor of 1 seats everyone at perfect balance). None: room for all.
    """
    if factor is None:
        return group_size
    # A hair less before rounding up, so that 1.1 * 10 is 11 slots and not 12.
    slots = math.ceil(factor * group_size * top_k / num_experts * (1 - 1e-9))
    return min(group_size, max(1, slots))


def seat(expert_GSK: jax.Array, real_GS: jax.Array, num_experts: int, capacity: int) -> jax.Array:
    """Give each choice a slot of its expert, in choice-major order; -1 to those that are dropped.

    All first choices are seated before any second one, each in the order of the tokens (GShard,
    Lepikhin et al. 2020, Algorithm 1). Tokens where ``real_GS`` is False (padding) take no slot,
    and neither do choices outside [0, num_experts). Returns ``slot_GSK`` (int32) in [-1, capacity).
    """
    G, S, K = expert_GSK.shape
    asked_GSKE = expert_GSK[..., None] == jnp.arange(num_experts)
    asked_GSKE &= real_GS[:, :, None, None]
    queue_GRE = asked_GSKE.swapaxes(1, 2).reshape(G, K * S, num_experts).astype(jnp.int32)
    ahead_GRE = jnp.cumsum(queue_GRE, axis=1) - queue_GRE
    slot_GR = jnp.where(queue_GRE > 0, ahead_GRE + 1, 0).sum(-1) - 1  # -1 for padding
    slot_GSK = slot_GR.reshape(G, K, S).swapaxes(1, 2)
    return jnp.where(slot_GSK < capacity, slot_GSK, -1)


def seat_by_priority(
    expert_GSK: jax.Array,
    weight_GSK: jax.Array,
    real_GS: jax.Array,
    num_experts: int,
    capacity: int,
) -> jax.Array:
    """Like ``seat``, but tokens queue by their largest weight, the largest first.

    Batch prioritised routing (Riquelme et al. 2021, section 4.1); equal weights keep the order of
    the tokens. Not causal: a later token may take an earlier one's slot.
    """
    priority_GS = jnp.where(real_GS, jax.lax.stop_gradient(weight_GSK).max(-1), -jnp.inf)
    order_GS = jnp.argsort(-priority_GS, axis=1)
    expert_GSK = jnp.take_along_axis(expert_GSK, order_GS[..., None], axis=1)
    slot_GSK = seat(expert_GSK, jnp.take_along_axis(real_GS, order_GS, 1), num_experts, capacity)
    back_GS = jnp.argsort(order_GS, axis=1)
    return jnp.take_along_axis(slot_GSK, back_GS[..., None], axis=1)


def seat_choices(
    choice: TokenChoice, real_GS: jax.Array, num_experts: int, capacity: int, seating: Seating
) -> jax.Array:
    """``slot_GSK`` of a token choice, in the order that ``seating`` names."""
    if seating == "priority":
        return seat_by_priority(
            choice.expert_GSK, choice.weight_GSK, real_GS, num_experts, capacity
        )
    return seat(choice.expert_GSK, real_GS, num_experts, capacity)
