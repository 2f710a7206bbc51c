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
from moejax.lab.study.results import Comparison, Outcome
from moejax.lab.study.results_json import to_json
from moejax.lab.study.study_page import study_html
from moejax.lab.study.tables import make_table, write_markdown
from moejax.lab.study.trials import Trial, read_outcome
from moejax.runtime.atomic_files import write_json, write_text

SET_BY_THE_STUDY = ("run.directory", "run.seed", "data.seed")


def write_comparison(
    study: Study, directory: Path, trials: Sequence[Trial], command: str
) -> Comparison:
    """Compare what there is, and write ``results.json``, ``table.md`` and ``study.html``."""
    outcomes = [read_outcome(trial) for trial in trials]
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
        margin=study.margin,
        more_seeds=study.more_seeds,
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "results.json", to_json(comparison))
    write_text(directory / "table.md", write_markdown(make_table(comparison)))
    write_text(directory / "study.html", study_html(comparison))
    return comparison


def _baseline(study: Study, outcomes: Sequence[Outcome]) -> Baseline | None:
    known = [one for one in outcomes if one.name == study.baseline and one.status == "finished"]
    runs = {one.seed: one.run for one in known if one.run is not None}
    if study.baseline is None or not runs:
        return None
    return make_baseline(study.baseline, runs)


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
