"""Dispatch by index: the slots of ``einsum``, filled and emptied by gathers instead of products."""

from functools import partial

import jax
import jax.numpy as jnp

from moejax.moe.dispatch import slots
from moejax.moe.kernels.rows import pair_with_sum, take
from moejax.moe.travel import Travel
from moejax.routing.contract import ExpertChoice, TokenChoice, spread
from moejax.routing.seating import seat_choices
from moejax.runtime import partition


def route(
    params: dict[str, jax.Array],
    x_GSD: jax.Array,
    choice: TokenChoice | ExpertChoice,
    real_GS: jax.Array,
    travel: Travel,
) -> tuple[jax.Array, jax.Array]:
    """As ``einsum.route``: the same slots, drops and values, without a cost that grows with S."""
    num_experts, capacity = params["w_down_EFD"].shape[0], travel.capacity
    G, S, D = x_GSD.shape
    x_GSD = partition.pin(x_GSD, "tokens_GSD")
    if isinstance(choice, TokenChoice):
        slot_GSK = seat_choices(choice, real_GS, num_experts, capacity, travel.seating)
        seated_GSK = slot_GSK >= 0
        place_GSK = jnp.where(seated_GSK, choice.expert_GSK * capacity + slot_GSK, -1)
        choice_GR = jax.vmap(partial(invert_places, slots=num_experts * capacity))(place_GSK)
        x_GRD = jax.vmap(fill_slots)(x_GSD, choice_GR, place_GSK)
        weight_GR1 = jax.vmap(weigh_slots)(choice.weight_GSK, choice_GR)[..., None]
        seated_GSE = spread(choice.expert_GSK, seated_GSK.astype(jnp.float32), num_experts)
    else:
        token_GR1 = choice.token_GEC.reshape(G, -1, 1)
        x_GRD = jnp.take_along_axis(x_GSD, jnp.maximum(token_GR1, 0), axis=1)
        x_GRD = jnp.where(token_GR1 >= 0, x_GRD, 0)
        weight_GR1 = choice.weight_GEC.reshape(G, -1, 1)
        one_hot_GSEC = choice.token_GEC[:, None] == jnp.arange(S)[:, None, None]
        seated_GSE = one_hot_GSEC.sum(-1, dtype=jnp.float32)

    weighs_input = isinstance(choice, TokenChoice) and choice.weigh == "input"
    if weighs_input:
        x_GRD = (x_GRD * weight_GR1).astype(x_GSD.dtype)
    y_GRD = slots.compute(params, x_GRD, travel, None if weighs_input else weight_GR1)
    if isinstance(choice, TokenChoice):
        y_GSD = jax.vmap(empty_slots)(y_GRD, choice_GR, place_GSK)
    else:  # a token may have any number of experts: here adding up is the cheaper way
        there_GR = jnp.where(token_GR1[..., 0] >= 0, token_GR1[..., 0], S)
        zeros_GSD = jnp.zeros_like(x_GSD)
        y_GSD = jax.vmap(lambda z, i, y: z.at[i].add(y, mode="drop"))(zeros_GSD, there_GR, y_GRD)
    return partition.pin(y_GSD, "tokens_GSD"), seated_GSE


def invert_places(place_SK: jax.Array, slots: int) -> jax.Array:
    """Which choice (token * K + k) sits in each slot, ``choice_R``; -1 in an empty one."""
    place_R = jnp.where(place_SK >= 0, place_SK, slots).reshape(-1)
    index_R = jnp.arange(place_R.size, dtype=jnp.int32)
    return jnp.full(slots, -1, jnp.int32).at[place_R].set(index_R, mode="drop")


def weigh_slots(weight_SK: jax.Array, choice_R: jax.Array) -> jax.Array:
    """The weight of the choice in each slot; 0 in an empty one."""
    weight_R = take(weight_SK.reshape(-1), jnp.maximum(choice_R, 0))
    return jnp.where(choice_R >= 0, weight_R, 0)


def _fill(x_SD: jax.Array, choice_R: jax.Array, place_SK: jax.Array) -> jax.Array:
    x_RD = take(x_SD, jnp.maximum(choice_R, 0) // place_SK.shape[1])
    return jnp.where(choice_R[:, None] >= 0, x_RD, 0)


fill_slots, empty_slots = pair_with_sum(_fill)
"""The token in each slot, zeros in an empty one; and each token's slots added up."""
