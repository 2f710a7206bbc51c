"""The scales of codes that stand for some weights to the bit, if there are such.

Letters: G: groups of weights with one scale; M: weights in a group.
"""

import ml_dtypes
import numpy as np

DIGITS = {np.dtype(np.float32): 24, np.dtype(ml_dtypes.bfloat16): 8}
"""The binary digits of a number."""


def find_gaps(weights: np.ndarray, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """How far below and above a weight (float64, not negative) lie the numbers that round to it."""
    fraction, exponent = np.frexp(weights)
    above = np.ldexp(0.5, exponent - digits)
    return np.where(fraction == 0.5, above / 2, above), above


def fit_scales(
    weights_GM: np.ndarray, values_GM: np.ndarray, scale_type: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """``scale_G`` in ``scale_type``, and where it is exact: where ``values_GM`` (float32, what the
    codes mean) times it gives ``weights_GM`` in their own type (float32 or bfloat16), to the bit.

    Each weight says between which two numbers the scale must lie; where all of them agree, it is in
    the middle. A weight in bfloat16 is so rounded that several scales may do.
    """
    sizes, values = np.abs(weights_GM.astype(np.float64)), np.abs(values_GM.astype(np.float64))
    below, above = find_gaps(sizes, DIGITS[weights_GM.dtype])
    with np.errstate(divide="ignore", invalid="ignore"):
        low_G = np.where(values, (sizes - below) / values, 0).max(1)
        high_G = np.where(values, (sizes + above) / values, np.inf).min(1)
        scale_G = np.where(np.isinf(high_G), 1.0, (low_G + high_G) / 2).astype(scale_type)
    return scale_G, find_exact(weights_GM, values_GM, scale_G)


def find_exact(weights_GM: np.ndarray, values_GM: np.ndarray, scale_G: np.ndarray) -> np.ndarray:
    """In which groups values times scales are the weights, in their type, to the bit."""
    again = (values_GM * scale_G.astype(np.float32)[:, None]).astype(weights_GM.dtype)
    return (again == weights_GM).all(1)


def find_close(weights_GM: np.ndarray, values_GM: np.ndarray, scale_G: np.ndarray) -> np.ndarray:
    """In which groups the first weights are so near to values times scales that others may be
    exact: a quick look, with which no group is looked at further of weights that were never codes.
    """
    first = weights_GM[:, :16].astype(np.float32)
    again = values_GM[:, :16] * scale_G.astype(np.float32)[:, None]
    return (np.abs(again - first) <= 2.0**-7 * np.abs(first)).all(1)
