"""Slots and drops, from a histogram of what routers asked for.

The model: each token of a group asks for an expert with K times the expert's share of the load,
whatever the other tokens do, so that the tokens that ask for it are binomial. Text is less even
than that within a group: measured drops are rather more than these.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from moejax.config.checks import check
from moejax.config.errors import UserError
from moejax.config.model import ModelConfig
from moejax.lab.plan.placement_report import read_load

LAST = 5
"""Intervals of a run that are looked at."""
WANTED = 0.01
"""Drops that the advised capacity stays below."""


def load_of(source: Path | None, model: ModelConfig) -> np.ndarray:
    """Shares of the choices that ask for each expert, ``share_LE``: of a load file, of a run's last
    intervals, or even ones. Raises ``UserError`` where they are of another model.
    """
    L, E = sum(model.routed_layers), model.moe.num_choices
    if source is None:
        return np.full((1, E), 1 / E)
    load_LE = _of_run(source) if source.is_dir() else read_load(source)
    check(
        load_LE.ndim == 2 and load_LE.shape[1] == E and load_LE.shape[0] in (1, L),
        f"--load {source} has {_sizes(load_LE)}, but the model {L} routed layers of {E} experts:"
        f" give the load of a run of this model, or leave --load out for an even one.",
    )
    total_L1 = load_LE.sum(1, keepdims=True)
    check(
        bool(np.isfinite(load_LE).all() and (load_LE >= 0).all() and (total_L1 > 0).all()),
        f"--load {source} must hold finite numbers that are not negative, and not only zeros in a"
        f" layer.",
    )
    return load_LE / total_L1


def _sizes(load_LE: np.ndarray) -> str:
    if load_LE.ndim != 2:
        return f"numbers of shape {load_LE.shape}"
    return f"{load_LE.shape[0]} layers of {load_LE.shape[1]} experts"


def _of_run(run: Path) -> np.ndarray:
    files = sorted((run / "load").glob("*.npz"))[-LAST:]
    if not files:
        raise UserError(f"--load {run}: there is no load/STEP.npz in it; is it a run's directory?")
    loads = [read_load(file) for file in files]
    if len({load.shape for load in loads}) > 1:
        raise UserError(f"--load {run}: its load files are of different models; name one of them.")
    return np.sum(loads, axis=0)


@cache
def _log_factorials(n: int) -> np.ndarray:
    return np.cumsum(np.log(np.maximum(np.arange(n + 1), 1)))


def overflow(probability_E: np.ndarray, tokens: int) -> np.ndarray:
    """Mean number of tokens that find no slot, ``mean_EC``, for every capacity C from 0 on:
    E[max(X - C, 0)], X binomial, as the sum of P(X > c) over c from C on.
    """
    p_E1 = np.clip(np.asarray(probability_E, np.float64), 0.0, 1.0)[:, None]
    x, log = np.arange(tokens + 1), _log_factorials(tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_EX = log[-1] - log - log[::-1] + x * np.log(p_E1) + (tokens - x) * np.log1p(-p_E1)
    mass_EX = np.exp(np.where(np.isnan(log_EX), 0.0, log_EX))  # 0 log 0 is 0
    above_EX = np.cumsum(mass_EX[:, ::-1], axis=1)[:, ::-1] - mass_EX
    return np.cumsum(above_EX[:, ::-1], axis=1)[:, ::-1]


def drops(share_LE: np.ndarray, group: int, top_k: int) -> np.ndarray:
    """Share of the choices that are dropped, ``drops_C``, mean over layers, for every capacity C
    from 0 to the group's size.
    """
    lost_C = np.zeros(group + 1)
    for share_E in share_LE:
        probability_E, count_E = np.unique(np.minimum(top_k * share_E, 1), return_counts=True)
        lost_C += (count_E[:, None] * overflow(probability_E, group)).sum(0)
    return lost_C / (len(share_LE) * group * top_k)


@dataclass(frozen=True)
class Seats:
    """Capacity of a layer, and what it drops of a load."""

    slots: int
    """Of one expert in one group (C)."""
    padding: float
    """Slots over choices."""
    dropped: float
    """Share of the choices."""
    least_factor: float
    """The smallest capacity factor that drops less than ``WANTED``."""
    least_slots: int


def seats(model: ModelConfig, slots: int, share_LE: np.ndarray, group: int) -> Seats:
    """What so many slots of an expert in a group of tokens come to."""
    moe = model.moe
    drops_C = drops(share_LE, group, moe.top_k)
    least = int(np.argmax(drops_C < WANTED))
    fair = group * moe.top_k / moe.num_choices
    return Seats(
        slots=slots,
        padding=slots / fair,
        dropped=float(drops_C[slots]),
        least_factor=(math.floor(100 * (least - 1) / fair) + 1) / 100,  # slots are rounded up
        least_slots=least,
    )
