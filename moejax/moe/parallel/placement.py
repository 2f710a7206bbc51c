"""Which device holds which experts at inference, and which experts twice: from measured load.

The balancer of DeepSeek-V3 (DeepSeek-AI 2024, section 3.4; published as EPLB): experts of high load
get replicas, and replicas are packed so that all devices have about the same load. Where groups of
experts share their tokens (group-limited routing), groups are first packed onto nodes, so that
tokens need not leave theirs. On top of the published greedy packing, places are exchanged for as
long as that makes the heaviest device lighter.

Letters: P: places of experts and replicas; Q: devices or groups.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from moejax.config.checks import check

MOST_PLACES = 2**18
"""Of all layers together."""
MOST_WORK, MOST_AT_ONCE = 2 * 10**8, 10**7
"""Exchanges of two places that are compared, of all layers together, and at once: seconds and MB.
"""


@dataclass(frozen=True)
class Placement:
    """P places, those of device 0 first; every device has as many."""

    expert_LP: np.ndarray
    """The expert in each place (int64)."""
    load_LQ: np.ndarray
    """Load of each device; an expert's load is shared evenly by its replicas."""

    @property
    def replicas_LE(self) -> np.ndarray:
        """Places of each expert, at least one (int64)."""
        experts = self.expert_LP.max() + 1
        return np.stack([np.bincount(row, minlength=experts) for row in self.expert_LP])

    @property
    def balancedness_L(self) -> np.ndarray:
        """Mean over largest load of the devices: 1 at best."""
        return balancedness(self.load_LQ)


def place(
    load_LE: np.ndarray,
    *,
    devices: int,
    places: int,
    nodes: int = 1,
    groups: int = 1,
    exchange: bool = True,
) -> Placement:
    """Place the experts of each layer, by their load (any unit, not negative).

    ``places`` is that of all devices together. With ``groups`` of consecutive experts and several
    ``nodes``, each group stays on one node. Raises ``ConfigError`` where numbers do not divide.
    """
    load_LE = np.asarray(load_LE, np.float64)
    check_numbers(load_LE, devices, places, nodes, groups)
    work = MOST_WORK // len(load_LE) if exchange else 0
    planned = [_layer(load_E, devices, places, nodes, groups, work) for load_E in load_LE]
    expert_LP = np.stack([expert_P for expert_P, _ in planned])
    return Placement(expert_LP, np.stack([load_Q for _, load_Q in planned]))


