"""A logging interval: its line of metrics, its file of loads, its alarms."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from moejax.config.config import Config
from moejax.config.measure import Measure
from moejax.train.journal import Journal
from moejax.train.metrics import ahead_metrics, loss_metrics, router_metrics, share_metrics
from moejax.train.reports import StepReport
from moejax.train.state import TrainState
from moejax.train.tally import Tally
from moejax.train.telemetry import History, interval_arrays
from moejax.train.utilisation import Utilisation


class IntervalLog:
    """Writes an interval when it ends."""

    def __init__(
        self,
        config: Config,
        measure: Measure,
        journal: Journal,
        router_arrays: Callable[[dict, jax.Array | None], dict[str, jax.Array]],
        counted: Mapping[str, int],
        utilisation: Utilisation,
    ) -> None:
        """``counted``: what is the same in every line, such as documents that were left out."""
        self._counted = counted
        self._config, self.measure, self._journal = config, measure, journal
        self.utilisation = utilisation
        self._router_arrays = router_arrays
        self._history = History(journal.run)

    def write(self, state: TrainState, tally: Tally, report: StepReport) -> dict[str, Any]:
        """Write the interval that ends with this step, and begin the next. Returns its line."""
        totals, unit, run = tally.window, self.measure.unit, self._journal.run
        assert totals is not None  # the interval has steps
        line = {
            "step": tally.step,
            "split": "train",
            unit: tally.tokens,
            **loss_metrics(totals),
            **ahead_metrics(totals),
            **share_metrics(totals, [source.name for source in self._config.data.sources]),
            **router_metrics(totals, self._config.model.moe.num_experts),
            "gradient_norm": totals["gradient_norm"] / max(1, totals["parts"]),
            "learning_rate": float(report.learning_rate),
            "skipped_updates": int(report.skipped),
            **self._counted,
            f"{unit}_per_second": totals["targets"] / tally.window_seconds,
            **self.utilisation.measure(totals["parts"], tally.window_seconds),
            "seconds": tally.seconds,
            "processor_seconds": tally.processor_seconds,
        }
        if "asked_LE" in totals:
            routers = self._router_arrays(state.params, state.bias_LE)
            run.write_load(tally.step, **interval_arrays(totals, routers, self._config.model))
        if run.owner:
            line = self._history.judge(line, totals.get("asked_LE"), self._config)
        self._journal.write(line, totals.get("asked_LE"))
        tally.clear_window()
        return line
