"""The results of a study as plain values: what ``results.json`` has."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from moejax.lab.study.results import Comparison, describe_status, reduce_over_seeds
from moejax.lab.study.rows import plain, write_measure, write_row, write_tuning
from moejax.lab.study.statistics import ERROR, Verdict
from moejax.lab.study.verdicts import describe, make_verdicts, write_notes


def to_json(comparison: Comparison) -> dict[str, Any]:
    """All figures as plain values: of each run the mean, least and greatest over its first seeds,
    and those of each seed; and what is decided.
    """
    first = comparison.by_run()
    return {
        "title": comparison.title,
        "question": comparison.question,
        "command": comparison.command,
        "settings": comparison.settings,
        "measure": write_measure(comparison.measure),
        "baseline": _baseline_json(comparison),
        "verdicts": verdicts_json(comparison),
        "tuning": write_tuning(comparison),
        "runs": {
            name: {
                "status": describe_status(outcomes),
                "mean": plain(reduce_over_seeds(first[name], np.mean)),
                "min": plain(reduce_over_seeds(first[name], min)),
                "max": plain(reduce_over_seeds(first[name], max)),
                "seeds": [write_row(one) for one in outcomes],
            }
            for name, outcomes in comparison.every_seed().items()
        },
    }


def _baseline_json(comparison: Comparison) -> dict[str, Any] | None:
    if comparison.baseline is None:
        return None
    values = asdict(comparison.baseline)
    return {comparison.measure.key: values.pop("value"), **values}


def verdicts_json(comparison: Comparison) -> dict[str, Any]:
    """What is decided, in numbers and words: each run against the baseline, and all pairs
    that have two seeds in common.
    """
    found = make_verdicts(comparison)

    def write(verdict: Verdict) -> dict[str, Any]:
        numbers = {name: getattr(verdict, name) for name in ("mean", "low", "high", "p", "p_same")}
        words = describe(verdict, comparison.measure, comparison.margin)
        return {"kind": verdict.kind, "words": words, "seeds": list(verdict.seeds)} | {
            name: value if math.isfinite(value) else None for name, value in numbers.items()
        }

    return {
        "error": ERROR,
        "looks": found.looks,
        "interval": 1 - ERROR / found.looks,
        "margin": found.margin,
        "notes": write_notes(found, comparison),
        "best": [name for name in comparison.by_run() if name in found.best],
        "runs": {name: write(verdict) for name, verdict in found.against.items()},
        "pairs": [
            {"run": one, "against": other} | write(verdict)
            for (one, other), verdict in found.pairs.items()
            if len(verdict.seeds) > 1
        ],
    }
