"""The grouped feed-forward: every expert on its own rows, however many; one file a platform."""

import jax

from moejax.kernels import block_loop
from moejax.kernels.rows import Rows


def feed_forward(
    params: dict[str, jax.Array],
    x_TD: jax.Array,
    weight_TK: jax.Array,
    rows: Rows,
    activation: str,
    weigh: str = "output",
) -> jax.Array:
    """Each token's chosen experts, weighted and added up: ``y_TD``, in the type of ``x_TD``.

    ``params`` is a bank (see ``experts.bank``), ``rows`` the choices sorted by expert. Costs the
    arithmetic of the chosen rows; choices without an expert add exact zeros, and no gradient.
    """
    return block_loop.feed_forward(params, x_TD, weight_TK, rows, activation, weigh)
