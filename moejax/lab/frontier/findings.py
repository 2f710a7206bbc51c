"""All that a scaling study says, from its rows: frontiers, crossings, laws, predictions, advice."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moejax.lab.frontier.advice import Choice, Experts, choose_shapes, find_cutoffs, weigh_experts
from moejax.lab.frontier.fitting import Fit, Prediction, Unfitted, fit_law
from moejax.lab.frontier.hulls import Cost, Crossing, Hull, cross, find_hull
from moejax.lab.frontier.laws import (
    CLARK,
    DENSE_LAW,
    KRAJEWSKI,
    clark_law,
    dense_law,
    krajewski_law,
)
from moejax.lab.frontier.rows import DENSE, Row, group_cells, select_form

COSTS: dict[str, Cost] = {"seconds": lambda row: row.seconds, "FLOPs": lambda row: row.flops}


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a law says of trainings that it was not fitted to, and what they came to."""

    law: str
    shape: str
    steps: int
    predicted: Prediction
    loss: float | None
    """The mean over its seeds; None where it is not trained yet."""

    @property
    def error(self) -> float | None:
        """What was measured over what was predicted, less 1."""
        return None if self.loss is None else self.loss / self.predicted.loss - 1


@dataclass(frozen=True, kw_only=True)
class Found:
    """Of a study; what could not be had is missing, or says why."""

    rows: tuple[Row, ...]
    hulls: dict[str, dict[str, Hull]]
    """By cost, then by form."""
    crossings: dict[str, dict[str, Crossing]]
    """By cost, then by routed form: where it begins to lead over the dense one."""
    fits: dict[str, Fit | Unfitted]
    """By name of the law, with the number of tokens where it is for one."""
    held_out: tuple[HeldOut, ...]
    choices: tuple[Choice, ...]
    experts: dict[str, list[Experts]]
    cutoffs: dict[str, tuple[float, float, float]]
    """Both by name of the fit."""
    notes: tuple[str, ...]


def find_all(
    rows: Sequence[Row], untrained: Sequence[Row], budgets: Sequence[float], draws: int
) -> Found:
    """``untrained``: rows that are held out and have no loss yet. ``budgets``: seconds."""
    timed = any(math.isfinite(row.seconds) for row in rows)
    costs = {name: cost for name, cost in COSTS.items() if timed or name != "seconds"}
    forms = list_frontiers(rows)
    hulls = {name: _find_hulls(rows, forms, cost) for name, cost in costs.items()}
    crossings = {
        name: {
            form: cross(select_form(rows, form), select_form(rows, DENSE), cost, draws)
            for form in forms
            if form != DENSE and DENSE in forms
        }
        for name, cost in costs.items()
    }
    fits, notes = _fit_all([row for row in rows if not row.held_out], draws)
    held_out = [*(row for row in rows if row.held_out), *untrained]
    of_experts = {name: fit for name, fit in fits.items() if name.startswith(CLARK)}
    fitted = {name: fit for name, fit in of_experts.items() if isinstance(fit, Fit)}
    return Found(
        rows=tuple(rows),
        hulls=hulls,
        crossings=crossings,
        fits=fits,
        held_out=tuple(_predict_all(fits, held_out)),
        choices=tuple(_advise(fits, rows, budgets)),
        experts={name: weigh_experts(fit, _laws_of(fits)[0]) for name, fit in fitted.items()},
        cutoffs={name: find_cutoffs(fit) for name, fit in fitted.items()},
        notes=tuple(notes),
    )


def list_frontiers(rows: Sequence[Row]) -> list[str]:
    """The forms that have a frontier: of several sizes, trained for several numbers of steps."""
    found = []
    for form in dict.fromkeys(row.shape.form for row in rows):
        own = select_form(rows, form)
        if len({row.shape.size for row in own}) > 1 and len({row.steps for row in own}) > 1:
            found.append(form)
    return sorted(found, key=lambda form: form != DENSE)


def _find_hulls(rows: Sequence[Row], forms: Sequence[str], cost: Cost) -> dict[str, Hull]:
    """Of the means over seeds."""
    found = {}
    for form in forms:
        cells = group_cells(select_form(rows, form)).values()
        means = [math.exp(np.mean([math.log(row.loss) for row in cell])) for cell in cells]
        hull = find_hull(np.array([cost(cell[0]) for cell in cells]), np.array(means))
        if hull:
            found[form] = hull
    return found


