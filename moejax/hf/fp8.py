"""Weights of 8 bits in blocks, each with a scale: DeepSeek-V3, Kimi K2, MiniMax M2, Qwen3 FP8.

    w[i, j] = q[i, j] * s[i // 128, j // 128]

The codes q are float8_e4m3fn; blocks at the edges may be smaller. (deepseek-ai/DeepSeek-V3,
README_WEIGHTS.md and inference/fp8_cast_bf16.py; transformers, integrations/finegrained_fp8.py.)

Letters: G: blocks; M: weights in a block.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from moejax.hf.fit_scales import find_close, find_exact, fit_scales
from moejax.hf.parts import Part

LARGEST = 448.0
"""The largest number of float8_e4m3fn."""
VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
"""What each code means; two of them are NaN."""
POWERS = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
"""What each scale in one byte means: 2^(b - 127), the last one NaN."""
SCALES = ("F32", "BF16", "F8_E8M0", "U8")


@dataclass(frozen=True)
class Fp8Blocks:
    """The codec ``fp8``."""

    block: tuple[int, int] | None = (128, 128)
    """Rows and columns with one scale; None: the whole matrix."""
    name: ClassVar[str] = "fp8"
    ranks: ClassVar[tuple[int, ...]] = (2, 3)
    swapped: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = ("", "_scale_inv")

    def describe(self) -> str:
        """In words."""
        if self.block is None:
            return "fp8, a scale for each matrix"
        return f"fp8 in blocks of {self.block[0]} x {self.block[1]}"

    def list_parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The parts of a tensor of this shape, its experts first if it has some."""
        *lead, rows, width = shape
        grid: list[int] = []
        if self.block is not None:
            grid = [math.ceil(rows / self.block[0]), math.ceil(width / self.block[1])]
        return (
            Part(self.suffixes[0], ("F8_E4M3",), shape),
            Part(self.suffixes[1], SCALES, (*lead, *grid)),
        )

    def decode(self, parts: list[np.ndarray], rows: np.ndarray, width: int) -> np.ndarray:
        """These rows of a matrix, float32."""
        codes, scales = parts
        values = np.take(VALUES, codes[rows].view(np.uint8))
        if self.block is None:
            return values * read_scales(scales)
        high, wide = self.block
        some = read_scales(scales[rows // high])
        return values * np.repeat(some, min(wide, width), axis=1)[:, :width]

    def encode(self, matrix: np.ndarray) -> list[np.ndarray]:
        """The parts of a matrix, float32 or bfloat16. The scale of a block is its largest weight /
        448, as in DeepGEMM, unless another, maybe a power of two, gives every weight to the bit.
        """
        rows, width = matrix.shape
        high, wide = self.block or matrix.shape
        codes = np.empty(matrix.shape, ml_dtypes.float8_e4m3fn)
        scales = np.empty((math.ceil(rows / high), math.ceil(width / wide)), np.float32)
        for i in range(len(scales)):
            band = matrix[i * high : (i + 1) * high]
            parts = [band[:, j : j + wide] for j in range(0, width, wide)]
            flat_GM = np.zeros((len(parts), len(band) * min(wide, width)), matrix.dtype)
            for group, part in zip(flat_GM, parts, strict=True):
                group[: part.size] = part.ravel()
            scales[i] = choose_scales(flat_GM)
            divisors = np.repeat(scales[i], min(wide, width))[:width]
            codes[i * high : (i + 1) * high] = round_to_codes(band.astype(np.float32) / divisors)
        return [codes, scales if self.block else scales.reshape(())]

    def write_config(self, plain: list[str]) -> dict[str, Any]:
        """The ``quantization_config``; ``plain`` are the modules that have no codes."""
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": self.block and list(self.block),
            "modules_to_not_convert": plain,
        }


def read_scales(scales: np.ndarray) -> np.ndarray:
    """Scales of any type, as float32."""
    if scales.dtype.itemsize == 1:
        return np.take(POWERS, scales.view(np.uint8))
    return np.asarray(scales).astype(np.float32)


def round_to_codes(quotients: np.ndarray) -> np.ndarray:
    """The nearest codes, even ones in the middle; what is too large becomes the largest."""
    return np.clip(quotients, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn)


def choose_scales(flat_GM: np.ndarray) -> np.ndarray:
    """The scale of each block, float32."""
    flat = flat_GM.astype(np.float32)
    peak_G = np.abs(flat).max(1)
    plain_G = np.where(peak_G > 0, np.maximum(peak_G / LARGEST, np.float32(2.0**-126)), 1)
    scale_G = plain_G.astype(np.float32)
    fraction, exponent = np.frexp(scale_G)
    power_G = np.ldexp(np.float32(1), exponent - (fraction == 0.5))
    exact_G = np.zeros(len(flat), bool)
    for tried_G in (plain_G.astype(np.float32), power_G):
        look = np.flatnonzero(~exact_G)
        values = round_to_codes(flat[look] / tried_G[look, None]).astype(np.float32)
        near = find_close(flat_GM[look], values, tried_G[look])
        look, values = look[near], values[near]
        if not len(look):
            continue
        good = find_exact(flat_GM[look], values, tried_G[look])
        fitted, fits = fit_scales(flat_GM[look], values, np.dtype(np.float32))
        scale_G[look] = np.where(good, tried_G[look], np.where(fits, fitted, scale_G[look]))
        exact_G[look] = good | fits
    return scale_G
