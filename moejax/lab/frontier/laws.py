"""The scaling laws of routed models that were published, as functions of rows.

Both are fitted to the held-out measure as it is. In bits per byte it is the papers' loss in nats a
token times a constant of the tokenizer, which changes the coefficients that are losses (c, g, a, b
of Krajewski et al., d of Clark et al.) and nothing else.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from moejax.lab.frontier.fitting import Law
from moejax.lab.frontier.rows import Points, Row

KRAJEWSKI = "Krajewski et al. 2024"
DENSE_LAW = "the same for dense models"
CLARK = "Clark et al. 2022"
MOST_START = 5.0
"""E_start is sought between 1 and this: a few expansions cannot tell it from the coefficients."""


def krajewski_law(rows: Sequence[Row]) -> Law:
    """Krajewski et al. 2024, "Scaling laws for fine-grained mixture of experts" (arXiv 2402.07871):

        L(N, D, G) = c + (g / G^gamma + a) / N^alpha + b / D^beta

    for parameters N, tokens D and granularity G, at one expansion E. Deviations: N leaves routers
    out, so that twins have the same; E is what the study has (they have 64); the squares are those
    of logarithms, as Hoffmann et al. 2022 have it; no weight decay on the coefficients.
    """
    N0, D0, least = _middle(rows)
    starts = [
        (c * least, math.log(0.3 * (1 - c) * least), 0.5, math.log(0.3 * (1 - c) * least), exponent,
         math.log(0.3 * (1 - c) * least), other)
        for c, exponent, other in itertools.product((0.1, 0.5, 0.8), (0.15, 0.5), (0.15, 0.5))
    ]  # fmt: skip

    def predict(x: np.ndarray, at: Points) -> np.ndarray:
        c, g, gamma, a, alpha, b, beta = x
        of_size = (np.exp(g) / at.G**gamma + np.exp(a)) / (at.N / N0) ** alpha
        return np.log(c + of_size + np.exp(b) / (at.D / D0) ** beta)

    def translate(x: np.ndarray) -> dict[str, float]:
        c, g, gamma, a, alpha, b, beta = x
        g, a = (math.exp(log) * N0**alpha for log in (g, a))
        values = (c, g, gamma, a, alpha, math.exp(b) * D0**beta, beta)
        return dict(zip(("c", "g", "gamma", "a", "alpha", "b", "beta"), values, strict=True))

    return Law(
        name=KRAJEWSKI,
        predict=predict,
        starts=starts,
        low=(0, -20, 0, -20, 0.01, -20, 0.01),
        high=(least, 5, 5, 5, 3, 5, 3),
        translate=translate,
        spread={"N": 3, "D": 3, "G": 3},
    )


def dense_law(rows: Sequence[Row], c: float) -> Law:
    """The law of dense models that Krajewski et al. hold theirs against (Hoffmann et al. 2022,
    arXiv 2203.15556): L(N, D) = c + a / N^alpha + b / D^beta, with the c of the routed fit, since
    it is what cannot be known about the text.
    """
    N0, D0, least = _middle(rows)
    rest = max(0.05 * least, least - c)
    starts = [
        (math.log(share * rest), alpha, math.log((1 - share) * rest), beta)
        for share, alpha, beta in itertools.product((0.3, 0.7), (0.15, 0.5), (0.15, 0.5))
    ]

    def predict(x: np.ndarray, at: Points) -> np.ndarray:
        a, alpha, b, beta = x
        of_size = np.exp(a) / (at.N / N0) ** alpha
        return np.log(c + of_size + np.exp(b) / (at.D / D0) ** beta)

    def translate(x: np.ndarray) -> dict[str, float]:
        a, alpha, b, beta = x
        found = {"c": c, "a": math.exp(a) * N0**alpha, "alpha": alpha}
        return found | {"b": math.exp(b) * D0**beta, "beta": beta}

    return Law(
        name=DENSE_LAW,
        predict=predict,
        starts=starts,
        low=(-20, 0.01, -20, 0.01),
        high=(5, 3, 5, 3),
        translate=translate,
        spread={"N": 3, "D": 3},
    )


def clark_law(rows: Sequence[Row]) -> Law:
    """Clark et al. 2022, "Unified scaling laws for routed language models" (arXiv 2202.01169):

        log L(N, E) = a log N + b log E' + c log N log E' + d
        1 / E' = 1 / (E - 1 + 1 / (1 / E_start - 1 / E_max)) + 1 / E_max

    for parameters N and experts E, at one number of tokens; logarithms to base 10. E' is E_start
    for a dense model (E = 1) and saturates at E_max. Deviations: E is the expansion, the number of
    experts over those that a token meets, which are together as wide as the dense twin's layer;
    theirs are that wide each, and a token meets one. E_start is sought up to ``MOST_START``.
    """
    known = Points.from_rows(rows)
    centre, most = float(np.log10(known.N).mean()), float(known.E.max())
    level = float(np.mean([math.log10(row.loss) for row in rows]))
    starts = [
        (-0.1, -0.05, 0.01, level, math.log(start), math.log(saturated * most))
        for start, saturated in itertools.product((1.2, 2.0), (0.5, 2.0, 20.0))
    ]

    def predict(x: np.ndarray, at: Points) -> np.ndarray:
        a, b, c, d, start, above = x
        N = np.log10(at.N) - centre
        E = np.log10(saturate(at.E, *_ends(start, above)))
        return math.log(10) * (a * N + b * E + c * N * E + d)

    def translate(x: np.ndarray) -> dict[str, float]:
        a, b, c, d, start, above = x
        E_start, E_max = _ends(start, above)
        found = {"a": a, "b": b - c * centre, "c": c, "d": d - a * centre}
        return found | {"E_start": E_start, "E_max": E_max}

    return Law(
        name=CLARK,
        predict=predict,
        starts=starts,
        low=(-2, -2, -1, level - 2, 0, -2),
        high=(0, 1, 1, level + 2, math.log(MOST_START), math.log(1000 * most)),
        translate=translate,
        spread={"N": 3, "E": 4},
    )


def saturate(E: np.ndarray, start: float, most: float) -> np.ndarray:
    """E' of Clark et al.: from ``start`` where E is 1, up to ``most``."""
    return 1 / (1 / (E - 1 + 1 / (1 / start - 1 / most)) + 1 / most)


