"""Experts of 4 bits in groups of 32, each with a power of two as its scale: gpt-oss.

    w[k] = LUT[nibble k] * 2^(scale - 127)

Two codes lie in a byte, the first in its low half. All experts of a layer are one tensor, whose
matrices are swapped beside the same tensor in bfloat16. (openai/gpt-oss, gpt_oss/torch/weights.py;
OCP Microscaling Formats 1.0.)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from moejax.hf.fp8 import POWERS
from moejax.hf.nibbles import join_pairs, pair_values
from moejax.hf.parts import Part

GROUP = 32
LARGEST = 6.0
"""The largest number of 4 bits (E2M1)."""
VALUES = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
PAIRS = pair_values(VALUES)


@dataclass(frozen=True)
class Mxfp4:
    """The codec ``mxfp4``."""

    group: ClassVar[int] = GROUP
    name: ClassVar[str] = "mxfp4"
    ranks: ClassVar[tuple[int, ...]] = (2, 3)
    swapped: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = ("_blocks", "_scales")

    def describe(self) -> str:
        """In words."""
        return f"mxfp4 in groups of {GROUP}"

    def list_parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The parts of a tensor of this shape, its experts first if it has some."""
        *lead, width, rows = shape
        groups = -(-width // GROUP)
        return (
            Part(self.suffixes[0], ("U8",), (*lead, rows, groups, GROUP // 2)),
            Part(self.suffixes[1], ("U8",), (*lead, rows, groups)),
        )

    def decode(self, parts: list[np.ndarray], rows: np.ndarray, width: int) -> np.ndarray:
        """These rows of a matrix as it is stored, float32."""
        blocks, scales = (part[rows] for part in parts)
        values = np.take(PAIRS, blocks, axis=0).reshape(*scales.shape, GROUP)
        values *= np.take(POWERS, scales)[..., None]
        return values.reshape(len(rows), -1)[:, :width]

    def encode(self, matrix: np.ndarray) -> list[np.ndarray]:
        """The parts of a matrix as it is stored, float32 or bfloat16, its width a multiple of 32.
        The scale of a group is the smallest power of two with which no weight is cut off, and the
        code is the nearest.
        """
        weights = matrix.astype(np.float32).reshape(len(matrix), -1, GROUP)
        fraction, exponent = np.frexp(np.abs(weights).max(-1) / np.float32(LARGEST))
        exponent = np.where(fraction > 0, exponent - (fraction == 0.5), -127).clip(-127, 127)
        quotients = np.ldexp(weights, -exponent[..., None]).clip(-LARGEST, LARGEST)
        codes = quotients.astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
        return [join_pairs(codes), (exponent + 127).astype(np.uint8)]

    def write_config(self, plain: list[str]) -> dict[str, Any]:
        """The ``quantization_config``; ``plain`` are the modules that have no codes."""
        return {"quant_method": "mxfp4", "modules_to_not_convert": plain}
