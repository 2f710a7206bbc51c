"""Any runs, side by side: the comparison of a study, of runs that were not made as one."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moejax.config.errors import RunError
from moejax.config.files import flatten
from moejax.lab.study.library import load
from moejax.lab.study.results import Comparison, Outcome
from moejax.runs.metric_lines import last, number
from moejax.runs.records import Run, read_run

NOT_COMPARED = ("run.directory",)
SEEDS = ("run.seed", "data.seed")
RESULTS, UNTRAINED = "results.json", "not trained"


def read_trained(directory: Path) -> Run:
    """The run in a directory. Raises ``RunError`` if there is none."""
    try:
        run = read_run(directory)
    except FileNotFoundError as error:
        raise RunError(f"there is no directory {directory}: give that of a run.") from error
    if not (run.train or run.validation):
        raise RunError(
            f"{directory} holds no metrics of a run: give a directory that train.py has written,"
            f" such as runs/quickstart."
        )
    return run


@dataclass(frozen=True, kw_only=True)
class _Named:
    """A run that is compared: what it is called, where it lies, and in which study, if in one."""

    name: str
    directory: Path
    study: str = ""


def is_study(directory: Path) -> bool:
    """Whether this is the directory of a study, and not that of a run."""
    return (directory / RESULTS).is_file() and not (directory / "metrics.jsonl").exists()


def compare_runs(directories: Sequence[Path], command: str) -> Comparison:
    """Compare the runs in these directories, each under the name of its own, and those of studies,
    under the name of the study and theirs. Those that differ in their seeds alone are one run with
    several. Raises ``RunError`` if one is not a run's, or is given twice.
    """
    if len({*directories}) < len(directories):
        raise RunError("a run is given twice: each must have a directory of its own.")
    named = _name_runs(directories)
    runs = {one.name: read_trained(one.directory) for one in named}
    if len({run.measure.key for run in runs.values()}) > 1:
        raise RunError("some of these runs are of text and some of images: they do not compare.")
    settings = {name: flatten(run.config) for name, run in runs.items()}
    arms = _find_seeds(settings, {one.name: one.study for one in named})
    return Comparison(
        title=f"{len(runs)} runs side by side",
        question="What differs between them is in the last table.",
        command=command,
        outcomes=tuple(
            Outcome(
                name=arms[name],
                seed=_seed(settings[name]),
                label=name,
                status="finished" if _is_finished(run) else "not finished",
                run=run,
                measure=run.measure,
            )
            for name, run in runs.items()
        ),
        settings=_find_differing(
            {arms[name]: values for name, values in settings.items()},
            but=NOT_COMPARED + SEEDS * (len({*arms.values()}) < len(arms)),
        ),
    )


def _name_runs(directories: Sequence[Path]) -> list[_Named]:
    """The runs in these directories by the names of these, or, where two have one name, by all that
    was given; of studies what has begun.
    """
    found: list[_Named] = []
    names = [_name(directory) for directory in directories]
    if len({*names}) < len(names):
        names = [str(directory) for directory in directories]
    for directory, name in zip(directories, names, strict=True):
        if not is_study(directory):
            found.append(_Named(name=name, directory=directory))
            continue
        labels = [row["directory"] for row in load(directory).rows if row["status"] != UNTRAINED]
        there = [label for label in labels if (directory / label).is_dir()]
        if not there:
            raise RunError(f"the trainings of the study in {directory} are not there any more.")
        found += [
            _Named(name=f"{name}/{label}", directory=directory / label, study=name)
            for label in there
        ]
    return found


def _name(directory: Path) -> str:
    """The name of a directory, also of `.`; of a link its own, not that of what it leads to."""
    return Path(os.path.abspath(directory)).name


def _seed(settings: dict[str, Any]) -> int:
    return int(settings.get("run.seed", 0))


def _find_seeds(settings: dict[str, dict[str, Any]], study_of: dict[str, str]) -> dict[str, str]:
    """What each run is called: those of one study, or of none, that differ in their seeds alone by
    what comes before the seed in all their names, or else by the first one's name.
    """
    groups: dict[str, list[str]] = {}
    for name, values in settings.items():
        same = {f: v for f, v in values.items() if f not in (*NOT_COMPARED, *SEEDS)}
        groups.setdefault(repr((study_of[name], sorted(same.items()))), []).append(name)
    called: dict[str, str] = {}
    for names in groups.values():
        if len({_seed(settings[name]) for name in names}) < len(names):
            called |= {name: name for name in names}  # one seed twice: not an arm
            continue
        stems = {re.sub(r"[-_.]?seed[-_]?\d+$", "", name) or name for name in names}
        alone = len(names) > 1 and len(stems) == 1 and not stems & {*called.values(), *settings}
        called |= dict.fromkeys(names, stems.pop() if alone else names[0])
    return called


def _is_finished(run: Run) -> bool:
    """Whether it was evaluated after its last step; of a run without settings nobody knows when
    that is.
    """
    steps = number(run.config.get("run", {}).get("steps"))
    return bool(run.validation) and not last(run.validation, "step") < steps


def _find_differing(
    settings: dict[str, dict[str, Any]], but: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The settings that are not the same in all runs, by field, ``but`` for some."""
    fields = dict.fromkeys(field for of_run in settings.values() for field in of_run)
    found = {field: {n: of_run.get(field) for n, of_run in settings.items()} for field in fields}
    return {
        field: values
        for field, values in found.items()
        if field not in but and len({repr(value) for value in values.values()}) > 1
    }
