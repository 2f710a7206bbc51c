"""The results of a study, read back: ``moejax.study.load("docs/studies/catalogue/results.json")``.

Rows are plain dicts, ready for pandas: ``pandas.DataFrame(load(path).rows)``. At its head this file
imports nothing but Python's own library, as ``import moejax`` imports it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a study."""

    title: str
    question: str
    command: str
    """What was run."""
    measure: str
    """What runs are judged by, such as `bits_per_byte`; less is better."""
    baseline: str | None
    """The run that the others are held against."""
    arms: tuple[str, ...]
    """The names of its runs, in order."""
    rows: list[Row]
    """One for each training that judges a run: `arm`, `seed`, `setting` (what was tuned, by field),
    `setting_number`, `status`, `measure` (None if it has none), the figures by name
    (`flops_per_token`, `parameters_active`, `training_seconds`, `processor_seconds`,
    `dropped_fraction`, ...), `versions`, `machine`, `command` (what makes this row again), and
    `curve` and `training_curve`: columns by name, `step`, `tokens` (or `images`), `measure` (or
    `loss`), `seconds`, `processor_seconds`."""
    tuning_rows: list[Row]
    """The same for each training that a setting was chosen by, with `chosen` for the best one."""
    chosen: dict[str, dict[str, Any]]
    """The setting that each run takes; only of runs that were tuned."""
    edges: dict[str, list[str]]
    """The runs whose best setting lies at the edge of its range, and what should be tried, too."""
    verdicts: dict[str, Row]
    """Each run against the baseline: `kind` (`better`, `worse`, `same`, `equal`, `undecided`,
    `waiting` for seeds, `unknown`), `words`, and `mean`, `low`, `high` of the difference."""
    best: tuple[str, ...]
    """The runs that cannot be told from the best."""
    raw: dict[str, Any] = field(repr=False)
    """All that the file has."""

    def of(self, *arms: str) -> list[Row]:
        """The rows of these runs. Raises ``KeyError`` for one that is not there."""
        for arm in arms:
            if arm not in self.arms:
                raise KeyError(f"there is no run {arm}; there are {', '.join(self.arms)}")
        return [row for row in self.rows if row["arm"] in arms]

    def curves(self, *arms: str) -> list[Row]:
        """The evaluations of these runs, by default of all: a dict for each, with `arm`, `seed`,
        `step`, `tokens` (or `images`), `measure`, `seconds` and `processor_seconds`.
        """
        return [point for row in self.of(*arms or self.arms) for point in _list_points(row)]


def load(path: str | Path) -> Results:
    """Read the results of a study: its ``results.json``, or the directory that it lies in. Raises
    ``RunError`` for what is no such file.
    """
    file = Path(path)
    file = file / "results.json" if file.is_dir() else file
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return _make_results(raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        from moejax.config.errors import RunError  # late: it takes JAX along

        why = f"is not the results.json of a study ({type(error).__name__}: {error})"
        if isinstance(error, OSError):
            why = f"cannot be read: {error.strerror}"
        raise RunError(
            f"{file} {why}. Give the results.json of a study, or the directory that it lies in,"
            f" such as studies/balancing."
        ) from error


def _make_results(raw: dict[str, Any]) -> Results:
    runs, tuning = raw["runs"], raw.get("tuning", {})
    key, decided = _find_measure(raw), raw.get("verdicts", {})
    rows = [_make_row(arm, row, key) for arm, run in runs.items() for row in run["seeds"]]
    tuned = [
        _make_row(arm, row, key) | {"chosen": number == of["chosen"]}
        for arm, of in tuning.items()
        for number, row in enumerate(of["settings"], 1)
    ]
    chosen = {arm: of["setting"] for arm, of in tuning.items() if of["setting"] is not None} | {
        row["arm"]: row["setting"] for row in rows if row.get("setting")
    }
    return Results(
        title=raw["title"],
        question=raw["question"],
        command=raw["command"],
        measure=key,
        baseline=raw["baseline"]["name"] if raw["baseline"] else None,
        arms=tuple(runs),
        rows=rows,
        tuning_rows=tuned,
        chosen=chosen,
        edges={arm: of["edges"] for arm, of in tuning.items() if of["edges"]},
        verdicts=decided.get("runs", {}),
        best=tuple(decided.get("best", ())),
        raw=raw,
    )


def _find_measure(raw: dict[str, Any]) -> str:
    """What runs are judged by; older files do not say it."""
    if "measure" in raw:
        key: str = raw["measure"]["key"]
        return key
    mean = next(iter(raw["runs"].values()))["mean"]
    return "bits_per_byte" if "bits_per_byte" in mean else "error_rate"


def _make_row(arm: str, row: Row, key: str) -> Row:
    made = {"arm": arm, **row, "measure": row[key]}
    if "curve" in row:
        made["curve"] = {("measure" if n == key else n): v for n, v in row["curve"].items()}
    return made


def _list_points(row: Row) -> Iterator[Row]:
    curve = row.get("curve", {})
    for values in zip(*curve.values(), strict=True):
        yield {"arm": row["arm"], "seed": row["seed"]} | dict(zip(curve, values, strict=True))
