"""A training of a study as a row of plain values: its figures, its curves, and how it was made."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from moejax.config.measure import Measure
from moejax.lab.study.baseline import count_training_seconds
from moejax.lab.study.grid import Setting
from moejax.lab.study.results import Comparison, Outcome, Tuned, compute_figures
from moejax.runs.metric_lines import column, number
from moejax.runs.records import Run


def write_row(outcome: Outcome) -> dict[str, Any]:
    """A training: seed, setting, status, all figures, versions, machine, the command that makes it
    again, and its curves. Where there is nothing of it yet, the curves are left out.
    """
    row: dict[str, Any] = {
        "seed": outcome.seed,
        "setting": plain_setting(outcome.setting),
        "setting_number": outcome.number,
        "directory": outcome.label,
        "place": outcome.place or None,
        "command": outcome.command or None,
        "status": outcome.status,
    }
    if outcome.message:
        row["message"] = outcome.message
    row |= plain(compute_figures(outcome))
    if (run := outcome.run) is not None:
        row |= {key: run.summary.get(key) for key in ("versions", "machine")}
        row["curve"] = curve_of(run, outcome.measure)
        row["training_curve"] = training_curve_of(run, outcome.measure)
    return row


def curve_of(run: Run, measure: Measure) -> dict[str, list[float | None]]:
    """The measure at each evaluation, as columns: step, what was trained on until then in the unit
    of the measure, the measure, seconds of training (compiling and evaluations left out), and of
    the processor.
    """
    step, values = column(run.validation, measure.key)
    return _columns(run, measure, step, {measure.key: values})


def training_curve_of(run: Run, measure: Measure) -> dict[str, list[float | None]]:
    """The training loss of each log interval, in nats a token, as columns like ``curve_of``."""
    step, values = column(run.train, "loss")
    return _columns(run, measure, step, {"loss": values})


def _columns(
    run: Run, measure: Measure, step: np.ndarray, values: dict[str, np.ndarray]
) -> dict[str, list[float | None]]:
    def at_steps(known: np.ndarray, what: np.ndarray) -> np.ndarray:
        if not known.size:
            return np.full(step.shape, math.nan)
        return np.interp(step, known, what, right=math.nan)

    trained, seen = column(run.train, measure.unit)
    logged, processor = column(run.train, "processor_seconds")
    begun = (np.append(0.0, trained), np.append(0.0, seen))
    columns = {
        "step": step,
        measure.unit: at_steps(*begun) if trained.size else at_steps(trained, seen),
        **values,
        "seconds": at_steps(*count_training_seconds(run)),
        "processor_seconds": at_steps(np.append(0.0, logged), np.append(0.0, processor))
        if logged.size
        else at_steps(logged, processor),
    }
    return {name: _plain_list(found) for name, found in columns.items()}


def write_tuning(comparison: Comparison) -> dict[str, Any]:
    """How the settings of all runs were chosen."""
    return {name: _write_tuned(tuned) for name, tuned in comparison.tuning.items()}


def _write_tuned(tuned: Tuned) -> dict[str, Any]:
    chosen = tuned.chosen
    setting = None if chosen is None or not tuned.outcomes else tuned.outcomes[chosen - 1].setting
    return {
        "status": tuned.status,
        "seed": tuned.seed,
        "chosen": chosen,
        "setting": None if setting is None else plain_setting(setting),
        "taken_from": tuned.taken_from,
        "edges": list(tuned.edges),
        "settings": [write_row(outcome) for outcome in tuned.outcomes],
    }


def write_measure(measure: Measure) -> dict[str, str]:
    """What runs are judged by."""
    return {"key": measure.key, "name": measure.name, "unit": measure.unit}


def plain_setting(setting: Setting) -> Setting:
    """A setting as JSON has it."""
    return {
        name: value if isinstance(value, str | int | float | bool | None) else str(value)
        for name, value in setting.items()
    }


def plain(values: dict[str, float]) -> dict[str, float | int | None]:
    """Figures as JSON has them: None for one that is not finite."""
    return {name: _plain_number(value) for name, value in values.items()}


def _plain_list(values: Iterable[float]) -> list[float | int | None]:
    return [_plain_number(number(float(value))) for value in values]


def _plain_number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value
