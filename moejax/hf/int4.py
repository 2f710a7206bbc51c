"""Weights of 4 bits in groups of 32, as compressed-tensors packs them (``pack-quantized``): Kimi
K2-Thinking.

    w[k] = (nibble k - 8) * scale

Eight codes lie in a number of 32 bits, code k in its bits 4k to 4k + 3. (compressed-tensors,
compressors/pack_quantized.)

Letters: G: groups of weights with one scale; M: weights in a group.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from moejax.config.errors import CheckpointError
from moejax.hf.fit_scales import find_close, fit_scales
from moejax.hf.nibbles import join_pairs, pair_values
from moejax.hf.parts import Part

VALUES = np.arange(16, dtype=np.float32) - 8
PAIRS = pair_values(VALUES)


@dataclass(frozen=True)
class PackedInt4:
    """The codec ``int4``."""

    group: int = 32
    """Weights of a row with one scale."""
    name: ClassVar[str] = "int4"
    ranks: ClassVar[tuple[int, ...]] = (2,)
    swapped: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = ("_packed", "_scale", "_shape")

    def describe(self) -> str:
        """In words."""
        return f"int4 of compressed-tensors in groups of {self.group}"

    def list_parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The parts of a matrix of this shape."""
        rows, width = shape
        grid = (rows, math.ceil(width / self.group))
        return (
            Part(self.suffixes[0], ("I32",), (rows, math.ceil(width / 8))),
            Part(self.suffixes[1], ("BF16", "F32", "F16"), grid),
            Part(self.suffixes[2], ("I64", "I32"), (2,)),
        )

    def decode(self, parts: list[np.ndarray], rows: np.ndarray, width: int) -> np.ndarray:
        """These rows of a matrix, float32. Raises ``CheckpointError`` if ``weight_shape`` is
        another.
        """
        packed, scales, shape = parts
        if tuple(shape) != (len(packed), width):
            raise CheckpointError(
                f"its weight_shape is {list(map(int, shape))}, where config.json asks for"
                f" {[len(packed), width]}"
            )
        codes = np.ascontiguousarray(packed[rows]).astype("<i4", copy=False).view(np.uint8)
        values = np.take(PAIRS, codes, axis=0).reshape(len(rows), -1)[:, :width]
        some = np.asarray(scales[rows]).astype(np.float32)
        return values * np.repeat(some, min(self.group, width), axis=1)[:, :width]

    def encode(self, matrix: np.ndarray) -> list[np.ndarray]:
        """The parts of a matrix, float32 or bfloat16. The scale of a group is its largest weight /
        7.5, as in compressed-tensors, unless another gives every weight to the bit.
        """
        rows, width = matrix.shape
        groups = math.ceil(width / self.group)
        padded = np.zeros((rows, groups * self.group), matrix.dtype)
        padded[:, :width] = matrix
        flat_GM = padded.reshape(-1, self.group)
        scale_G, values_GM = choose_scales(flat_GM)
        codes = (values_GM + 8).astype(np.uint8).reshape(rows, -1)[:, :width]
        filled = np.full((rows, 8 * math.ceil(width / 8)), 0, np.uint8)
        filled[:, :width] = codes
        packed = join_pairs(filled).view("<i4").astype(np.int32)
        return [packed, scale_G.reshape(rows, groups), np.array([rows, width], np.int64)]

    def write_config(self, plain: list[str]) -> dict[str, Any]:
        """The ``quantization_config``; ``plain`` are the modules that have no codes."""
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
        weights |= {"group_size": self.group, "dynamic": False}
        group = {"targets": ["Linear"], "weights": weights}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": plain,
        }


def choose_scales(flat_GM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``scale_G`` in bfloat16, and ``values_GM``: whole numbers from -8 to 7."""
    flat = flat_GM.astype(np.float32)
    peak_G = np.abs(flat).max(1)
    scale_G = np.where(peak_G > 0, peak_G / np.float32(7.5), 1).astype(ml_dtypes.bfloat16)
    scale_G = np.where(scale_G > 0, scale_G, ml_dtypes.finfo(ml_dtypes.bfloat16).tiny)
    scale_G = scale_G.astype(ml_dtypes.bfloat16)
    values_GM = round_values(flat, scale_G.astype(np.float32))
    left = np.flatnonzero(peak_G > 0)
    for most in (8, 7, 6, 5, 4, 3, 2, 1):  # which of them the largest weight may be
        tried_G = peak_G[left] / np.float32(most)
        values = round_values(flat[left], np.maximum(tried_G, np.float32(2.0**-126)))
        near = find_close(flat_GM[left], values, tried_G)
        look, values = left[near], values[near]
        if not len(look):
            continue
        fitted, fits = fit_scales(flat_GM[look], values, np.dtype(ml_dtypes.bfloat16))
        scale_G[look[fits]], values_GM[look[fits]] = fitted[fits], values[fits]
        left = np.setdiff1d(left, look[fits], assume_unique=True)
    return scale_G, values_GM


def round_values(flat_GM: np.ndarray, scale_G: np.ndarray) -> np.ndarray:
    """The nearest whole numbers from -8 to 7."""
    return np.clip(np.rint(flat_GM / scale_G[:, None]), -8, 7)
