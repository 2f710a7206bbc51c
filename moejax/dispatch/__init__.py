"""Ways of bringing tokens to experts and back, with one signature and one meaning."""

from collections.abc import Callable

import jax

from moejax.config import MoEConfig
from moejax.dispatch import einsum, gather, grouped
from moejax.dispatch.automatic import form_of

ROUTES = {"einsum": einsum.route, "gather": gather.route, "grouped": grouped.route}


def route_of(
    moe: MoEConfig, params: dict[str, jax.Array], x_GSD: jax.Array, capacity: int
) -> Callable:
    """The form of dispatch that a config names, or the one that suits this bank and input."""
    named = form_of(moe, params, x_GSD, capacity) if moe.dispatch == "auto" else moe.dispatch
    return ROUTES[named]