def check_numbers(load_LE: np.ndarray, devices: int, places: int, nodes: int, groups: int) -> None:
    """Everything must divide what it shares."""
    check(
        load_LE.ndim == 2 and load_LE.size > 0,
        f"--load must hold numbers [layers, experts] or [experts], not of shape {load_LE.shape}.",
    )
    check(
        bool(np.isfinite(load_LE).all() and (load_LE >= 0).all()),
        "--load must hold finite numbers that are not negative.",
    )
    E = load_LE.shape[1]
    named = {"devices": devices, "replicas": places, "nodes": nodes, "groups": groups}
    for name, value in named.items():
        check(value > 0, f"--{name} must be greater than 0, not {value}.")
    check(
        places >= E,
        f"--replicas {places} is fewer than the {E} experts: each needs a place.",
    )
    most = min(MOST_PLACES, MOST_PLACES // len(load_LE), devices * E)
    check(
        places <= most,
        f"--replicas {places} is too many: at most {most:,} are planned, of {len(load_LE)} layers"
        f" together {MOST_PLACES:,}, and each of {devices} devices needs each of {E} experts once.",
    )
    for name, value, of, whole in (
        ("devices", devices, "--replicas", places),
        ("nodes", nodes, "--devices", devices),
        ("groups", groups, "the number of experts,", E),
    ):
        check(whole % value == 0, f"--{name} {value} does not divide {of} {whole}.")
    check(
        nodes == 1 or groups % nodes == 0,
        f"--nodes {nodes} does not divide --groups {groups}: leave both out, or let each node have"
        " as many groups.",
    )
    check(
        places // nodes >= E // nodes,
        f"--replicas {places} leaves {places // nodes} places a node, fewer than its experts.",
    )


def balancedness(load_LQ: np.ndarray) -> np.ndarray:
    """Mean over largest load, ``balancedness_L``; 1 where there is no load at all."""
    largest_L = load_LQ.max(-1)
    return np.where(largest_L > 0, load_LQ.mean(-1) / np.where(largest_L > 0, largest_L, 1), 1.0)


def _layer(
    load_E: np.ndarray, devices: int, places: int, nodes: int, groups: int, work: int
) -> tuple[np.ndarray, np.ndarray]:
    """``expert_P`` and ``load_Q`` of one layer."""
    experts = np.arange(load_E.size).reshape(groups, -1)
    packed = pack(load_E.reshape(groups, -1).sum(1), nodes) if nodes > 1 else [np.arange(groups)]
    expert_P, load_Q = [], []
    for members in packed:
        on_node = experts[members].reshape(-1)
        here_P = on_node[replicate(load_E[on_node], places // nodes)]
        load_P = load_E[here_P] / np.bincount(here_P)[here_P]
        bins = pack(load_P, devices // nodes)
        bins = exchange_places(load_P, bins, work // nodes)
        expert_P += [here_P[b] for b in bins]
        load_Q += [load_P[b].sum() for b in bins]
    return np.concatenate(expert_P), np.array(load_Q)


def replicate(load_E: np.ndarray, places: int) -> np.ndarray:
    """The expert of each replica, ``expert_P``: all experts once, then for each further replica the
    one whose replicas have the most load by then. No other way makes the heaviest lighter.
    """
    heaviest = [(-load, expert, 1) for expert, load in enumerate(load_E.tolist())]
    heapq.heapify(heaviest)
    more = []
    for _ in range(places - load_E.size):
        _, expert, count = heaviest[0]
        more.append(expert)
        heapq.heapreplace(heaviest, (-load_E[expert] / (count + 1), expert, count + 1))
    return np.array([*range(load_E.size), *more])


def pack(load_P: np.ndarray, bins: int) -> list[np.ndarray]:
    """Greedily, the heaviest first, each into the lightest bin that has room; equal numbers in all:
    the indices in each.
    """
    room = load_P.size // bins
    content: list[list[int]] = [[] for _ in range(bins)]
    lightest = [(0.0, q) for q in range(bins)]  # a heap of those that have room
    for p in np.argsort(-load_P, kind="stable"):
        load, q = heapq.heappop(lightest)
        content[q].append(int(p))
        if len(content[q]) < room:
            heapq.heappush(lightest, (load + load_P[p], q))
    return [np.array(c) for c in content]


def exchange_places(load_P: np.ndarray, bins: list[np.ndarray], work: int) -> list[np.ndarray]:
    """Exchange one of the heaviest bin for another's while that makes the heavier of both lighter
    than the heaviest was: the largest load never grows. ``work``: exchanges to compare at most.
    """
    index_QR = np.stack(bins)
    others = np.arange(len(bins))
    compared = load_P.size * index_QR.shape[1]
    for _ in range(work // compared if compared <= MOST_AT_ONCE else 0):
        load_QR = load_P[index_QR]
        load_Q = load_QR.sum(1)
        heavy = int(load_Q.argmax())
        # [my place, bin, its place]: by how much the heaviest bin gets lighter.
        less = load_QR[heavy][:, None, None] - load_QR[None]
        after = np.maximum(load_Q[heavy] - less, load_Q[None, :, None] + less)
        after[:, others == heavy] = np.inf
        mine, other, its = np.unravel_index(after.argmin(), after.shape)
        if not after[mine, other, its] < load_Q[heavy] * (1 - 1e-9):
            return list(index_QR)
        index_QR[heavy, mine], index_QR[other, its] = index_QR[other, its], index_QR[heavy, mine]
    return list(index_QR)
