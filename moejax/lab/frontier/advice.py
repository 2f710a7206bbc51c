"""What the fitted laws advise: dense or routed and how fine, at a budget; and how many experts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moejax.lab.frontier.fitting import Fit
from moejax.lab.frontier.laws import count_effective, find_cutoff
from moejax.lab.frontier.rows import DENSE, Row, Shape


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to train at a budget, of the shapes that there are."""

    budget: float
    shape: str
    steps: int
    loss: float
    """Of this shape, by the law."""
    sure: float
    """Of the draws of the bootstrap, how many take this shape."""
    routed: float
    """How many have a routed shape before all dense ones."""
    gain: tuple[float, float]
    """The best routed loss over the best dense one, less 1: the central 95 % of the draws."""
    inside: bool
    """Whether that shape has been trained for at least half as many steps."""


def choose_shapes(
    dense: Fit,
    routed: Fit,
    shapes: Sequence[Shape],
    price: Callable[[Shape], float],
    budgets: Sequence[float],
) -> list[Choice]:
    """The best shape at each budget, and how sure that is; ``price``: of a step. Shapes that are
    not of the fits' expansions are left out, and those with no price or no whole step for it.
    """
    of = {DENSE: dense.rows[0].shape.expansion, "routed": routed.rows[0].shape.expansion}
    longest = _find_longest([*dense.rows, *routed.rows])
    found = []
    for budget in budgets:
        rows, losses, best = [], [], []
        for kind, fit in ((DENSE, dense), ("routed", routed)):
            some = [
                Row(shape=shape, steps=int(budget / price(shape)), seed=0, loss=math.nan)
                for shape in shapes
                if (shape.form == DENSE) == (kind == DENSE)
                and shape.expansion == of[kind]
                and 0 < price(shape) <= budget
            ]
            if some:
                rows += some
                losses.append(fit.draw_losses(some))
                best += [one.loss for one in fit.predict(some)]
        if len(losses) < 2:
            continue
        found.append(_choose(budget, rows, losses, best, longest))
    return found


def _choose(
    budget: float,
    rows: list[Row],
    losses: list[np.ndarray],
    best: list[float],
    longest: dict[str, int],
) -> Choice:
    count = min(map(len, losses))
    dense, routed = (one[:count].min(1) for one in losses)
    chosen = int(np.argmin(best))
    all_draws = np.concatenate([one[:count] for one in losses], 1)
    low, high = np.quantile(routed / dense - 1, (0.025, 0.975))
    row = rows[chosen]
    return Choice(
        budget=budget,
        shape=row.shape.name,
        steps=row.steps,
        loss=best[chosen],
        sure=float(np.mean(all_draws.argmin(1) == chosen)),
        routed=float(np.mean(routed < dense)),
        gain=(float(low), float(high)),
        inside=row.steps <= 2 * longest.get(row.shape.name, 0),
    )


def _find_longest(rows: Sequence[Row]) -> dict[str, int]:
    """The most steps that each shape was trained for."""
    found: dict[str, int] = {}
    for row in rows:
        found[row.shape.name] = max(row.steps, found.get(row.shape.name, 0))
    return found


@dataclass(frozen=True, kw_only=True)
class Experts:
    """What more experts give at one size and one number of tokens."""

    size: str
    parameters: int
    tokens: int
    expansions: tuple[float, ...]
    gains: tuple[tuple[float, float, float], ...]
    """For each expansion, the loss over that of the dense twin, less 1: by the best coefficients,
    and the central 95 % of the draws."""
    effective: tuple[float, ...]
    """For each, the parameters of the dense model with that loss, over its own."""
    prices: tuple[float, ...]
    """For each, what a step takes over a dense one; NaN where that is not known."""
    timed_gains: tuple[tuple[float, float, float], ...]
    """As ``gains``, but over a dense model that is trained for the same time, and so on more
    tokens, by the dense law; NaN without it."""
    best: float
    """The expansion with the least loss, by the law."""


def weigh_experts(fit: Fit, dense: Fit | None) -> list[Experts]:
    """What each expansion of the rows gives, by the law of Clark et al., for each size of them;
    ``dense``: the law of dense models over sizes and tokens.
    """
    times = {(row.shape.size, row.shape.expansion): row.seconds / row.steps for row in fit.rows}
    expansions = tuple(sorted({row.shape.expansion for row in fit.rows}))
    sizes = {row.shape.size: row for row in sorted(fit.rows, key=lambda row: -row.shape.parameters)}
    found = []
    for size, row in reversed(sizes.items()):
        rows = [_with_expansion(row, E) for E in (1.0, *expansions)]
        draws = fit.draw_losses(rows)
        ratios = draws[:, 1:] / draws[:, :1] - 1
        at = np.array([one.loss for one in fit.predict(rows)])
        low, high = np.quantile(ratios, (0.025, 0.975), axis=0)
        N, gains = row.shape.parameters, at[1:] / at[0] - 1
        base = times.get((size, 1.0), math.nan)
        prices = tuple(times.get((size, E), math.nan) / base for E in expansions)
        found.append(
            Experts(
                size=size,
                parameters=N,
                tokens=row.tokens,
                expansions=expansions,
                gains=tuple(zip(gains.tolist(), low.tolist(), high.tolist(), strict=True)),
                effective=tuple(count_effective(fit.coefficients, N, E) / N for E in expansions),
                prices=prices,
                timed_gains=tuple(
                    _weigh_time(row, price, gain, ratio, dense)
                    for price, gain, ratio in zip(prices, gains, ratios.T, strict=True)
                ),
                best=expansions[int(np.argmin(gains))],
            )
        )
    return found


def _weigh_time(
    row: Row, price: float, gain: float, gains: np.ndarray, dense: Fit | None
) -> tuple[float, float, float]:
    """A gain over the dense model of the row's size, and its draws, as one over a dense model that
    is trained ``price`` times as long.
    """
    if dense is None or not math.isfinite(price):
        return math.nan, math.nan, math.nan
    longer = Row(shape=row.shape, steps=round(price * row.steps), seed=0, loss=math.nan)
    first, last = (one.loss for one in dense.predict([row, longer]))
    draws = dense.draw_losses([row, longer])
    count = min(len(draws), gains.size)
    low, high = np.quantile(
        (1 + gains[:count]) * draws[:count, 0] / draws[:count, 1] - 1, (0.025, 0.975)
    )
    return float((1 + gain) * first / last - 1), float(low), float(high)


def find_cutoffs(fit: Fit) -> tuple[float, float, float]:
    """N above which more experts no longer help, with the central 95 % of the draws."""
    draws = [find_cutoff(fit.law.translate(draw)) for draw in fit.draws]
    low, high = np.quantile(draws, (0.025, 0.975), method="inverted_cdf")
    return find_cutoff(fit.coefficients), float(low), float(high)


def _with_expansion(row: Row, expansion: float) -> Row:
    shape = Shape(**(vars(row.shape) | {"expansion": expansion}))
    return Row(shape=shape, steps=row.steps, seed=row.seed, loss=row.loss)
