"""Train the runs of a study, one after the other.

Each run has a directory of its own below that of the study, as if ``train.py`` had made it.
"""

import functools
import gc
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from moejax.config.errors import ConfigError, DivergedError, RunError, UserError
from moejax.lab.study.definition import Study
from moejax.lab.study.results import Comparison
from moejax.lab.study.study_clock import StudyClock
from moejax.lab.study.trials import DIVERGED, Trial, check_settings, plan_trials, read_outcome
from moejax.lab.study.write_comparison import write_comparison
from moejax.runtime.atomic_files import write_text
from moejax.runtime.stop import Stopped, StopSignals, last_act
from moejax.runtime.writing import writing_to

say = functools.partial(print, flush=True)

GOES_ON = "the study stops; the same command goes on with it."


def run_study(
    study: Study, directory: Path, *, command: str, only: Sequence[str] = ()
) -> Comparison:
    """Train what is not yet trained, compare all runs and write the comparison to ``directory``.

    ``only``: names of runs; others are compared as they are. What is finished or has diverged is
    not trained again, what was interrupted goes on. Raises ``UserError`` with a message for the
    user, and ``Stopped`` after a signal.
    """
    unknown = [name for name in only if name not in study.runs]
    if unknown:
        raise ConfigError(
            f"--only {' '.join(unknown)}: the runs of this study are {', '.join(study.runs)}."
        )
    trials = plan_trials(study, directory)
    # Between runs as during them: the exit code tells the signal.
    with StopSignals(GOES_ON), writing_to("--directory DIR"):
        for trial in trials:
            check_settings(trial)
        with (
            tempfile.TemporaryDirectory(prefix="moejax-") as compiled,
            last_act(lambda _: shutil.rmtree(compiled, ignore_errors=True)),
        ):
            _train_all(study, directory, trials, command, only, Path(compiled))
        return write_comparison(study, directory, trials, command)


def _train_all(
    study: Study,
    directory: Path,
    trials: Sequence[Trial],
    command: str,
    only: Sequence[str],
    compiled: Path,
) -> None:
    """``compiled``: a folder for compiled programs, which the seeds of a run share."""
    chosen = [trial for trial in trials if not only or trial.name in only]
    clock = StudyClock(len(chosen))
    for number, trial in enumerate(chosen, 1):
        found = read_outcome(trial)
        where = f"run {number} of {len(chosen)}: {trial.label}"
        if found.status in ("finished", "diverged"):
            say(f"{where} has {found.status}, in {trial.directory}")
            clock.skip()
            continue
        say(f"{where}, in {trial.directory}")
        clock.begin()
        _train(trial, command, compiled, clock)
        clock.end()
        write_comparison(study, directory, trials, command)


def _train(trial: Trial, command: str, compiled: Path, clock: StudyClock) -> None:
    """Train to the end; that a run diverges is a result, kept in its directory."""
    import jax  # late: a study that is finished does not start it

    from moejax.runtime.processes import joins
    from moejax.runtime.reuse import keep_compiled
    from moejax.train.training import train

    if joins(trial.config.distributed, os.environ):
        raise ConfigError(
            "a study trains in one process, but here are several. Train its runs by train.py, each"
            " in all processes, or let DistributedConfig(initialize='never') keep them apart."
        )
    (trial.directory / DIVERGED).unlink(missing_ok=True)
    try:
        with keep_compiled(compiled):  # for the other seeds, whose steps are the same
            train(trial.config, name=trial.label, command=command, beside=clock.describe)
    except DivergedError as error:
        write_text(trial.directory / DIVERGED, f"{error}\n")
        say(f"{trial.label} diverged: {error}")
    except UserError as error:
        raise RunError(f"{trial.label}: {error}") from error
    except Stopped as stopped:
        say(f"{stopped.name}: {GOES_ON}")
        raise
    jax.clear_caches()  # the compiled steps of one run are of no use to the next
    gc.collect()
