"""Rotary positions (Su et al. 2021), and how they are stretched to longer texts.

Letters: A: width of a head.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.attention import RopeConfig
from moejax.config.model import ModelConfig

Rotation = tuple[float, RopeConfig] | None
"""The base of rotary positions and how they are stretched; None: no positions."""


def rotary(positions_BN: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and signed sines ``[B, N, 1, 2, A/2]`` (float32) of each position's angles; where
    layers differ in them, with a leading dimension: see ``number_rotations``. Where no layer has
    rotary positions there are no angles, A is 0.
    """
    rotations, _ = number_rotations(config)
    size = 0 if rotations == [None] else config.rotary_size
    tables = [_table(positions_BN, rotation, size) for rotation in rotations]
    if len(tables) == 1:
        return tables[0]
    cos, sin = (jnp.stack(parts) for parts in zip(*tables, strict=True))
    return cos, sin


def number_rotations(config: ModelConfig) -> tuple[list[Rotation], list[int]]:
    """The different rotary positions of a model's layers, and which of them each layer has."""
    kinds = zip(config.rotations, config.attention_kinds, strict=True)
    turned = [rotation for rotation, kind in kinds if kind != "delta"]
    different = list(dict.fromkeys(turned)) or [None]
    numbers = [different.index(r) if r in different else 0 for r in config.rotations]
    return different, numbers


def _table(positions_BN: jax.Array, rotation: Rotation, size: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and signed sines ``[B, N, 1, 2, size/2]``; without a rotation those of angle 0."""
    theta, rope = (1.0, RopeConfig()) if rotation is None else rotation
    frequency = frequencies(rope, theta, size) * (rotation is not None)
    angle = positions_BN[..., None, None, None].astype(jnp.float32) * frequency.astype(np.float32)
    length = amplitude(rope)
    cos, sin = jnp.cos(angle) * length, jnp.sin(angle) * length
    return jnp.concatenate([cos, cos], -2), jnp.concatenate([-sin, sin], -2)


def rotate(x_BNHA: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn each pair (x_i, x_{i + A/2}) of a head by its position's angle; where there are angles
    for a part of the head alone, which is its beginning, A is the width of that part. Without
    angles they stay as they are.
    """
    if not cos.shape[-1]:
        return x_BNHA
    part_BNHA = x_BNHA[..., : 2 * cos.shape[-1]]
    pairs = part_BNHA.astype(jnp.float32).reshape(*part_BNHA.shape[:-1], 2, -1)
    turned = pairs * cos + jnp.flip(pairs, -2) * sin
    turned_BNHA = turned.astype(x_BNHA.dtype).reshape(part_BNHA.shape)
    if part_BNHA.shape == x_BNHA.shape:
        return turned_BNHA
    return jnp.concatenate([turned_BNHA, x_BNHA[..., part_BNHA.shape[-1] :]], -1)


def frequencies(rope: RopeConfig, theta: float, size: int) -> np.ndarray:
    """Radians a position of each of the ``size`` / 2 pairs (float64)."""
    plain = theta ** (-np.arange(0, size, 2) / size)
    if rope.scaling == "none":
        return plain
    if rope.scaling == "linear":
        return plain / rope.factor
    kept = _llama3_kept(rope, plain) if rope.scaling == "llama3" else _yarn_kept(rope, theta, size)
    return plain * kept + plain / rope.factor * (1 - kept)


def amplitude(rope: RopeConfig) -> float:
    """What rotated queries and keys are multiplied by (Peng et al. 2023, Eq. 22)."""
    if rope.scaling != "yarn":
        return 1.0
    return yarn_magnitude(rope.factor) if rope.amplitude is None else rope.amplitude


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """0.1 ``weight`` ln(factor) + 1, and 1 where nothing is stretched."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


def _yarn_kept(rope: RopeConfig, theta: float, size: int) -> np.ndarray:
    """The share of each pair that is not stretched: a ramp over pairs (Peng et al. 2023, Eq. 18-20,
    in the form of the authors' code).
    """

    def pair(turns: float) -> float:
        """The pair that turns so often over the original length."""
        return size * math.log(rope.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 * (low == high)
    return 1 - np.clip((np.arange(size // 2) - low) / (high - low), 0, 1)


def _llama3_kept(rope: RopeConfig, plain: np.ndarray) -> np.ndarray:
    """The share of each pair that is not stretched: a ramp over frequencies (Llama 3.1's code)."""
    low, high = rope.low_frequency_factor, rope.high_frequency_factor
    turns = rope.original_length * plain / (2 * math.pi)
    return np.clip((turns - low) / (high - low), 0, 1)
