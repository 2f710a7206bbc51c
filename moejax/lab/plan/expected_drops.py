"""How many choices a capacity drops, expected from the load of the experts.

The model: each token of a group asks for an expert with a probability of K times the expert's share
of the load, independently of the other tokens. The number of tokens that ask for it is then
binomial. Real text is less even within a group, so measured drops are somewhat larger than these.

Letters: X: numbers of choices.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from moejax.config.model import ModelConfig

WANTED = 0.01
"""The advised capacity drops less than this share of the choices."""


@cache
def _log_factorials(n: int) -> np.ndarray:
    return np.cumsum(np.log(np.maximum(np.arange(n + 1), 1)))


def expected_overflow(probability_E: np.ndarray, tokens: int) -> np.ndarray:
    """Mean number of tokens that find no slot, ``mean_EC``, for every capacity C from 0:
    E[max(X - C, 0)], X binomial, as the sum of P(X > c) over c from C on.
    """
    p_E1 = np.clip(np.asarray(probability_E, np.float64), 0.0, 1.0)[:, None]
    x, log = np.arange(tokens + 1), _log_factorials(tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_EX = log[-1] - log - log[::-1] + x * np.log(p_E1) + (tokens - x) * np.log1p(-p_E1)
    mass_EX = np.exp(np.where(np.isnan(log_EX), 0.0, log_EX))  # 0 log 0 is 0
    above_EX = np.cumsum(mass_EX[:, ::-1], axis=1)[:, ::-1] - mass_EX
    return np.cumsum(above_EX[:, ::-1], axis=1)[:, ::-1]


def expected_drops(share_LE: np.ndarray, group: int, top_k: int) -> np.ndarray:
    """Share of the choices that are dropped, ``drops_C``, mean over layers, for every capacity C
    from 0 to the group's size.
    """
    lost_C = np.zeros(group + 1)
    for share_E in share_LE:
        probability_E, count_E = np.unique(np.minimum(top_k * share_E, 1), return_counts=True)
        lost_C += (count_E[:, None] * expected_overflow(probability_E, group)).sum(0)
    return lost_C / (len(share_LE) * group * top_k)


@dataclass(frozen=True)
class Seats:
    """The capacity of a layer, and how much of a load it drops."""

    slots: int
    """Slots of one expert in one group (C)."""
    padding: float
    """Number of slots divided by the number of choices."""
    dropped: float
    """Share of the choices that is dropped."""
    least_factor: float
    """The smallest capacity factor that drops less than ``WANTED``."""
    least_slots: int


def forecast_seats(model: ModelConfig, slots: int, share_LE: np.ndarray, group: int) -> Seats:
    """What happens if an expert has this many slots in a group of tokens."""
    moe = model.moe
    drops_C = expected_drops(share_LE, group, moe.top_k)
    least = int(np.argmax(drops_C < WANTED))
    fair = group * moe.top_k / moe.num_choices
    return Seats(
        slots=slots,
        padding=slots / fair,
        dropped=float(drops_C[slots]),
        least_factor=(math.floor(100 * (least - 1) / fair) + 1) / 100,  # slots are rounded up
        least_slots=least,
    )
