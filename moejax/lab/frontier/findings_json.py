"""The findings of a scaling study as plain values."""

import math
from dataclasses import asdict
from typing import Any

from moejax.config.measure import Measure
from moejax.lab.frontier.findings import Found, HeldOut
from moejax.lab.frontier.fitting import Fit, Unfitted
from moejax.lab.frontier.hulls import Crossing, Hull
from moejax.lab.frontier.rows import Row
from moejax.lab.frontier.step_times import StepTimes


def to_json(found: Found, measure: Measure, times: StepTimes | None) -> dict[str, Any]:
    """What is not finite is null, but for costs: 0 is "at all costs", "never" is never."""
    return _plain(
        {
            "measure": measure.key,
            "step_times": dict(times.about) if times else None,
            "rows": [_row(row) for row in found.rows],
            "frontiers": {
                cost: {form: _hull(hull) for form, hull in hulls.items()}
                for cost, hulls in found.hulls.items()
            },
            "leads_from": {
                cost: {form: _crossing(one) for form, one in crossings.items()}
                for cost, crossings in found.crossings.items()
            },
            "fits": {name: _fit(fit) for name, fit in found.fits.items()},
            "held_out": [_held_out(one) for one in found.held_out],
            "advice": [asdict(one) for one in found.choices],
            "experts": {name: [asdict(one) for one in of] for name, of in found.experts.items()},
            "cutoffs": {
                name: {"parameters": at, "low": low, "high": high}
                for name, (at, low, high) in found.cutoffs.items()
            },
            "notes": list(found.notes),
        }
    )


def _row(row: Row) -> dict[str, Any]:
    shape = row.shape
    return {
        "form": shape.form,
        "size": shape.size,
        "steps": row.steps,
        "seed": row.seed,
        "loss": row.loss,
        "flops": row.flops,
        "seconds": row.seconds,
        "tokens": row.tokens,
        "parameters": shape.parameters,
        "expansion": shape.expansion,
        "granularity": shape.granularity,
        "held_out": row.held_out,
    }


def _hull(hull: Hull) -> dict[str, list[float]]:
    return {"cost": hull.cost.tolist(), "loss": hull.loss.tolist()}


def _crossing(one: Crossing) -> dict[str, Any]:
    costs = {name: _cost(getattr(one, name)) for name in ("at", "low", "high")}
    return costs | {"share": one.share}


def _cost(value: float) -> float | str:
    return "never" if value == math.inf else value


def _fit(fit: Fit | Unfitted) -> dict[str, Any]:
    if isinstance(fit, Unfitted):
        return {"fitted": False, "why": fit.why}
    return {
        "fitted": True,
        "trainings": len(fit.rows),
        "error": fit.error,
        "coefficients": fit.coefficients,
        "intervals": {name: list(ends) for name, ends in fit.intervals.items()},
    }


def _held_out(one: HeldOut) -> dict[str, Any]:
    return asdict(one) | {"error": one.error}


def _plain(value: Any) -> Any:
    """The same with null for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
