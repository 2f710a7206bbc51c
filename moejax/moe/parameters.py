"""How layers declare their parameters: float32, drawn alike, and ready for products."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.moe.adapted import Adapted, map_parts
from moejax.moe.lying import Lying
from moejax.moe.quantised import Quantised
from moejax.runtime import partition

Matrix = jax.Array | Lying | Adapted | Quantised
"""What products take: arrays; at inference what lies in a stack; in a frozen model what has an
adapter, or is quantised."""


def matrix(module: nn.Module, name: str, shape: tuple[int, ...]) -> Matrix:
    """A float32 matrix parameter (or bank of them), normal with variance 1 / fan-in."""
    given: Any = module.get_variable("params", name)
    if isinstance(given, Adapted | Quantised):
        return given  # Linen would compare its parts with one array
    return module.param(name, nn.initializers.normal(shape[-2] ** -0.5), shape, jnp.float32)


def weight(module: nn.Module, name: str, shape: tuple[int, ...], dtype: jnp.dtype) -> Matrix:
    """A matrix of a module that has a ``layout``, ready for ``multiply``: in this type, or where it
    lies.
    """
    fsdp = module.layout.fsdp

    def ready(name: str, w: Matrix) -> Matrix:
        if isinstance(w, Quantised) or (isinstance(w, Lying) and not fsdp):
            return w
        return partition.gather_weight(w.astype(dtype), name, fsdp)

    return map_parts(ready, name, matrix(module, name, shape))


def zeros(module: nn.Module, name: str, shape: tuple[int, ...]) -> jax.Array | Lying:
    """A float32 parameter that begins at zero."""
    return module.param(name, nn.initializers.zeros, shape, jnp.float32)
