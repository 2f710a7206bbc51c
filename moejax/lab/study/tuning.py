"""Which setting a run takes: the one that ends with the least measure with the seed that tunes."""

import math
from collections.abc import Sequence

from moejax.lab.study.definition import Study
from moejax.lab.study.grid import find_edges
from moejax.lab.study.results import Outcome, Tuned, compute_figures


def choose_setting(study: Study, name: str, outcomes: Sequence[Outcome]) -> Tuned:
    """How the setting of a run is chosen, from what there is of its trainings, one a setting. It is
    chosen when all of them have come to their end; of equals the first. One that diverged is never
    chosen, nor one whose measure is not finite.
    """
    found = Tuned(status="not tuned", seed=study.tune_seed, outcomes=tuple(outcomes))
    if any(one.status not in ("finished", "diverged") for one in outcomes):
        return found
    values = [compute_figures(one)[one.measure.key] for one in outcomes]
    if not any(map(math.isfinite, values)):
        return Tuned(status="diverged", seed=study.tune_seed, outcomes=tuple(outcomes))
    number = 1 + min(
        (i for i, value in enumerate(values) if math.isfinite(value)), key=lambda i: values[i]
    )
    edges = find_edges(study.runs[name], study.grid_of(name), study.settings_of(name)[number - 1])
    place = f"Study.tune_own[{name!r}]" if name in study.tune_own else "Study.tune"
    return Tuned(
        status="tuned",
        seed=study.tune_seed,
        outcomes=tuple(outcomes),
        chosen=number,
        edges=tuple(
            f"{words} is at the edge of what was tried: add {beyond} values to {place}"
            for words, beyond in edges
        ),
    )
