"""Tiny quantised models with random codes, each beside the same model without codes."""

import json
import math
from pathlib import Path
from typing import Any

import hf_models
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

BF16 = np.dtype(ml_dtypes.bfloat16)
F8 = np.dtype(ml_dtypes.float8_e4m3fn)
PLAIN = ("mlp.gate.weight", "lm_head.weight", "embed_tokens.weight")


def decode_fp8(codes: np.ndarray, scales: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Bit by bit: sign, 4 bits of exponent (bias 7), 3 bits of fraction."""
    b = codes.view(np.uint8).astype(int)
    e, m = b >> 3 & 15, b & 7
    q = np.where(b >> 7, -1.0, 1.0) * np.where(e, (1 + m / 8) * 2.0 ** (e - 7), m / 8 * 2.0**-6)
    q = np.where(b & 127 == 127, np.nan, q).astype(np.float32)
    i, j = np.indices(q.shape)
    return q * scales[i // block[0], j // block[1]]


def decode_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    lut = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    nibbles = np.stack([blocks % 16, blocks // 16], -1).reshape(*scales.shape, 32)
    values = lut[nibbles] * 2.0 ** (scales.astype(int) - 127)[..., None]
    return values.reshape(*scales.shape[:-1], -1).astype(np.float32)


def decode_int4(packed: np.ndarray, scales: np.ndarray, width: int, group: int = 32) -> np.ndarray:
    k = np.arange(width)
    nibbles = packed.astype(np.int64)[:, k // 8] >> 4 * (k % 8) & 15
    return ((nibbles - 8) * scales.astype(np.float64)[:, k // group]).astype(np.float32)


def draw_fp8(
    rng: np.random.Generator, shape: list[int], block: tuple[int, int] = (128, 128)
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of all finite values, and scales; the largest code of each block is 448."""
    q = rng.integers(0, 256, shape).astype(np.uint8)
    q[q & 127 == 127] = 0x7E
    q[:: block[0], :: block[1]] = 0xFE  # -448 in the first place of each block
    grid = (math.ceil(shape[0] / block[0]), math.ceil(shape[1] / block[1]))
    return q.view(F8), np.exp(rng.normal(-7, 1, grid)).astype(np.float32)


def draw_mxfp4(
    rng: np.random.Generator, shape: list[int], low: int = 115, high: int = 125
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and scales; in each group there are 4 and 6, its largest."""
    *lead, width = shape
    blocks = rng.integers(0, 256, (*lead, width // 32, 16)).astype(np.uint8)
    blocks[..., 3] = 0x76
    return blocks, rng.integers(low, high, blocks.shape[:-1]).astype(np.uint8)


def draw_int4(
    rng: np.random.Generator, shape: list[int], group: int = 32
) -> tuple[np.ndarray, ...]:
    """Packed codes, scales and the shape; in each group there is -8, the largest."""
    rows, width = shape
    nibbles = rng.integers(0, 16, (rows, 8 * math.ceil(width / 8))).astype(np.uint8)
    nibbles[:, 0::group] = 0
    nibbles[:, width:] = 0  # beyond the end
    packed = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).view("<i4")
    scales = np.exp(rng.normal(-4, 1, (rows, math.ceil(width / group)))).astype(BF16)
    return packed, scales, np.array([rows, width])


BLOCK = (16, 12)
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(BLOCK)},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
    "int4": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": INT4}},
    },
}
CASES = {"fp8": "deepseek_v3", "mxfp4": "gpt_oss", "int4": "deepseek_v3"}
"""The family that each codec is of."""


def changes_of(name: str) -> dict[str, Any]:
    """What differs from the ``config.json`` of ``hf_models``."""
    changes = {"quantization_config": CONFIGS[name], "num_hidden_layers": 2}
    return changes | ({"intermediate_size": 32} if name == "mxfp4" else {})


def shapes(name: str) -> dict[str, list[int]]:
    """Of the model without codes, of two layers."""
    found = hf_models.shapes(CASES[name])
    found = {tensor: shape for tensor, shape in found.items() if "layers.2." not in tensor}
    if name == "mxfp4":  # experts of width 32, not 16
        for tensor, shape in found.items():
            if "gate_up_proj" in tensor:
                found[tensor] = [*shape[:-1], 64]
            elif tensor.endswith("down_proj"):
                found[tensor] = [shape[0], 32, shape[2]]
    return found


def draw(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The tensors of a model with codes, and those of the same model without."""
    coded: dict[str, np.ndarray] = {}
    plain: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(1)
    for tensor, shape in shapes(name).items():
        plain[tensor] = hf_models.values(tensor, shape)
        if name == "fp8" and len(shape) == 2 and not tensor.endswith(PLAIN):
            codes, scales = draw_fp8(rng, shape, BLOCK)
            coded |= {tensor: codes, f"{tensor}_scale_inv": scales}
            plain[tensor] = decode_fp8(codes, scales, BLOCK)
        elif name == "mxfp4" and len(shape) == 3:
            blocks, powers = draw_mxfp4(rng, [shape[0], shape[2], shape[1]])
            coded |= {f"{tensor}_blocks": blocks, f"{tensor}_scales": powers}
            plain[tensor] = decode_mxfp4(blocks, powers).swapaxes(1, 2)
        elif name == "int4" and ".experts." in tensor:
            packed, scales, size = draw_int4(rng, shape, 16)
            coded |= {f"{tensor}_packed": packed, f"{tensor}_scale": scales}
            coded[f"{tensor}_shape"] = size
            plain[tensor] = decode_int4(packed, scales, shape[1], 16)
        else:
            coded[tensor] = plain[tensor]
    return coded, plain


def write(directory: Path, name: str, coded: bool = True, **changes: Any) -> Path:
    """Write a model's directory, with codes or without; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    config = hf_models.CASES[CASES[name]] | changes_of(name) | changes
    if not coded:
        del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    save(draw(name)[0 if coded else 1], directory)
    return directory


def save(tensors: dict[str, np.ndarray], directory: Path) -> None:
    """Write a model's one file of tensors."""
    whole = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    save_file(whole, directory / "model.safetensors", metadata={"format": "pt"})
