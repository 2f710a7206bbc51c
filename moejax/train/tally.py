"""How far a run is."""

import math
from dataclasses import dataclass
from typing import Any

from moejax.train.totals import Totals, add_totals, totals_from_json, totals_to_json


@dataclass
class Tally:
    """Counts and times of a run. They are saved with every checkpoint, next to the train state."""

    step: int = 0
    tokens: int = 0
    """Target tokens, or images, trained on."""
    seconds: float = 0.0
    """Training time, over all starts."""
    processor_seconds: float = 0.0
    """Processor time of the steps, of all threads, without compiling and evaluations; NaN in a run
    that an earlier version has begun, which did not count it."""
    best: float = math.inf
    """Lowest validation bits per byte, or error rate, so far."""
    window: Totals | None = None
    """Sums since the last line of training metrics."""
    window_seconds: float = 0.0

    def add(self, totals: Totals, seconds: float, processor_seconds: float) -> None:
        """Add a training step, which took so long."""
        self.window = add_totals(self.window, totals)
        self.window_seconds += seconds
        self.seconds += seconds
        self.processor_seconds += processor_seconds
        self.tokens += totals["targets"]

    def clear_window(self) -> None:
        """Begin the next interval."""
        self.window, self.window_seconds = None, 0.0

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return vars(self) | {
            "best": self.best if math.isfinite(self.best) else None,
            "processor_seconds": None
            if math.isnan(self.processor_seconds)
            else self.processor_seconds,
            "window": totals_to_json(self.window),
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Tally":
        """The inverse of ``to_json``."""
        best, took = saved["best"], saved.get("processor_seconds")
        known = {
            "best": math.inf if best is None else best,
            "processor_seconds": math.nan if took is None else took,
            "window": totals_from_json(saved["window"]),
        }
        return cls(**saved | known)
