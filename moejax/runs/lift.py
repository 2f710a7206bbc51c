"""How much more often than by chance things go together: the lift of a table of counts.

Letters: Y: classes of tokens.
"""

import numpy as np

SURE = 3.0
"""A count is called chance up to so many standard deviations from the expected one."""


def lift(counts_EY: np.ndarray) -> np.ndarray:
    """P(expert | class) / P(expert), ``lift_EY``: 1 where the class makes no difference, and where
    nothing was counted. Leading dimensions are kept.
    """
    total = counts_EY.sum((-2, -1), keepdims=True)
    expected_EY = counts_EY.sum(-1, keepdims=True) * counts_EY.sum(-2, keepdims=True)
    out_EY = np.ones(counts_EY.shape)
    return np.divide(counts_EY * total, expected_EY, out=out_EY, where=expected_EY > 0)


def expected_counts(counts_EY: np.ndarray) -> np.ndarray:
    """The counts that chance would give, with the same totals of each expert and each class."""
    total = max(counts_EY.sum(), 1)
    return counts_EY.sum(1, keepdims=True) * counts_EY.sum(0, keepdims=True) / total
