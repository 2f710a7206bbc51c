"""Sums over steps or batches, fetched from the devices; on the host, in float64.

Letters: J: sources of a mixture; P: modules that predict further tokens; Q: groups of experts; W:
stretches of the sequence.
"""

import math
from typing import Any

import jax
import numpy as np

from moejax.train.reports import BatchReport, ClassCounts, StepReport

Totals = dict[str, Any]
"""Numbers, and arrays by routed layer (and expert)."""


def sum_step(report: StepReport) -> Totals:
    """One training step's sums, fetched from the devices. Those of a skipped step count for
    nothing: one of them would make a whole interval's means infinite. Skipped steps are counted,
    and so are their tokens with bad logits.
    """
    beside = {"gradient_norm": report.gradient_norm}
    beside |= {
        name: value
        for name in ("rows_J", "sparsity_weight")
        if (value := getattr(report, name)) is not None
    }
    fetched = jax.device_get(_choose(report.batch) | beside)
    totals = _make_exact(fetched) | {"gradient_norm": float(fetched["gradient_norm"])}
    if math.isfinite(totals["nats"]) and math.isfinite(totals["gradient_norm"]):
        return totals
    kept = {"bad_L": totals["bad_L"]} if "bad_L" in totals else {}
    nothing = {k: np.zeros_like(v) if isinstance(v, np.ndarray) else 0 for k, v in totals.items()}
    return nothing | kept


def sum_batch(report: BatchReport) -> Totals:
    """One batch's sums, fetched from the devices; ``parts`` counts batches."""
    return _make_exact(jax.device_get(_choose(report)))


def _choose(report: BatchReport) -> dict[str, jax.Array]:
    """The arrays to fetch, and no others: each costs a moment of every step."""
    sums, router = report.sums, report.sums.router
    names = ("nats", "targets", "log_z_squared")
    wanted = {name: getattr(sums, name) for name in names}
    counted = {"text_bytes": sums.text_bytes, "correct": sums.correct}
    if sums.ahead is not None:
        counted |= {f"ahead_{name}": count for name, count in vars(sums.ahead).items()}
    wanted |= {name: count for name, count in counted.items() if count is not None}
    if router is None:
        return wanted
    optional = {"sent_LQ": router.sent_BQ, "asked_LW": router.asked_BW}
    optional["seated_LW"] = router.seated_BW
    optional["max_violation"] = report.max_violation
    optional["open_LE"] = router.open_BE
    wanted |= {name: sums for name, sums in optional.items() if sums is not None}
    return wanted | {
        "asked_LE": router.asked_BE,
        "seated_LE": router.seated_BE,
        "routed_L": router.tokens_B,
        "bad_L": router.bad_B,
        "entropy_L": router.entropy_B,
        "log_z_squared_L": router.log_z_squared_B,
        **report.losses,
    }


def _make_exact(fetched: dict[str, np.ndarray]) -> Totals:
    """Fetched values, in types that add up exactly."""
    counts = {"asked_LE", "seated_LE", "open_LE", "asked_LW", "seated_LW", "bad_L"}
    counts |= {"rows_J", "ahead_targets_P", "ahead_accepted_P"}
    totals: Totals = {"parts": 1}
    for name, value in fetched.items():
        if name in ("targets", "text_bytes", "correct"):
            totals[name] = int(value)
        elif name in counts:
            totals[name] = np.rint(value).astype(np.int64)
        else:
            totals[name] = value.astype(np.float64) if value.ndim else float(value)
    return totals


def add_totals(one: Totals | None, other: Totals) -> Totals:
    """The totals of both."""
    return other if one is None else {name: one[name] + other[name] for name in one}


def totals_to_json(totals: Totals | None) -> dict | None:
    """Totals as JSON, exactly."""
    if totals is None:
        return None
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in totals.items()}


def totals_from_json(totals: dict | None) -> Totals | None:
    """The inverse of ``totals_to_json``."""
    if totals is None:
        return None
    return {k: np.asarray(v) if isinstance(v, list) else v for k, v in totals.items()}


def add_class_counts(
    one: dict[str, np.ndarray] | None, counts: ClassCounts | None
) -> dict[str, np.ndarray] | None:
    """Counts by class of one more batch of images; None for text."""
    if counts is None:
        return None
    fetched = {
        k: np.rint(v).astype(np.int64)
        for k, v in vars(jax.device_get(counts)).items()
        if v is not None
    }
    return fetched if one is None else {name: one[name] + fetched[name] for name in fetched}
