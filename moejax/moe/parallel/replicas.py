"""Experts with replicas, at inference: places instead of experts, for banks and for choices.

Letters: P: places of experts and replicas; R: replicas of an expert.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from moejax.moe.dispatch.grouped import drop_unseated, spread_seated
from moejax.moe.parallel.placement import Placement
from moejax.routing.contract import TokenChoice
from moejax.routing.seating import Seating


def list_places(plan: Placement, most: int | None = None) -> np.ndarray:
    """The places of each expert, ``place_LER`` (int32), -1 where an expert has fewer than R: the
    most that one has, or those that are given.
    """
    count_LE = plan.replicas_LE
    place_LER = np.full((*count_LE.shape, most or count_LE.max()), -1, np.int32)
    for layer, expert_P in enumerate(plan.expert_LP):
        for e in range(count_LE.shape[1]):
            mine = np.flatnonzero(expert_P == e)
            place_LER[layer, e, : mine.size] = mine
    return place_LER


def choose_places(
    choice: TokenChoice,
    place_ER: jax.Array,
    real_GS: jax.Array,
    capacity: int,
    seating: Seating,
) -> tuple[TokenChoice, jax.Array]:
    """The choice of places for a choice of experts, and ``seated_GSE`` of the experts.

    Capacity is that of experts, so that replicas change no output: choices without a seat become
    -1 here, and places must have room for all. Tokens take an expert's replicas in turn.
    """
    E = place_ER.shape[0]
    expert_GSK = drop_unseated(choice, real_GS, E, capacity, seating)
    turn_GS1 = jnp.arange(real_GS.size).reshape(*real_GS.shape, 1)
    count_E = (place_ER >= 0).sum(1)
    here_GSK = jnp.maximum(expert_GSK, 0)
    place_GSK = place_ER[here_GSK, turn_GS1 % count_E[here_GSK]]
    place_GSK = jnp.where(expert_GSK >= 0, place_GSK, -1)
    return replace(choice, expert_GSK=place_GSK), spread_seated(expert_GSK, E)
