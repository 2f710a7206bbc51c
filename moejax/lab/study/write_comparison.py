"""Compare what there is of a study's runs, and write it.

It is made of the records of the runs alone, so it can be made again without training:

* ``results.json``: every figure of every run and seed;
* ``table.md``: the table, in Markdown;
* ``study.html``: the table, the curves and the load of the experts, on one page.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moejax.config.config import Config
from moejax.config.files import differences
from moejax.lab.study.baseline import Baseline, make_baseline
from moejax.lab.study.definition import Study
from moejax.lab.study.results import Comparison, Outcome, Tuned
from moejax.lab.study.results_json import to_json
from moejax.lab.study.study_page import study_html
from moejax.lab.study.tables import make_table, write_markdown
from moejax.lab.study.trials import link
from moejax.lab.study.wanted import Wanted
from moejax.runtime.atomic_files import write_json, write_text

SET_BY_THE_STUDY = ("run.directory", "run.seed", "data.seed")


def write_comparison(wanted: Wanted, directory: Path, command: str) -> Comparison:
    """Compare what there is, and write ``results.json``, ``table.md`` and ``study.html``, and links
    to the trainings.
    """
    study, outcomes = wanted.plan.study, wanted.read_outcomes()
    tuning = {name: wanted.tuned(name) for name in study.runs if study.tunes}
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
        settings=differing_settings(
            {name: _take_setting(study, name, tuning.get(name)) for name in study.runs}
        ),
        baseline=baseline,
        margin=study.margin,
        more_seeds=study.more_seeds,
        tuning=tuning,
    )
    directory.mkdir(parents=True, exist_ok=True)
    for outcome in [*outcomes, *(one for of in tuning.values() for one in of.outcomes)]:
        if outcome.run is not None:
            link(directory, outcome.label, Path(outcome.place))
    write_json(directory / "results.json", to_json(comparison))
    write_text(directory / "table.md", write_markdown(make_table(comparison)))
    section = ""
    if study.analysis is not None:
        found = study.analysis.analyse(study.runs, comparison, directory)
        write_json(directory / study.analysis.file, found.data)
        section = found.section
    write_text(directory / "study.html", study_html(comparison, section))
    return comparison


def _take_setting(study: Study, name: str, tuned: Tuned | None) -> Config:
    """The config of a run with the setting that was chosen, or as it is as long as none is."""
    if tuned is None or tuned.chosen is None:
        return (
            study.runs[name] if study.tunes else study.config_of(name, study.settings_of(name)[0])
        )
    return study.config_of(name, study.settings_of(name)[tuned.chosen - 1])


def _baseline(study: Study, outcomes: Sequence[Outcome]) -> Baseline | None:
    known = [one for one in outcomes if one.name == study.baseline and one.status == "finished"]
    runs = {one.seed: one.run for one in known if one.run is not None}
    if study.baseline is None or not runs:
        return None
    return make_baseline(study.baseline, runs, study.more_seeds)


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
