"""The trainings of a study: a run with a seed and a setting, its directory, and what there is of
it.

Trainings lie in a store that studies share, each under a name that says what it is
(``identity.name_training``). The directory of a study has links to its own.
"""

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moejax.config.change import changed
from moejax.config.config import Config
from moejax.config.errors import ConfigError, RunError
from moejax.config.files import read_config_json
from moejax.config.idle import differences_that_matter
from moejax.lab.study.definition import Study
from moejax.lab.study.grid import Setting
from moejax.lab.study.identity import LEFT_OUT
from moejax.lab.study.results import Outcome, Status
from moejax.runs.records import Run, read_run
from moejax.runs.run_layout import MAY_CHANGE, WITHOUT_EFFECT

DIVERGED = "diverged.txt"
"""In a run's directory: why it was given up. Without it the run would be taken up again."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run of a study with one of its seeds and one of its settings."""

    name: str
    seed: int
    config: Config
    label: str
    """What it is called in the study: the name of its link."""
    command: str
    """What trains it alone."""
    setting: Setting = field(default_factory=dict)
    number: int | None = None
    """Of the setting, from 1; None where nothing is tuned."""

    @property
    def directory(self) -> Path:
        """Where it is trained."""
        assert self.config.run.directory is not None  # the study has given it one
        return Path(self.config.run.directory)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which trainings a study has, and where they lie."""

    study: Study
    store: Path
    identify: Callable[[Config], str]
    """The name of a training in the store."""
    file: str = "FILE"
    """The study's, as it was typed."""
    _made: dict[tuple[str, int, int], Trial] = field(default_factory=dict, repr=False)

    def tuning(self, name: str) -> list[Trial]:
        """The trainings by which the setting of a run is chosen, one a setting; none where there is
        no choice.
        """
        if not self.study.tunes or name in self.study.tuned_as:
            return []
        count = len(self.study.settings_of(name))
        return [
            self.trial(name, self.study.tune_seed, number, f"{name}-tune{number}")
            for number in range(1, count + 1)
        ]

    def judging(
        self, name: str, number: int = 1, seeds: Sequence[int] | None = None
    ) -> list[Trial]:
        """The trainings of a run with the setting of this number, with these seeds; by default with
        all that it is judged by.
        """
        wanted = self.study.seeds_for(name) if seeds is None else seeds
        return [self.trial(name, seed, number) for seed in wanted]

    def trial(self, name: str, seed: int, number: int = 1, label: str | None = None) -> Trial:
        """One training, with the setting of this number, from 1."""
        key = name, seed, number
        if key not in self._made:
            self._made[key] = self._make(*key)
        return dataclasses.replace(self._made[key], label=label or self.label(name, seed))

    def _make(self, name: str, seed: int, number: int) -> Trial:
        study = self.study
        setting = study.settings_of(name)[number - 1]
        config = changed(study.config_of(name, setting), {"run.seed": seed, "data.seed": seed})
        place = str(self.store / self.identify(config))
        words = ["moejax", "study", self.file, "--only", name, "--seed", str(seed)]
        return Trial(
            name=name,
            seed=seed,
            config=changed(config, {"run.directory": place}),
            label="",
            command=shlex.join([*words, *(["--setting", str(number)] if study.tunes else [])]),
            setting=setting,
            number=number if study.tunes else None,
        )

    def label(self, name: str, seed: int) -> str:
        """What the training of a run with a seed is called."""
        study = self.study
        several = len(study.seeds) > 1 or study.tunes or bool(study.seeds_of)
        return name + f"-seed{seed}" * several


class Records:
    """What there is of trainings. What has come to its end is read once."""

    def __init__(self) -> None:
        self._settled: dict[Path, tuple[Status, Run | None, str]] = {}

    def read(self, trial: Trial) -> Outcome:
        """What there is of a training, by its directory."""
        if (found := self._settled.get(trial.directory)) is None:
            found = self._read(trial)
            if found[0] in ("finished", "diverged"):
                self._settled[trial.directory] = found
        kind, run, message = found
        return Outcome(
            name=trial.name,
            seed=trial.seed,
            label=trial.label,
            status=kind,
            run=run,
            message=message,
            measure=trial.config.model.material.measure,
            setting=trial.setting,
            number=trial.number,
            command=trial.command,
            place=str(trial.directory),
        )

    def is_settled(self, trial: Trial) -> bool:
        """Whether a training has come to its end: it has finished, or diverged."""
        return self.read(trial).status in ("finished", "diverged")

    def _read(self, trial: Trial) -> tuple[Status, Run | None, str]:
        run = read_run(trial.directory) if trial.directory.is_dir() else None
        kind = _status(trial, run)
        why = (trial.directory / DIVERGED).read_text(encoding="utf-8") if kind == "diverged" else ""
        return kind, run, why.strip()


def _status(trial: Trial, run: Run | None) -> Status:
    if run is None:
        return "not trained"
    steps = trial.config.run.steps
    reached = all(lines and lines[-1]["step"] >= steps for lines in (run.train, run.validation))
    if reached and (trial.directory / "report.html").exists():
        return "finished"
    if (trial.directory / DIVERGED).exists() and not _find_changes(trial, MAY_STAY):
        return "diverged"
    return "not finished" if run.train or run.validation else "not trained"


MAY_STAY = LEFT_OUT - {"run.max_skipped_in_a_row"}
"""What may differ between a training that diverged and one that would, too."""


def _find_changes(trial: Trial, besides: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Settings that are not those with which the training in this directory began or went on."""
    file = trial.directory / "config.json"
    changes = {}
    if file.is_file():
        changes = differences_that_matter(read_config_json(file), trial.config)
    return {name: pair for name, pair in changes.items() if name not in besides}


def check_settings(trial: Trial, status: Status) -> None:
    """Refuse a directory of the store that holds another training than its name says: the default
    of a setting has changed since, say.
    """
    differ = _find_changes(trial, LEFT_OUT | MAY_CHANGE - {"run.steps"})
    begun = any((trial.directory / "checkpoints").glob("*"))
    if differ and (begun or status != "not trained"):
        lines = [f"  {name}: {old!r} -> {new!r}" for name, (old, new) in differ.items()]
        raise RunError(
            f"{trial.directory} holds a run with other settings than {trial.label} of the study:\n"
            + "\n".join(lines)
            + f"\nTo go on: remove {trial.directory} to train it again, or give the study another"
            f" --store."
        )


def find_other(directory: Path, trial: Trial) -> tuple[Path, dict[str, tuple[Any, Any]]] | None:
    """The training that a study's link led to before, if it is another one, and its settings that
    are others.
    """
    place = directory / trial.label
    if not place.is_symlink() or not (place / "config.json").is_file():
        return None
    if place.resolve() == trial.directory.resolve():
        return None
    try:
        old = read_config_json(place / "config.json")
    except ConfigError:
        return None
    found = differences_that_matter(old, trial.config)
    differ = {name: pair for name, pair in found.items() if name not in WITHOUT_EFFECT}
    return place.resolve(), differ


def link(directory: Path, label: str, place: Path) -> None:
    """Let a study's directory lead to a training. A folder of this name stays; a file system
    without links has none.
    """
    at = directory / label
    target = os.path.relpath(place.resolve(), directory.resolve())
    if at.exists() and not at.is_symlink() or at.is_symlink() and os.readlink(at) == target:
        return
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{label}.{os.getpid()}.writing"
    with contextlib.suppress(OSError):
        os.symlink(target, temporary)
        os.replace(temporary, at)
