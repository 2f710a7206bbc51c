"""How soon a run is as good as another one is at its end."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from moejax.runs.metric_lines import column, last
from moejax.runs.records import Run


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What the other runs are to reach: means over the seeds that the baseline has finished."""

    name: str
    value: float
    """Of its measure, at the end."""
    by_seed: dict[int, float]
    """The same with each seed, also with further ones, which are not in the means. A seed gives all
    runs the same batches, so that differences between runs with one seed vary less than the runs
    do."""
    steps: float
    seconds: float
    """Of training, as ``count_training_seconds`` counts them."""


def make_baseline(
    name: str, run_of: Mapping[int, Run], more_seeds: Collection[int] = ()
) -> Baseline | None:
    """The mean of finished runs, by their seeds, but for ``more_seeds``; None if there are none, or
    if the measure of one is not finite.
    """
    by_seed = {seed: last(run.validation, run.measure.key) for seed, run in run_of.items()}
    runs = [run for seed, run in run_of.items() if seed not in more_seeds]
    values = [value for seed, value in by_seed.items() if seed not in more_seeds]
    if not (values and np.isfinite(values).all()):
        return None
    return Baseline(
        name=name,
        value=float(np.mean(values)),
        by_seed={seed: value for seed, value in by_seed.items() if np.isfinite(value)},
        steps=float(np.mean([last(run.train, "step") for run in runs])),
        seconds=float(np.mean([count_training_seconds(run)[1][-1] for run in runs])),
    )


def count_training_seconds(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps, from 0, and the seconds of training until then, evaluations and compiling left out:
    the first log interval, which has the compiling in it, is counted at the median pace of the
    others. NaN if there are no others.
    """
    step, seconds = column(run.train, "seconds")
    pace = np.median(np.diff(seconds) / np.diff(step)) if step.size > 1 else math.nan
    first = step[:1] * pace
    return np.append(0.0, step), np.concatenate([[0.0], first, first + seconds[1:] - seconds[:1]])


def reach(run: Run, key: str, value: float) -> tuple[float, float]:
    """The step and the seconds of training after which a finished run has at most this value of
    what validation calls ``key``; infinite if it never has.

    The first evaluation at or below them counts, and from the evaluation before it both are
    interpolated linearly; a run that is there at its first evaluation counts with that one.
    """
    step, values = column(run.validation, key)
    step, values = step[np.isfinite(values)], values[np.isfinite(values)]
    there = np.flatnonzero(values <= value)
    if not there.size:
        return math.inf, math.inf
    end = there[0]
    pair = slice(max(end - 1, 0), end + 1)
    # np.interp wants rising values, and these fall.
    at = np.interp(-value, -values[pair], step[pair])
    return float(at), float(np.interp(at, *count_training_seconds(run)))
