"""A study: configs trained under equal conditions, one after the other, and compared.

A study file is Python with a function ``get_study() -> Study``. Each run has a directory of its own
below that of the study, as if ``train.py`` had made it; what the study adds is made of their
records alone, so it can be made again without training:

* ``results.json``: every figure of every run and seed;
* ``table.md``: the table, in Markdown;
* ``study.html``: the table, the curves and the load of the experts, on one page.
"""

import dataclasses
import functools
import gc
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moejax.config.change import changed
from moejax.config.checks import check
from moejax.config.config import Config
from moejax.config.errors import ConfigError, DivergedError, RunError, UserError
from moejax.config.files import call_file, differences, read_config_json
from moejax.lab.study.baseline import Baseline, make_baseline
from moejax.lab.study.comparison import study_html
from moejax.lab.study.conditions import check_conditions
from moejax.lab.study.results import Comparison, Outcome, Status, to_json
from moejax.lab.study.tables import markdown, table
from moejax.runs.measures import measure_of
from moejax.runs.records import Run, read_run
from moejax.runs.run_directory import MAY_CHANGE
from moejax.runtime.atomic_files import write_json, write_text
from moejax.runtime.stop import Stopped, StopSignals

say = functools.partial(print, flush=True)

DIVERGED = "diverged.txt"
"""In a run's directory: why it was given up. Without it the run would be taken up again."""
FILES = ("results.json", "table.md", "study.html")
SET_BY_THE_STUDY = ("run.directory", "run.seed", "data.seed")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Configs to compare. Each is trained once with every seed."""

    title: str
    """What is compared."""
    question: str
    """What the comparison should answer, in a sentence."""
    runs: dict[str, Config]
    """The configs by name; their seeds and directories are set by the study."""
    seeds: tuple[int, ...] = (0,)
    """Each is the seed of the initial parameters and of the shuffle."""
    baseline: str | None = None
    """The run, often the dense twin, that the others are held against: the table has the difference
    of bits per byte with the same seed, and the steps and seconds of training after which they are
    as good as the baseline is at its end (the mean over its seeds), by linear interpolation between
    the first evaluation that is and the one before it."""
    flops_tolerance: float | None = 0.05
    """By how much of the smallest the runs' active FLOPs a token may differ; None for any, where
    that is what is compared."""

    def __post_init__(self) -> None:
        for name in ("title", "question"):
            words = getattr(self, name)
            check(
                isinstance(words, str) and bool(words.strip()),
                f"Study.{name} must be a text of at least one word, not {words!r}.",
            )
        check(
            isinstance(self.runs, dict) and bool(self.runs),
            'Study.runs must be a dict with at least one config by name, such as {"dense": config},'
            f" not {self.runs!r}.",
        )
        for name, config in self.runs.items():
            check(
                isinstance(name, str)
                and re.fullmatch(r"\w[\w.+=-]{0,99}", name, re.ASCII) is not None
                and name not in FILES,
                f"the run {name!r} cannot be the name of a directory: take letters, digits and any"
                " of _ . + = - after the first character, at most 100.",
            )
            check(
                isinstance(config, Config),
                f"Study.runs[{name!r}] must be a moejax.config.Config, not"
                f" {type(config).__name__}.",
            )
        lower = [name.lower() for name in self.runs]
        same = [name for name in self.runs if lower.count(name.lower()) > 1]
        check(
            not same,
            f"the runs {', '.join(same)} would share a directory where case does not count.",
        )
        seeds = self.seeds
        check(
            isinstance(seeds, tuple)
            and len(set(seeds)) == len(seeds) > 0
            and all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds),
            "Study.seeds must be a tuple of different whole numbers in [0, 2**31), such as"
            f" (0, 1, 2), not {seeds!r}.",
        )
        check(
            self.baseline is None or self.baseline in self.runs,
            f"Study.baseline must be the name of a run ({', '.join(self.runs)}) or None, not"
            f" {self.baseline!r}.",
        )
        tolerance = self.flops_tolerance
        check(
            tolerance is None or (type(tolerance) in (int, float) and tolerance >= 0),
            f"Study.flops_tolerance must be a share such as 0.05, or None, not {tolerance!r}.",
        )
        check_conditions(self.runs, tolerance)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run of a study with one of its seeds."""

    name: str
    seed: int
    config: Config

    @property
    def directory(self) -> Path:
        """Where it is trained."""
        return Path(self.config.run.directory)

    @property
    def label(self) -> str:
        """The name of its directory."""
        return self.directory.name


def load_study_file(path: str | Path) -> Study:
    """Run ``get_study()`` of a study file. Raises ``ConfigError`` when there is none, or it
    fails.
    """
    return call_file(path, "get_study", Study, "study")


def plan_trials(study: Study, directory: Path) -> list[Trial]:
    """All trainings of a study, seed after seed of each run."""
    several = len(study.seeds) > 1
    return [
        Trial(
            name=name,
            seed=seed,
            config=_placed(config, directory / (name + f"-seed{seed}" * several), seed),
        )
        for name, config in study.runs.items()
        for seed in study.seeds
    ]


