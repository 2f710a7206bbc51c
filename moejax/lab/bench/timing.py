"""Interleaved timing: every round runs every arm once, so that a machine which drifts hurts all."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

Arms = dict[str, Callable[[], object]]
SETTLE_SECONDS = 0.01
"""Threads may go on spinning after the end of an arm; the next one is not charged for it."""


@dataclass(frozen=True)
class Times:
    """Seconds of each arm in each round."""

    cpu: dict[str, np.ndarray]
    wall: dict[str, np.ndarray]

    def ratio(self, arm: str, to: str, clock: str = "cpu") -> dict[str, float]:
        """The median of one arm over that of another; ``low`` and ``high`` are the quartiles of
        the ratios within single rounds.
        """
        seconds = getattr(self, clock)
        low, high = np.quantile(seconds[arm] / seconds[to], (0.25, 0.75))
        median = np.median(seconds[arm]) / np.median(seconds[to])
        return {"median": float(median), "low": float(low), "high": float(high)}

    def milliseconds(self, arm: str, clock: str = "cpu") -> float:
        """The median of an arm."""
        return 1e3 * float(np.median(getattr(self, clock)[arm]))

    def spread(self, arm: str, clock: str = "cpu") -> dict[str, float]:
        """The median of an arm and its quartiles, in milliseconds."""
        low, high = np.quantile(getattr(self, clock)[arm], (0.25, 0.75))
        median = self.milliseconds(arm, clock)
        return {"median": median, "low": 1e3 * float(low), "high": 1e3 * float(high)}


def main_clock() -> str:
    """The clock that counts here: on an accelerator the host's CPU time says nothing."""
    return "cpu" if jax.default_backend() == "cpu" else "wall"


def interleave(arms: Arms, rounds: int) -> Times:
    """Run all arms in turn, ``rounds`` times, after two rounds that do not count.

    An arm gives arrays of JAX, which are waited for, or what is ready when it returns.
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
