"""Dropout of hidden numbers, as an argument that carries its key."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Dropout:
    """Zero each hidden number with probability ``rate`` and scale up the rest."""

    rate: float
    key: jax.Array

    def __call__(self, h: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(self.key, 1 - self.rate, h.shape)
        return jnp.where(kept, h / (1 - self.rate), 0)