def find_cutoff(coefficients: dict[str, float]) -> float:
    """N above which more experts no longer lower the loss, by Clark et al.: 10^(-b/c); infinite
    where they never cease to, and 0 where they never begin.
    """
    b, c = coefficients["b"], coefficients["c"]
    if c > 0:
        return 10 ** min(300.0, -b / c) if b < 0 else 0.0
    return math.inf


def count_effective(coefficients: dict[str, float], N: float, E: float) -> float:
    """The parameters of the dense model that has the loss of N parameters with expansion E, by
    Clark et al.: log N' = ((a + c log E') log N + b log(E' / E_start)) / (a + c log E_start).
    """
    a, b, c = (coefficients[name] for name in "abc")
    start = coefficients["E_start"]
    reached = float(saturate(np.array(E), start, coefficients["E_max"]))
    top = (a + c * math.log10(reached)) * math.log10(N) + b * math.log10(reached / start)
    slope = a + c * math.log10(start)
    return 10 ** min(300.0, top / slope) if slope < 0 else math.nan


def _ends(start: float, above: float) -> tuple[float, float]:
    """E_start and E_max, which is always larger, of the solver's coefficients."""
    return math.exp(start), math.exp(start) + math.exp(above)


def _middle(rows: Sequence[Row]) -> tuple[float, float, float]:
    """The geometric means of N and D, to which the solver's coefficients refer, and the least
    loss.
    """
    known = Points.from_rows(rows)
    N0, D0 = (float(np.exp(np.log(values).mean())) for values in (known.N, known.D))
    return N0, D0, min(row.loss for row in rows)
