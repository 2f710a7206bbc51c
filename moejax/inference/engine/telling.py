"""What a call tells beside the tokens that it has drawn: scores, and experts.

Letters: L: routed layers; X: lanes, or the best tokens that scores are given of.
"""

import jax
import jax.numpy as jnp

from moejax.moe.balance import Routed

BEST = 20
"""Tokens that scores are given of, if there are so many."""
SCORES = ("logprob_B1", "best_B1X", "best_logprob_B1X")
ROUTES = ("expert_BNLK", "weight_BNLK")


def score(logits_B1V: jax.Array, token_B1: jax.Array, wanted: jax.Array) -> dict[str, jax.Array]:
    """Logarithmic probabilities of what was drawn and of the best tokens; 0 if not wanted."""
    X = min(BEST, logits_B1V.shape[-1])

    def look() -> tuple[jax.Array, jax.Array, jax.Array]:
        logprob_B1V = jax.nn.log_softmax(logits_B1V)
        of_drawn_B1 = jnp.take_along_axis(logprob_B1V, token_B1[..., None], -1)[..., 0]
        best_logprob_B1X, best_B1X = jax.lax.top_k(logprob_B1V, X)
        return of_drawn_B1, best_B1X, best_logprob_B1X

    shapes = jax.eval_shape(look)
    found = jax.lax.cond(
        wanted, look, lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    )
    return dict(zip(SCORES, found, strict=True))


def add_up_asked(routed: Routed, lanes: int) -> jax.Array:
    """The choices asked of each expert by the rows of each lane, ``asked_XLE``."""
    asked_LBE = routed.stats.asked_BE
    L, _, E = asked_LBE.shape
    asked_XLE = asked_LBE.reshape(L, lanes, -1, E).sum(2).swapaxes(0, 1)
    return asked_XLE.astype(jnp.uint32)


def order_routes(routed: Routed) -> dict[str, jax.Array]:
    """Experts and weights of each token, where tokens choose."""
    if routed.expert_LBNK is None or routed.weight_LBNK is None:
        return {}
    both = (routed.expert_LBNK, routed.weight_LBNK)
    return dict(zip(ROUTES, (jnp.moveaxis(x_LBNK, 0, 2) for x_LBNK in both), strict=True))
