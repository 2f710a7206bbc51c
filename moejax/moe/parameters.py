"""How layers declare their parameters: float32, drawn alike, and ready for products."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.runtime import partition


def matrix(module: nn.Module, name: str, shape: tuple[int, ...]) -> jax.Array:
    """A float32 matrix parameter (or bank of them), normal with variance 1 / fan-in."""
    return module.param(name, nn.initializers.normal(shape[-2] ** -0.5), shape, jnp.float32)


def weight(module: nn.Module, name: str, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """A matrix of a module that has a ``layout``, in this type, ready for a product."""
    w = matrix(module, name, shape).astype(dtype)
    return partition.gather_weight(w, name, module.layout.fsdp)


def zeros(module: nn.Module, name: str, shape: tuple[int, ...]) -> jax.Array:
    """A float32 parameter that begins at zero."""
    return module.param(name, nn.initializers.zeros, shape, jnp.float32)