def _placed(config: Config, directory: Path, seed: int) -> Config:
    return changed(config, {"run.directory": str(directory), "run.seed": seed, "data.seed": seed})


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
    try:
        with StopSignals():  # between runs as during them: the exit code tells the signal
            for trial in trials:
                _check_settings(trial)
            _train_all(study, directory, trials, command, only)
            return write_comparison(study, directory, trials, command)
    except Stopped as stopped:
        say(f"{stopped.name}: the study stops; the same command goes on with it.")
        raise
    except OSError as error:
        raise RunError(f"cannot read or write the study in {directory}: {error}.") from error


def _train_all(
    study: Study, directory: Path, trials: Sequence[Trial], command: str, only: Sequence[str]
) -> None:
    chosen = [trial for trial in trials if not only or trial.name in only]
    with tempfile.TemporaryDirectory(prefix="moejax-") as compiled:
        for number, trial in enumerate(chosen, 1):
            found = outcome(trial)
            where = f"run {number} of {len(chosen)}: {trial.label}"
            if found.status in ("finished", "diverged"):
                say(f"{where} has {found.status}, in {trial.directory}")
                continue
            say(f"{where}, in {trial.directory}")
            _train(trial, command, Path(compiled))
            write_comparison(study, directory, trials, command)


def _train(trial: Trial, command: str, compiled: Path) -> None:
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
            train(trial.config, name=trial.label, command=command)
    except DivergedError as error:
        write_text(trial.directory / DIVERGED, f"{error}\n")
        say(f"{trial.label} diverged: {error}")
    except UserError as error:
        raise RunError(f"{trial.label}: {error}") from error
    finally:
        jax.clear_caches()  # the compiled steps of one run are of no use to the next
        gc.collect()


def outcome(trial: Trial) -> Outcome:
    """What there is of a training, by its directory."""
    run = read_run(trial.directory) if trial.directory.is_dir() else None
    kind = _status(trial, run)
    why = (trial.directory / DIVERGED).read_text(encoding="utf-8") if kind == "diverged" else ""
    return Outcome(
        name=trial.name,
        seed=trial.seed,
        label=trial.label,
        status=kind,
        run=run,
        message=why.strip(),
        measure=measure_of(trial.config.model.kind),
    )


def _status(trial: Trial, run: Run | None) -> Status:
    if run is None:
        return "not trained"
    steps = trial.config.run.steps
    reached = all(lines and lines[-1]["step"] >= steps for lines in (run.train, run.validation))
    if reached and (trial.directory / "report.html").exists():
        return "finished"
    if (trial.directory / DIVERGED).exists() and not _changes(trial):
        return "diverged"
    return "not finished" if run.train or run.validation else "not trained"


def _changes(trial: Trial) -> dict[str, tuple[Any, Any]]:
    """Settings that are not those with which the training in this directory began or went on."""
    file = trial.directory / "config.json"
    changes = differences(read_config_json(file), trial.config) if file.is_file() else {}
    return {name: pair for name, pair in changes.items() if name != "run.directory"}


def _check_settings(trial: Trial) -> None:
    """Refuse a directory whose training does not compare with that of the study: one with other
    settings, or with the schedule of another number of steps.
    """
    differ = {
        name: pair
        for name, pair in _changes(trial).items()
        if name not in MAY_CHANGE or name == "run.steps"
    }
    begun = any((trial.directory / "checkpoints").glob("*"))
    if differ and (begun or outcome(trial).status != "not trained"):
        lines = [f"  {name}: {old!r} -> {new!r}" for name, (old, new) in differ.items()]
        raise RunError(
            f"{trial.directory} holds a run with other settings than the study:\n"
            + "\n".join(lines)
            + "\nTo go on: undo the change, or give the study another --directory, or remove"
            f" {trial.directory} to train {trial.label} again."
        )


def write_comparison(
    study: Study, directory: Path, trials: Sequence[Trial], command: str
) -> Comparison:
    """Compare what there is, and write ``results.json``, ``table.md`` and ``study.html``."""
    outcomes = [outcome(trial) for trial in trials]
    baseline = _baseline(study, outcomes)
    comparison = Comparison(
        title=study.title,
        question=study.question,
        command=command,
        outcomes=tuple(
            one
            if baseline is None or one.name == baseline.name
            else dataclasses.replace(one, baseline=baseline)
            for one in outcomes
        ),
        settings=differing_settings(study.runs),
        baseline=baseline,
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "results.json", to_json(comparison))
    write_text(directory / "table.md", markdown(table(comparison)))
    write_text(directory / "study.html", study_html(comparison))
    return comparison


def _baseline(study: Study, outcomes: Sequence[Outcome]) -> Baseline | None:
    known = [one for one in outcomes if one.name == study.baseline and one.status == "finished"]
    return make_baseline(study.baseline, {one.seed: one.run for one in known}) if known else None


def differing_settings(runs: dict[str, Config]) -> dict[str, dict[str, Any]]:
    """The settings that are not the same in all runs: ``{"model.moe.every": {"dense": 0}}``."""
    first, *_ = runs.values()
    changes = {name: differences(first, config) for name, config in runs.items()}
    bases = {field: old for found in changes.values() for field, (old, _) in found.items()}
    return {
        field: {name: changes[name].get(field, (base, base))[1] for name in runs}
        for field, base in bases.items()
        if field not in SET_BY_THE_STUDY
    }
