"""How layers declare their parameters: float32, drawn alike, and ready for products."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.moe.lying import Lying
from moejax.runtime import partition

Matrix = jax.Array | Lying
"""What products take: arrays, or at inference what lies in a stack."""


def matrix(module: nn.Module, name: str, shape: tuple[int, ...]) -> Matrix:
    """A float32 matrix parameter (or bank of them), normal with variance 1 / fan-in."""
    return module.param(name, nn.initializers.normal(shape[-2] ** -0.5), shape, jnp.float32)


def weight(module: nn.Module, name: str, shape: tuple[int, ...], dtype: jnp.dtype) -> Matrix:
    """A matrix of a module that has a ``layout``, ready for ``multiply``: in this type, or where it
    lies.
    """
    w = matrix(module, name, shape)
    if isinstance(w, Lying) and not module.layout.fsdp:
        return w
    return partition.gather_weight(w.astype(dtype), name, module.layout.fsdp)


def zeros(module: nn.Module, name: str, shape: tuple[int, ...]) -> Matrix:
    """A float32 parameter that begins at zero."""
    return module.param(name, nn.initializers.zeros, shape, jnp.float32)
