"""Ways of bringing tokens to experts and back, with one signature and one meaning."""

from collections.abc import Callable

from moejax.config import MoEConfig
from moejax.dispatch import einsum, gather, grouped

ROUTES = {"einsum": einsum.route, "gather": gather.route, "grouped": grouped.route}


def route_of(moe: MoEConfig) -> Callable:
    """The form of dispatch that a config names."""
    return ROUTES["einsum" if moe.dispatch == "auto" else moe.dispatch]
