"""Feed-forward networks, single or in a bank with a leading E: functions of a dict of arrays."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moejax.products import product

GATED = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}
PLAIN = {"gelu": jax.nn.gelu, "relu": jax.nn.relu}


@dataclass(frozen=True)
class Dropout:
    """Zero each hidden number with probability ``rate`` and scale up the rest."""

    rate: float
    key: jax.Array

    def __call__(self, h: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(self.key, 1 - self.rate, h.shape)
        return jnp.where(kept, h / (1 - self.rate), 0)


def matrices(activation: str) -> tuple[str, ...]:
    """The weights that a feed-forward network of this activation has."""
    return ("w_gate", "w_up", "w_down") if activation in GATED else ("w_up", "w_down")


def feed_forward(params: dict[str, jax.Array], x_BND: jax.Array, activation: str) -> jax.Array:
    """One dense feed-forward network: ``w_gate_DF``, ``w_up_DF``, ``w_down_FD`` on ``x_BND``."""
    bank_of_one = {f"{name[:-2]}E{name[-2:]}": w[None] for name, w in params.items()}
    return bank(bank_of_one, x_BND[None], activation)[0]


def bank(
    params: dict[str, jax.Array],
    x_EGCD: jax.Array,
    activation: str,
    dropout: Dropout | None = None,
) -> jax.Array:
    """E feed-forward networks, each on its own slots: ``w_gate_EDF``, ``w_up_EDF``, ``w_down_EFD``.

    SwiGLU and GeGLU (Shazeer 2020): (act(x W_gate) * (x W_up)) W_down. gelu, relu: act(x W_up)
    W_down. An empty slot holds zeros and comes out as zeros. ``dropout`` acts on the hidden
    numbers (expert dropout, Fedus et al. 2021, section 2.4).
    """
    x_ETD = x_EGCD.reshape(x_EGCD.shape[0], -1, x_EGCD.shape[-1])
    h_ETF = product(x_ETD, params["w_up_EDF"])
    if activation in GATED:
        h_ETF *= GATED[activation](product(x_ETD, params["w_gate_EDF"]))
    else:
        h_ETF = PLAIN[activation](h_ETF)
    if dropout is not None:
        h_ETF = dropout(h_ETF)
    return product(h_ETF, params["w_down_EFD"]).reshape(x_EGCD.shape)
