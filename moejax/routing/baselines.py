"""Routers that do not learn whom a token goes to: the baselines of the papers, and a hash whose
weights are learned.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moejax.routing.contract import RouterInput, TokenChoice
from moejax.routing.token_choice import SCORES, TokenChoiceRule, choose_by, pick


def hash_of_token(inputs: RouterInput) -> TokenChoice:
    """Send a token where the hash of its id says, and to the K - 1 experts after it.

    Roller et al. 2021, section 3.2 (random hash); the weights are 1 / K. K > 1 is ours.
    """
    return _even(hashed_experts(inputs), inputs)


def hashed_experts(inputs: RouterInput) -> jax.Array:
    """The K experts of each token by the hash of its id: ``expert_GSK``."""
    E, K = inputs.logits_GSE.shape[-1], inputs.top_k
    assert inputs.token_GS is not None  # the layer gives it to a router that needs tokens
    first_GS1 = (mix(inputs.token_GS.astype(jnp.uint32)) % E).astype(jnp.int32)[..., None]
    return (first_GS1 + jnp.arange(K)) % E


@dataclass(frozen=True, kw_only=True)
class HashRule:
    """How a router weighs experts that a hash has chosen."""

    renormalise: bool = True
    """Divide a token's weights by their sum."""
    weight_scale: float = 1.0
    """Multiplies the weights."""


def hash_and_weigh(inputs: RouterInput, rule: HashRule) -> TokenChoice:
    """Send a token where the hash of its id says, and weigh by learned scores.

    DeepSeek-V4 (2026), the first layers of its released code: a table has the experts of each id,
    the weights are sqrt(softplus(logit)) of these, over their sum, times a scale. Its table is
    made so that experts get equal shares of the tokens of its data; ours is the hash of the router
    ``hash``, which knows no frequencies, and it stands in all routed layers.
    """
    weigh = TokenChoiceRule(
        score="sqrt_softplus", renormalise=rule.renormalise, weight_scale=rule.weight_scale
    )
    score_GSE = SCORES[weigh.score](inputs.logits_GSE)
    return choose_by(score_GSE, score_GSE, inputs.top_k, weigh, hashed_experts(inputs))


def random(inputs: RouterInput) -> TokenChoice:
    """Send every token to K experts drawn at random, anew at every step of training.

    The random router of Zuo et al. 2021 (THOR) and of many ablations; weights are 1 / K. In
    evaluation the draw depends on the place in the group alone.
    """
    shape = inputs.logits_GSE.shape
    if inputs.key is None:
        luck_GSE = jnp.broadcast_to(jax.random.uniform(jax.random.key(0), shape[1:]), shape)
    else:
        luck_GSE = inputs.rows.draw(jax.random.uniform, inputs.key, shape)
    return _even(pick(luck_GSE, inputs.top_k), inputs)


def mix(bits: jax.Array) -> jax.Array:
    """A fixed pseudo-random permutation of the 32-bit integers (the finaliser of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return bits ^ (bits >> 16)


def _even(expert_GSK: jax.Array, inputs: RouterInput) -> TokenChoice:
    weight_GSK = jnp.full(expert_GSK.shape, 1 / inputs.top_k, jnp.float32)
    uniform_GSE = jnp.full_like(inputs.logits_GSE, 1 / inputs.logits_GSE.shape[-1])
    return TokenChoice(expert_GSK, weight_GSK, uniform_GSE)
