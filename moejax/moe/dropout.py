"""Dropout of hidden numbers, as an argument that carries its key."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from moejax.routing.contract import Rows


@dataclass(frozen=True)
class Dropout:
    """Zero each hidden number with probability ``rate`` and scale up the rest."""

    rate: float
    key: jax.Array
    rows: Rows = Rows()

    def __call__(self, h: jax.Array) -> jax.Array:
        keep = partial(jax.random.bernoulli, p=1 - self.rate)
        kept = self.rows.draw(lambda key, shape: keep(key, shape=shape), self.key, h.shape)
        return jnp.where(kept, h / (1 - self.rate), 0)
