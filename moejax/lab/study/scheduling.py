"""Train what a study wants: one training after the other, or several at a time.

A training that another study is at is left to it: others come first, then this study waits for it.
"""

from collections.abc import Callable

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
    after_each: Callable[[], object],
) -> None:
    """Train what is wanted until all of it has come to its end; ``before_each`` and ``after_each``
    are called before and after each training. Raises what the trainer raises.
    """
    told, tried, waits = set[str](), set[str](), ""
    while True:
        trials = wanted.list_trials()
        clock.expect(len(trials))
        if (why := wanted.describe_undecided()) and why not in told:
            told.add(why)
            trainer.say(why)
        where = {one.label: f"run {i} of {clock.count}: " for i, one in enumerate(trials, 1)}
        for trial in trials:
            status = wanted.records.read(trial).status
            if status in ("finished", "diverged") and trial.label not in told:
                told.add(trial.label)
                clock.skip()
                trainer.say(f"{where[trial.label]}{trial.label} has {status}, in {trial.directory}")
        left = [t for t in trials if t.label not in tried and not wanted.records.is_settled(t)]
        here = [trial for trial in left if trial.directory not in trainer.running]
        free = [trial for trial in here if not DirectoryLock.is_held(trial.directory)]
        if free and trainer.has_room:
            trial = free[0]
            check_settings(trial, wanted.records.read(trial).status)
            trainer.say(f"{where[trial.label]}{trial.label}, in {trial.directory}")
            told.add(trial.label)
            before_each(trial)
            clock.begin(trial.label)
            trainer.start(trial)
        elif trainer.running:
            for trial, done in trainer.wait():
                if done:
                    clock.end(trial.label)
                    tried.add(trial.label)
                    after_each()
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
