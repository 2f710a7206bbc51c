"""Fits of scaling laws: robust least squares of logarithms, with intervals by bootstrap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from moejax.lab.frontier.rows import Points, Row

HUBER = 0.01
"""Residuals of logarithms beyond it count linearly (delta of the Huber loss): about what seeds
differ by in models as small as ours. Hoffmann et al. 2022 (arXiv 2203.15556) have 0.001, Krajewski
et al. 2024 0.1, with which a residual of our losses is never an outlier."""
OF_THE_BEST, OF_A_DRAW = 400, 60
"""How often the solver may ask a law; a draw begins where the best fit is."""
SPARE = 3
"""Rows that a law needs beyond the number of its coefficients."""

Predict = Callable[[np.ndarray, Points], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Law:
    """A law for the logarithm of the loss, in coefficients that a solver can handle."""

    name: str
    predict: Predict
    """The logarithms of the losses, by the solver's coefficients."""
    starts: Sequence[Sequence[float]]
    """Where the solver begins; the best end counts."""
    low: Sequence[float]
    high: Sequence[float]
    """Bounds of the solver's coefficients."""
    translate: Callable[[np.ndarray], dict[str, float]]
    """The coefficients of the paper, by name, from those of the solver."""
    spread: dict[str, int]
    """What must vary among the rows, a letter of ``Points``, and in how many values at least."""


@dataclass(frozen=True, kw_only=True)
class Unfitted:
    """Why there is no fit, in words."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A law with the coefficients that fit best, and those of the draws of a bootstrap."""

    law: Law
    rows: tuple[Row, ...]
    best: np.ndarray
    draws: np.ndarray
    """The solver's coefficients, a row for each draw."""
    residuals: np.ndarray
    """Of the logarithms, one for each row: what was measured less what the law says."""

    @property
    def coefficients(self) -> dict[str, float]:
        """Those of the paper."""
        return self.law.translate(self.best)

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The central 95 % of each coefficient over the draws."""
        found = [self.law.translate(draw) for draw in self.draws]
        return {name: _central([one[name] for one in found]) for name in self.coefficients}

    @property
    def error(self) -> float:
        """The root mean square of the residuals: 0.01 is 1 % of the loss."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def draw_losses(self, rows: Sequence[Row]) -> np.ndarray:
        """The losses of rows by each draw: [draw, row]."""
        points = Points.from_rows(rows)
        return np.exp([self.law.predict(draw, points) for draw in self.draws])

    def predict(self, rows: Sequence[Row]) -> list["Prediction"]:
        """What a single new training of each row would come to. The interval has both the doubt
        about the coefficients (the draws) and what a training differs by from the law (the
        residuals).
        """
        random = np.random.default_rng(1)
        at = np.exp(self.law.predict(self.best, Points.from_rows(rows)))
        noise = random.choice(self._stretched, (len(self.draws), len(rows)))
        losses = self.draw_losses(rows) * np.exp(noise)
        return [
            Prediction(float(a), *_central(all_a)) for a, all_a in zip(at, losses.T, strict=True)
        ]

    @property
    def _stretched(self) -> np.ndarray:
        """Residuals as large as those of rows that were not fitted."""
        return stretch(self.residuals, self.best.size)


@dataclass(frozen=True)
class Prediction:
    """A loss, and the central 95 % of what it may be."""

    loss: float
    low: float
    high: float


def stretch(residuals: np.ndarray, coefficients: int) -> np.ndarray:
    """Residuals about their mean, enlarged by sqrt(n / (n - p)): fitting p coefficients has made
    them smaller than the errors are.
    """
    n = residuals.size
    return (residuals - residuals.mean()) * np.sqrt(n / max(1, n - coefficients))


def fit_law(law: Law, rows: Sequence[Row], draws: int) -> Fit | Unfitted:
    """Fit a law, with ``draws`` draws of a residual bootstrap: the best law's losses, each with a
    residual of any row drawn with replacement, fitted again from the best coefficients.

    Rows are taken as they are, one for each seed. Says why not where they are too few, or do not
    vary in what the law is about.
    """
    why = find_lack(law, rows)
    if why:
        return Unfitted(name=law.name, why=why)
    points, logs = Points.from_rows(rows), np.log([row.loss for row in rows])
    ends = [_solve(law, points, logs, start, OF_THE_BEST) for start in law.starts]
    best = min(ends, key=lambda end: end[0])[1]
    at = law.predict(best, points)
    residuals = logs - at
    random, pool = np.random.default_rng(0), stretch(residuals, best.size)
    again = [
        _solve(law, points, at + random.choice(pool, at.size), best, OF_A_DRAW)[1]
        for _ in range(draws)
    ]
    return Fit(
        law=law,
        rows=tuple(rows),
        best=best,
        draws=np.array(again).reshape(draws, best.size),
        residuals=residuals,
    )


def find_lack(law: Law, rows: Sequence[Row]) -> str:
    """What a law lacks, in words; nothing if it can be fitted."""
    needed, count = len(law.low) + SPARE, len(rows)
    if count < needed:
        return f"it has {len(law.low)} coefficients and needs {needed} trainings; there are {count}"
    points = Points.from_rows(rows)
    for what, least in law.spread.items():
        values = np.unique(getattr(points, what))
        if len(values) < least:
            found = ", ".join(f"{value:,.4g}" for value in values)
            return f"it needs {least} different values of {what}; there are {len(values)}: {found}"
    return ""


def _solve(
    law: Law, points: Points, logs: np.ndarray, start: Sequence[float] | np.ndarray, most: int
) -> tuple[float, np.ndarray]:
    """The cost and the coefficients where the solver ends."""
    end = least_squares(
        lambda x: law.predict(x, points) - logs,
        np.clip(start, law.low, law.high),
        bounds=(law.low, law.high),
        loss="huber",
        f_scale=HUBER,
        max_nfev=most,
    )
    return float(end.cost), end.x


def _central(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
