"""Places of experts that follow the load: which layers gain by it, and what is copied for it.

Letters: M: places of a device; P: places of experts and replicas; Q: devices; S: how many devices
further a copy goes; X: turns.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from moejax.moe.parallel.placement import place

MARGIN = 0.05
"""A layer whose heaviest device would not get lighter by this part stays as it is."""
LEAST = 50
"""Choices for each expert, on average, without which a layer stays: fewer say little of it."""


@dataclass(frozen=True)
class Copies:
    """What a layer's devices copy, when it goes from some places to others. In each of ``turns_S``
    turns, each device gives an expert to the one S further on (to itself, where S is 0).
    """

    turns_S: np.ndarray
    take_SQX: np.ndarray
    """The place, of those of device Q, of what it gives."""
    put_SQX: np.ndarray
    """The place, of those of device Q, of what it gets; M, which is no place, where it is
    nothing."""

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All of it, as ``make_move`` takes it."""
        return self.turns_S, self.take_SQX, self.put_SQX

    @property
    def experts(self) -> int:
        """How many copies there are."""
        return int((self.put_SQX < self.put_SQX.shape[2]).sum())


def spread_load(load_LE: np.ndarray, expert_LP: np.ndarray, devices: int) -> np.ndarray:
    """The load of each device, ``load_LQ``: an expert's is shared evenly by its replicas."""
    found = []
    for load_E, expert_P in zip(load_LE, expert_LP, strict=True):
        load_P = load_E[expert_P] / np.bincount(expert_P, minlength=load_E.size)[expert_P]
        found.append(load_P.reshape(devices, -1).sum(1))
    return np.stack(found)


def weigh_layers(load_LQ: np.ndarray) -> float:
    """Mean over largest load of the devices, of all layers: a step waits in each for the heaviest,
    so it is the sum of the means over that of the largest. 1 where there is no load.
    """
    largest = load_LQ.max(1).sum()
    return float(load_LQ.mean(1).sum() / largest) if largest > 0 else 1.0


def replan(load_LE: np.ndarray, expert_LP: np.ndarray, devices: int) -> np.ndarray:
    """Places by the load, ``expert_LP``: those of now for layers that would gain too little."""
    planned_LP = place(load_LE, devices=devices, places=expert_LP.shape[1]).expert_LP
    now_L = spread_load(load_LE, expert_LP, devices).max(1)
    then_L = spread_load(load_LE, planned_LP, devices).max(1)
    gains_L = (then_L <= (1 - MARGIN) * now_L) & (load_LE.mean(1) >= LEAST)
    new_LP = expert_LP.copy()
    for layer in np.flatnonzero(gains_L):
        new_LP[layer] = keep_in_place(expert_LP[layer], planned_LP[layer], devices)
    return new_LP


def keep_in_place(now_P: np.ndarray, wanted_P: np.ndarray, devices: int) -> np.ndarray:
    """The places ``wanted_P`` with devices renamed, and the places of each in another order: as
    many experts as can be stay where they are.
    """
    now_QM, wanted_QM = now_P.reshape(devices, -1), wanted_P.reshape(devices, -1)
    experts = int(max(now_P.max(), wanted_P.max())) + 1
    now_QE, wanted_QE = (
        np.stack([np.bincount(row, minlength=experts) for row in x]) for x in (now_QM, wanted_QM)
    )
    common_QQ = np.stack([np.minimum(row, wanted_QE).sum(1) for row in now_QE])
    mine_Q = linear_sum_assignment(-common_QQ)[1]
    found_QM = np.empty_like(now_QM)
    for q, mine in enumerate(mine_Q):
        left_E, moved = wanted_QE[mine].copy(), []
        for place_, expert in enumerate(now_QM[q]):
            if left_E[expert]:
                found_QM[q, place_] = expert
                left_E[expert] -= 1
            else:
                moved.append(place_)
        found_QM[q, moved] = np.repeat(np.arange(experts), left_E)
    return found_QM.reshape(-1)


def plan_copies(now_P: np.ndarray, new_P: np.ndarray, devices: int, anew: bool = False) -> Copies:
    """The copies that lead from some places to others; ``anew``: to places that are empty, of which
    there may be more. An expert comes from its own device if that has it, else from the one that
    has given least.
    """
    M, before = new_P.size // devices, now_P.size // devices  # places of a device
    given_Q = np.zeros(devices, np.int64)
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for p in range(new_P.size) if anew else np.flatnonzero(now_P != new_P).tolist():
        to, sources = p // M, np.flatnonzero(now_P == new_P[p])
        there = sources // before == to
        source = int(sources[(there if there.any() else -given_Q[sources // before]).argmax()])
        giver = source // before
        given_Q[giver] += giver != to
        pairs.setdefault((giver, to), []).append((source % before, p % M))
    take_SQX = np.zeros((devices, devices, M), np.int32)
    put_SQX = np.full_like(take_SQX, M)
    turns_S = np.zeros(devices, np.int32)
    for (giver, to), copies in pairs.items():
        further, turns = (to - giver) % devices, len(copies)
        take_SQX[further, giver, :turns], put_SQX[further, to, :turns] = np.transpose(copies)
        turns_S[further] = max(int(turns_S[further]), turns)
    return Copies(turns_S, take_SQX, put_SQX)