def _fit_all(rows: Sequence[Row], draws: int) -> tuple[dict[str, Fit | Unfitted], list[str]]:
    """Every law to the rows that it is about, and which rows that leaves out."""
    fits: dict[str, Fit | Unfitted] = {}
    notes = []
    dense, routed = select_form(rows, DENSE), [row for row in rows if row.shape.form != DENSE]
    if routed:
        expansion = Counter(row.shape.expansion for row in routed).most_common(1)[0][0]
        own = [row for row in routed if row.shape.expansion == expansion]
        fits[f"{KRAJEWSKI}, E {expansion:g}"] = law = fit_law(krajewski_law(own), own, draws)
        if len(own) < len(routed):
            others = sorted({row.shape.form for row in routed} - {row.shape.form for row in own})
            notes.append(
                f"The law of granularity is fitted to the trainings with E {expansion:g}; it leaves"
                f" out {', '.join(others)}."
            )
        if isinstance(law, Fit):
            fits[DENSE_LAW] = fit_law(dense_law(dense, law.coefficients["c"]), dense, draws)
    if dense and DENSE_LAW not in fits:
        fits[DENSE_LAW] = Unfitted(name=DENSE_LAW, why="it takes c from the law of routed models")
    for own in _choose_for_experts(rows):
        fits[f"{CLARK}, {own[0].tokens:,} tokens"] = fit_law(clark_law(own), own, draws)
    return fits, notes


def _choose_for_experts(rows: Sequence[Row]) -> list[list[Row]]:
    """What the law of Clark et al. is about, the trainings of one length each: dense ones, and
    routed ones of the granularity that has most expansions, as it knows of none; of the lengths,
    those with most expansions.
    """
    routed = [row for row in rows if row.shape.form != DENSE]
    by = {G: {r.shape.expansion for r in routed if r.shape.granularity == G} for G in _grains(rows)}
    best = max(by, key=lambda G: len(by[G]), default=None)
    coarse = [row for row in rows if row.shape.form == DENSE or row.shape.granularity == best]
    lengths = [[r for r in coarse if r.steps == n] for n in sorted({r.steps for r in coarse})]
    counts = [len({row.shape.expansion for row in own}) for own in lengths]
    return [own for own, count in zip(lengths, counts, strict=True) if count == max(counts) > 1]


def _grains(rows: Sequence[Row]) -> list[float]:
    return sorted({row.shape.granularity for row in rows if row.shape.form != DENSE})


def _laws_of(fits: dict[str, Fit | Unfitted]) -> tuple[Fit | None, Fit | None]:
    """The laws of dense and of routed models over sizes and tokens, as far as they are fitted."""
    routed = next((fit for name, fit in fits.items() if name.startswith(KRAJEWSKI)), None)
    found = fits.get(DENSE_LAW), routed
    dense, routed = (fit if isinstance(fit, Fit) else None for fit in found)
    return dense, routed


def _predict_all(fits: dict[str, Fit | Unfitted], rows: Sequence[Row]) -> list[HeldOut]:
    """Each cell that is held out, by the law of its kind."""
    dense, routed = _laws_of(fits)
    found = []
    for cell in group_cells(rows).values():
        row = cell[0]
        fit = dense if row.shape.form == DENSE else routed
        if fit is None or row.shape.expansion != fit.rows[0].shape.expansion:
            continue
        known = [one.loss for one in cell if math.isfinite(one.loss)]
        found.append(
            HeldOut(
                law=fit.law.name,
                shape=row.shape.name,
                steps=row.steps,
                predicted=fit.predict([row])[0],
                loss=math.exp(np.mean(np.log(known))) if known else None,
            )
        )
    return found


def _advise(
    fits: dict[str, Fit | Unfitted], rows: Sequence[Row], budgets: Sequence[float]
) -> list[Choice]:
    """At budgets of seconds, where the times of steps are known."""
    dense, routed = _laws_of(fits)
    if dense is None or routed is None:
        return []
    shapes = {row.shape.name: row for row in rows}
    times = {name: row.seconds / row.steps for name, row in shapes.items()}
    return choose_shapes(
        dense, routed, [row.shape for row in shapes.values()], lambda one: times[one.name], budgets
    )
