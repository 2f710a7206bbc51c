"""Train what a study wants: one training after the other, or several at a time.

A training that another study is at is left to it: others come first, then this study waits for it.
"""

import math
from collections.abc import Callable

from moejax.lab.study.results import Outcome, compute_figures
from moejax.lab.study.study_clock import StudyClock
from moejax.lab.study.trainers import Trainer
from moejax.lab.study.trials import Trial, check_settings
from moejax.lab.study.wanted import Wanted
from moejax.runs.directory_lock import DirectoryLock

PATIENCE = 2.0
"""Seconds between two looks at what another study trains."""


def train_wanted(
    wanted: Wanted,
    trainer: Trainer,
    clock: StudyClock,
    *,
    before_each: Callable[[Trial], object],
    after_each: Callable[[Trial], object],
) -> None:
    """Train what is wanted until all of it has come to its end; ``before_each`` and ``after_each``
    are called before and after each training. Raises what the trainer raises.
    """
    told, tried, waits = set[str](), set[str](), ""
    numbers: dict[str, int] = {}

    def say(trial: Trial, words: str) -> None:
        told.add(trial.label)
        number = numbers.setdefault(trial.label, len(numbers) + 1)
        trainer.say(f"run {number} of {clock.count}: {trial.label}{words}")

    while True:
        trials = wanted.list_trials()
        clock.expect(len(trials))
        if (why := wanted.describe_undecided()) and why not in told:
            told.add(why)
            trainer.say(why)
        for trial in trials:
            status = wanted.records.read(trial).status
            if status in ("finished", "diverged") and trial.label not in told:
                clock.skip()
                say(trial, f" has {status}, in {trial.directory}")
        left = [t for t in trials if t.label not in tried and not wanted.records.is_settled(t)]
        here = [trial for trial in left if trial.directory not in trainer.running]
        free = [trial for trial in here if not DirectoryLock.is_held(trial.directory)]
        if free and trainer.has_room:
            trial = free[0]
            check_settings(trial, wanted.records.read(trial).status)
            say(trial, f", in {trial.directory}")
            before_each(trial)
            clock.begin(trial.label)
            trainer.start(trial)
        elif trainer.running:
            for trial, done in trainer.wait():
                if done:
                    clock.end(trial.label)
                    tried.add(trial.label)
                    say(trial, _describe_end(wanted.records.read(trial)))
                    after_each(trial)
                else:
                    clock.forget(trial.label)
                    told.discard(trial.label)
        elif not here:
            return
        else:
            words = f"waiting for {', '.join(one.label for one in here)}: in training elsewhere"
            if words != waits:
                waits = words
                trainer.say(words)
            trainer.rest(PATIENCE)


def _describe_end(outcome: Outcome) -> str:
    """How a training has ended: `` has finished: 2.1780 bits/byte``."""
    value = compute_figures(outcome)[outcome.measure.key]
    words = f": {outcome.measure.words(value)}" if math.isfinite(value) else ""
    return f" has {outcome.status}{words}" if outcome.status != "not trained" else " is not trained"
