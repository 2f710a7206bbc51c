"""Train the runs of a study, one after the other or side by side, and compare them.

Each training has a directory of its own in a store that studies share, as if ``train.py`` had made
it. What is there already, whichever study has trained it, is not trained again.
"""

import functools
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from moejax.config.checks import check
from moejax.lab.study.definition import Study
from moejax.lab.study.identity import name_training
from moejax.lab.study.move_old import move_old_runs
from moejax.lab.study.results import Comparison
from moejax.lab.study.scheduling import train_wanted
from moejax.lab.study.study_clock import StudyClock
from moejax.lab.study.trainers import GOES_ON, Here, SideBySide, Train
from moejax.lab.study.trials import Plan, Records, Trial, check_settings, find_other, link
from moejax.lab.study.wanted import Selection, Wanted
from moejax.lab.study.write_comparison import write_comparison
from moejax.runtime.machine import count_cores
from moejax.runtime.stop import StopSignals, last_act
from moejax.runtime.writing import writing_to

say = functools.partial(print, flush=True)

SHARE = 0.05
"""Of the time that a study may spend on writing what there is of it."""
STORE = "trained"
"""The folder of trainings, beside the directory of a study."""


def run_study(
    study: Study,
    directory: Path,
    *,
    train: Train,
    command: str,
    file: str = "FILE",
    store: Path | None = None,
    selection: Selection | None = None,
    at_once: int = 1,
    threads: int | None = None,
    records_only: bool = False,
) -> Comparison:
    """Train what is not yet trained, compare all runs and write the comparison to ``directory``.

    ``store``: where trainings lie; by default `trained` beside the directory. ``selection``: what
    is trained; all else is compared as it is. With ``at_once`` above 1, or a number of ``threads``,
    trainings have processes of their own, so many at a time, with so many threads each; by default
    they share the cores. With ``records_only``, what has been trained keeps no checkpoints.
    ``file`` is the study's, as it was typed; ``train`` is ``train_one``.

    What is finished or has diverged is not trained again, what was interrupted goes on. Raises
    ``UserError`` with a message for the user, and ``Stopped`` after a signal.
    """
    selection = selection or Selection()
    selection.check(study)
    store = directory.parent / STORE if store is None else store
    check(
        store.resolve() != directory.resolve(),
        f"--store {store} is the directory of the study: name another one.",
    )
    records, plan = Records(), Plan(study=study, store=store, identify=name_training, file=file)
    wanted = Wanted(plan=plan, records=records, selection=selection)
    write = functools.partial(write_comparison, wanted, directory, command)

    def begin(trial: Trial) -> None:
        link(directory, trial.label, trial.directory)

    keep_up = Sparingly(write)

    def end(trial: Trial) -> None:
        if records_only and records.read(trial).status == "finished":
            shutil.rmtree(trial.directory / "checkpoints", ignore_errors=True)
        keep_up()

    # Between runs as during them: the exit code tells the signal.
    with StopSignals(GOES_ON), writing_to("--directory DIR or --store DIR"):
        move_old_runs(study, directory, store, say)
        for trial in wanted.list_trials():
            check_settings(trial, records.read(trial).status)
            tell_of_change(trial, directory, records)
        clock = StudyClock(wanted.count())
        with (
            tempfile.TemporaryDirectory(prefix="moejax-") as compiled,
            last_act(lambda _: shutil.rmtree(compiled, ignore_errors=True)),
            make_trainer(train, command, Path(compiled), clock, at_once, threads) as trainer,
        ):
            train_wanted(wanted, trainer, clock, before_each=begin, after_each=end)
        return write()


class Sparingly:
    """Calls something, unless that would take more than a ``SHARE`` of the time."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act, self._again = act, -math.inf

    def __call__(self) -> None:
        """Call it, if enough time has gone by since it was called last."""
        if (began := time.monotonic()) < self._again:
            return
        self._act()
        ended = time.monotonic()
        self._again = ended + (ended - began) / SHARE


def tell_of_change(trial: Trial, directory: Path, records: Records) -> None:
    """Say that a training of this study is about to be made again, with other settings."""
    if records.is_settled(trial) or (other := find_other(directory, trial)) is None:
        return
    place, differ = other
    words = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in differ.items())
    say(f"{trial.label} was trained with other settings before ({words}): it stays in {place}.")


def make_trainer(
    train: Train,
    command: str,
    compiled: Path,
    clock: StudyClock,
    at_once: int,
    threads: int | None,
) -> Here | SideBySide:
    """What trains: this process, or processes of their own."""
    if at_once == 1 and threads is None:
        return Here(train, command, compiled, clock)
    threads = threads or max(1, count_cores() // at_once)
    return SideBySide(command, compiled, clock, at_once, threads)
