"""Interleaved timing: every round runs every arm once, so a slow moment of the machine hits all."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from moejax.config.checks import check
from moejax.runtime.allocator import keep_freed_memory

Arms = dict[str, Callable[[], object]]
SETTLE_SECONDS = 0.01
"""A pause before each arm, as threads of the arm before it may still spin for a while."""


@dataclass(frozen=True, kw_only=True)
class TimingSettings:
    """How often to measure, and what happens to freed memory."""

    rounds: int = 9
    """Timed rounds."""
    keep_memory: bool = False
    """Keep freed memory, as train.py does, instead of giving it back to the system."""

    def __post_init__(self) -> None:
        check(self.rounds > 0, f"--rounds must be greater than 0, not {self.rounds}.")

    def prepare_memory(self) -> None:
        """Keep freed memory from now on, if that is asked for."""
        if self.keep_memory:
            keep_freed_memory()


@dataclass(frozen=True)
class Times:
    """The seconds of each arm in each round."""

    cpu: dict[str, np.ndarray]
    wall: dict[str, np.ndarray]

    def ratio(self, arm: str, to: str, clock: str = "cpu") -> dict[str, float]:
        """The median of one arm divided by that of another; ``low`` and ``high`` are the quartiles
        of the ratios in single rounds.
        """
        seconds = getattr(self, clock)
        low, high = np.quantile(seconds[arm] / seconds[to], (0.25, 0.75))
        median = np.median(seconds[arm]) / np.median(seconds[to])
        return {"median": float(median), "low": float(low), "high": float(high)}

    def milliseconds(self, arm: str, clock: str = "cpu") -> float:
        """The median time of an arm."""
        return 1e3 * float(np.median(getattr(self, clock)[arm]))

    def spread(self, arm: str, clock: str = "cpu") -> dict[str, float]:
        """The median time of an arm and the quartiles, in milliseconds."""
        low, high = np.quantile(getattr(self, clock)[arm], (0.25, 0.75))
        median = self.milliseconds(arm, clock)
        return {"median": median, "low": 1e3 * float(low), "high": 1e3 * float(high)}


def main_clock() -> str:
    """The clock that counts here. On an accelerator, the CPU time of the host says nothing."""
    return "cpu" if jax.default_backend() == "cpu" else "wall"


def interleave(arms: Arms, rounds: int) -> Times:
    """Run all arms in turn, ``rounds`` times, after two rounds that do not count.

    If an arm returns JAX arrays, they are waited for; other results must be ready on return.
    """
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    wall: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(rounds + 2):
        for name, run in arms.items():
            time.sleep(SETTLE_SECONDS)
            start_cpu, start = time.process_time(), time.perf_counter()
            jax.block_until_ready(run())
            if i >= 2:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
    return Times(*({name: np.array(v) for name, v in t.items()} for t in (cpu, wall)))
