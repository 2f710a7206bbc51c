"""Codes of 4 bits, two to a byte: the first in its low half."""

import numpy as np


def pair_values(values: np.ndarray) -> np.ndarray:
    """What the two codes in each byte mean, [256, 2], from what each of the 16 codes means."""
    return np.stack([np.tile(values, 16), np.repeat(values, 16)], axis=1)


def join_pairs(codes: np.ndarray) -> np.ndarray:
    """Codes (uint8, below 16), an even number in the last dimension, as bytes."""
    return codes[..., 0::2] | codes[..., 1::2] << 4
