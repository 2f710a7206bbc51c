"""The frontier of a set of trainings: the least loss that a cost has bought; and where two cross.

All is done in logarithms: a frontier is a line of straight pieces there, from corner to corner of
the lower convex hull, so that it lies below all points, and between two corners it is what a power
law through both says. Costs are FLOPs or seconds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moejax.lab.frontier.rows import Row, group_cells, pool_deviations

Cost = Callable[[Row], float]


@dataclass(frozen=True)
class Hull:
    """A frontier: its corners, in order of cost. Each corner is cheaper than the next and has a
    higher loss.
    """

    cost: np.ndarray
    loss: np.ndarray
    corners: tuple[int, ...]
    """Which of the points that were given are the corners."""

    def read(self, cost: np.ndarray) -> np.ndarray:
        """The loss at these costs, by straight pieces in logarithms; NaN outside its range."""
        logs = np.interp(
            np.log(cost), np.log(self.cost), np.log(self.loss), left=np.nan, right=np.nan
        )
        return np.exp(logs)


def find_staircase(cost: np.ndarray, loss: np.ndarray) -> list[int]:
    """The points that no other one beats: which cost less than all that are as good or better, in
    order of cost. Points that are not finite or not above 0 are left out.
    """
    known = np.isfinite(cost) & np.isfinite(loss) & (cost > 0) & (loss > 0)
    order = sorted(np.flatnonzero(known), key=lambda i: (cost[i], loss[i]))
    found: list[int] = []
    for i in order:
        if not found or loss[i] < loss[found[-1]]:
            found.append(int(i))
    return found


def find_hull(cost: np.ndarray, loss: np.ndarray) -> Hull | None:
    """The lower convex hull of the staircase, in logarithms; None without a point."""
    cost, loss = np.asarray(cost, float), np.asarray(loss, float)
    corners: list[int] = []
    for i in find_staircase(cost, loss):
        while len(corners) > 1 and not _is_left_turn(cost, loss, corners[-2], corners[-1], i):
            corners.pop()
        corners.append(i)
    return Hull(cost[corners], loss[corners], tuple(corners)) if corners else None


def _is_left_turn(cost: np.ndarray, loss: np.ndarray, a: int, b: int, c: int) -> bool:
    """Whether b lies below the straight line from a to c."""
    x, y = np.log(cost[[a, b, c]]), np.log(loss[[a, b, c]])
    return bool((x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0]) > 0)


def find_lead(of: Hull, over: Hull) -> float:
    """The cost from which on the frontier ``of`` has the lower loss, up to the largest cost that
    both have: 0 if it has at all costs that both have, infinity if it has not at the largest; NaN
    if they have no range of costs in common.
    """
    low, high = max(of.cost[0], over.cost[0]), min(of.cost[-1], over.cost[-1])
    if not low < high:
        return math.nan
    inner = np.concatenate([of.cost, over.cost])
    at = np.unique(np.concatenate([[low, high], inner[(inner > low) & (inner < high)]]))
    behind = np.log(of.read(at)) - np.log(over.read(at))
    if behind[-1] >= 0:
        return math.inf
    worse = np.flatnonzero(behind >= 0)
    if not worse.size:
        return 0.0
    i = worse[-1]  # both are straight from here to the next cost
    share = behind[i] / (behind[i] - behind[i + 1])
    return float(np.exp(np.log(at[i]) + share * np.log(at[i + 1] / at[i])))


@dataclass(frozen=True)
class Crossing:
    """From which cost on one frontier leads over another: see ``find_lead``."""

    at: float
    """With the means over the seeds."""
    low: float
    high: float
    """The 2.5 % and 97.5 % quantiles over resampled losses; NaN where nothing could be resampled.
    They may be 0 (from the beginning) or infinite (never)."""
    share: float
    """Of the resampled losses, how many give a lead at the largest common cost; NaN likewise."""


def cross(of: Sequence[Row], over: Sequence[Row], cost: Cost, draws: int) -> Crossing:
    """Where the frontier of some rows begins to lead over that of others.

    The interval is a bootstrap: each cell's mean gets as many deviations as it has seeds, drawn
    with replacement from those of all cells (``pool_deviations``) and averaged. Deviations are
    drawn apart for each cell, although runs with one seed share their batches: what is common to
    both sides does not cancel, and the interval is rather too wide.
    """
    rows = [*of, *over]
    cells = list(group_cells(rows).values())
    names = {row.cell for row in of}
    mine = np.array([cell[0].cell in names for cell in cells], bool)
    costs = np.array([cost(cell[0]) for cell in cells])
    means = np.array([np.mean([math.log(row.loss) for row in cell]) for cell in cells])
    at = _lead(costs, means, mine)
    pool = pool_deviations(rows)
    if not pool.size or math.isnan(at):
        return Crossing(at, math.nan, math.nan, math.nan)
    random = np.random.default_rng(0)
    leads = [
        _lead(costs, means + [random.choice(pool, len(cell)).mean() for cell in cells], mine)
        for _ in range(draws)
    ]
    low, high = np.quantile(leads, (0.025, 0.975), method="inverted_cdf")
    return Crossing(at, float(low), float(high), float(np.mean(np.isfinite(leads))))


def _lead(costs: np.ndarray, logs: np.ndarray, mine: np.ndarray) -> float:
    hulls = [find_hull(costs[which], np.exp(logs[which])) for which in (mine, ~mine)]
    first, second = hulls
    return math.nan if first is None or second is None else find_lead(first, second)
