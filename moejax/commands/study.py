"""`moejax study`: train configs under equal conditions, and compare them."""

import contextlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from moejax.config.checks import check
from moejax.config.idle import warn_of_runs
from moejax.lab.study.definition import load_study_file
from moejax.lab.study.results_json import to_json
from moejax.lab.study.run_study import run_study
from moejax.lab.study.tables import make_table, write_markdown
from moejax.lab.study.train_one import train_one
from moejax.lab.study.wanted import Selection
from moejax.runtime.allocator import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Which study, and where it goes."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Python file with get_study() -> Study."""
    directory: Path | None = None
    """Where it is written; by default studies/ and FILE's name."""
    store: Path | None = None
    """Where trainings lie, which studies share; by default `trained` beside the directory."""
    only: tuple[str, ...] | None = None
    """Train these runs; compare all."""
    seed: tuple[int, ...] | None = None
    """Train with these seeds, after what tunes."""
    setting: int | None = None
    """Train with the setting of this number, from 1, and nothing that tunes."""
    at_once: int = 1
    """Trainings side by side, each in a process of its own."""
    threads: int | None = None
    """Threads of a training on CPUs; by default the cores over --at-once. Given, every training has
    a process of its own."""
    records_only: bool = False
    """Remove the checkpoints of what has been trained: its figures stay, its models do not."""
    json: bool = False
    """Print the results as JSON, and progress to stderr."""

    def __post_init__(self) -> None:
        check(self.only != (), "--only needs the names of runs.")
        check(self.seed != (), "--seed needs a number, such as 1.")
        for flag, number in (("--at-once", self.at_once), ("--threads", self.threads)):
            check(number is None or number >= 1, f"{flag} must be at least 1, not {number}.")


def study(settings: StudySettings) -> None:
    """Train the runs of a study and print the table that compares them."""
    keep_freed_memory()
    directory = settings.directory or Path("studies", settings.file.stem)
    command = shlex.join(["moejax", *sys.argv[1:]])
    progress = sys.stderr if settings.json else sys.stdout
    with contextlib.redirect_stdout(progress):
        loaded = load_study_file(settings.file)
        warn_of_runs(loaded.runs)
        comparison = run_study(
            loaded,
            directory,
            train=train_one,
            command=command,
            file=str(settings.file),
            store=settings.store,
            selection=Selection(
                only=settings.only or (), seeds=settings.seed or (), setting=settings.setting
            ),
            at_once=settings.at_once,
            threads=settings.threads,
            records_only=settings.records_only,
        )
    if settings.json:
        print(json.dumps(to_json(comparison), indent=2))
        return
    print(f"\n{write_markdown(make_table(comparison))}")
    print(f"page     {directory / 'study.html'}\ntable    {directory / 'table.md'}")
    if loaded.analysis is not None:
        print(f"analysis {directory / loaded.analysis.file}")
    print(f"results  {directory / 'results.json'}", flush=True)
