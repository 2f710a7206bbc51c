"""The analysis of a study of many sizes and lengths: ``Study(..., analysis=Frontier())``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moejax.config.checks import check, shorten
from moejax.config.config import Config
from moejax.config.files import differences
from moejax.lab.frontier.findings import find_all
from moejax.lab.frontier.findings_json import to_json
from moejax.lab.frontier.frontier_page import draw_section
from moejax.lab.frontier.rows import DENSE, Row, describe_shape
from moejax.lab.frontier.step_times import FILE, read_step_times
from moejax.lab.study.analysis import Findings
from moejax.lab.study.results import Comparison, compute_figures

FEWEST = 20
NO_PART_OF_A_SHAPE = ("optim.learning_rate", "optim.muon_learning_rate")
"""Settings of the optimizer in which runs of one shape may differ: none changes what a step
takes."""


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Loss against time and against FLOPs, for dense and routed models of several sizes: the
    frontier of each form, where they cross, and the scaling laws of ``lab/frontier/laws.py``.

    Forms and sizes are read from the configs: `dense` and `128x3`, or `16 top 4`. What a step takes
    is measured apart, by `moejax bench steps FILE`; without that, there are FLOPs alone.
    """

    held_out: tuple[str, ...] = ()
    """Runs that no law is fitted to, but that are predicted, and then compared."""
    budgets: tuple[float, ...] = (30, 75, 190, 480, 1200)
    """Seconds of training for which there is advice."""
    draws: int = 200
    """Of each bootstrap; while trainings are missing there are ``FEWEST``."""

    file: ClassVar[str] = "frontier.json"
    may_differ: ClassVar[tuple[str, ...]] = ("run.steps",)

    def __post_init__(self) -> None:
        names, budgets, draws = self.held_out, self.budgets, self.draws
        check(
            isinstance(names, tuple) and all(isinstance(name, str) for name in names),
            "Frontier.held_out must be a tuple of names of runs, such as"
            f' ("dense-128x3-6250",), not {shorten(names)}.',
        )
        check(
            isinstance(budgets, tuple)
            and bool(budgets)
            and all(type(one) in (int, float) and 0 < one < math.inf for one in budgets),
            f"Frontier.budgets must be seconds such as (30, 1200), not {shorten(budgets)}.",
        )
        check(
            type(draws) is int and draws >= FEWEST,
            f"Frontier.draws must be a whole number of at least {FEWEST}, not {shorten(draws)}.",
        )

    def check(self, runs: Mapping[str, Config]) -> None:
        """Raises ``ConfigError`` for names that are no runs', for a study without dense or routed
        models, and for runs of one form and size that are not the same model.
        """
        unknown = [name for name in self.held_out if name not in runs]
        check(
            not unknown,
            f"Frontier.held_out names {', '.join(unknown)}: the runs are {', '.join(runs)}.",
        )
        shapes = {name: describe_shape(config) for name, config in runs.items()}
        forms = {shape.form for shape in shapes.values()}
        check(
            DENSE in forms and len(forms) > 1,
            f"Frontier compares dense and routed models: these runs are {', '.join(sorted(forms))}."
            " Add a run with model.moe.every 0, or a routed one.",
        )
        first: dict[str, str] = {}
        for name, shape in shapes.items():
            other = first.setdefault(shape.name, name)
            differ = [
                field
                for field in differences(runs[other], runs[name])
                if field.startswith(("model.", "optim.", "mesh.", "data.batch_size"))
                and field not in NO_PART_OF_A_SHAPE
            ]
            check(
                not differ,
                f"the runs {other} and {name} are both `{shape.name}`, but differ in"
                f" {', '.join(differ)}: Frontier tells models by their form and size. Give them"
                " different sizes, or a study each.",
            )

    def analyse(
        self, runs: Mapping[str, Config], comparison: Comparison, directory: Path
    ) -> Findings:
        """Of what has finished. Raises ``RunError`` if the file of step times is damaged."""
        times = read_step_times(directory / FILE)
        shapes = {name: describe_shape(config) for name, config in runs.items()}
        rows, untrained = [], []
        for outcome in comparison.outcomes:
            name, key = outcome.name, comparison.measure.key
            loss = compute_figures(outcome)[key] if outcome.status == "finished" else math.nan
            steps = runs[name].run.steps
            row = Row(
                shape=shapes[name],
                steps=steps,
                seed=outcome.seed,
                loss=loss,
                seconds=steps * times.seconds(shapes[name].name) if times else math.nan,
                held_out=name in self.held_out,
            )
            if math.isfinite(loss) and loss > 0:
                rows.append(row)
            elif row.held_out:
                untrained.append(row)
        whole = all(one.status in ("finished", "diverged") for one in comparison.outcomes)
        found = find_all(rows, untrained, self.budgets, self.draws if whole else FEWEST)
        data = to_json(found, comparison.measure, times)
        return Findings(data=data, section=draw_section(found, data, comparison.measure, times))
