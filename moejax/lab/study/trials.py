"""The trainings of a study: a run with a seed, its directory, and what there is of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moejax.config.change import changed
from moejax.config.config import Config
from moejax.config.errors import RunError
from moejax.config.files import read_config_json
from moejax.config.idle import differences_that_matter
from moejax.lab.study.definition import Study
from moejax.lab.study.results import Outcome, Status
from moejax.runs.records import Run, read_run
from moejax.runs.run_layout import MAY_CHANGE

DIVERGED = "diverged.txt"
"""In a run's directory: why it was given up. Without it the run would be taken up again."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run of a study with one of its seeds."""

    name: str
    seed: int
    config: Config

    @property
    def directory(self) -> Path:
        """Where it is trained."""
        assert self.config.run.directory is not None  # the study has given it one
        return Path(self.config.run.directory)

    @property
    def label(self) -> str:
        """The name of its directory."""
        return self.directory.name


def plan_trials(study: Study, directory: Path) -> list[Trial]:
    """All trainings of a study, seed after seed of each run."""
    several = len(study.seeds) > 1
    return [
        Trial(
            name=name,
            seed=seed,
            config=_place(config, directory / (name + f"-seed{seed}" * several), seed),
        )
        for name, config in study.runs.items()
        for seed in study.seeds
    ]


def _place(config: Config, directory: Path, seed: int) -> Config:
    return changed(config, {"run.directory": str(directory), "run.seed": seed, "data.seed": seed})


def read_outcome(trial: Trial) -> Outcome:
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
        measure=trial.config.model.material.measure,
    )


def _status(trial: Trial, run: Run | None) -> Status:
    if run is None:
        return "not trained"
    steps = trial.config.run.steps
    reached = all(lines and lines[-1]["step"] >= steps for lines in (run.train, run.validation))
    if reached and (trial.directory / "report.html").exists():
        return "finished"
    if (trial.directory / DIVERGED).exists() and not _find_changes(trial):
        return "diverged"
    return "not finished" if run.train or run.validation else "not trained"


def _find_changes(trial: Trial) -> dict[str, tuple[Any, Any]]:
    """Settings that are not those with which the training in this directory began or went on."""
    file = trial.directory / "config.json"
    changes = {}
    if file.is_file():
        changes = differences_that_matter(read_config_json(file), trial.config)
    return {name: pair for name, pair in changes.items() if name != "run.directory"}


def check_settings(trial: Trial) -> None:
    """Refuse a directory whose training does not compare with that of the study: one with other
    settings, or with the schedule of another number of steps.
    """
    differ = {
        name: pair
        for name, pair in _find_changes(trial).items()
        if name not in MAY_CHANGE or name == "run.steps"
    }
    begun = any((trial.directory / "checkpoints").glob("*"))
    if differ and (begun or read_outcome(trial).status != "not trained"):
        lines = [f"  {name}: {old!r} -> {new!r}" for name, (old, new) in differ.items()]
        raise RunError(
            f"{trial.directory} holds a run with other settings than the study:\n"
            + "\n".join(lines)
            + "\nTo go on: undo the change, or give the study another --directory, or remove"
            f" {trial.directory} to train {trial.label} again."
        )
