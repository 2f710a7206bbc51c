"""Routers that do not learn whom a token goes to: the baselines of the papers, and a hash and a
table whose weights are learned.

Letters: I: ids of tokens that a table has.
"""

import functools
import heapq
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from moejax.routing.contract import RouterInput, TokenChoice
from moejax.routing.token_choice import SCORES, TokenChoiceRule, choose_by, pick, preference


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


BY_SCORE = TokenChoiceRule(score="sqrt_softplus")
"""By what the routers with learned weights score."""


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
    the weights are sqrt(softplus(logit)) of these, over their sum, times a scale. In the place of
    the table stands the hash of the router ``hash``, which knows no frequencies, and it stands in
    all routed layers; ``look_up_and_weigh`` has the table.
    """
    return _weigh(inputs, rule, hashed_experts(inputs))


def _weigh(inputs: RouterInput, rule: HashRule, expert_GSK: jax.Array) -> TokenChoice:
    score_GSE = SCORES[BY_SCORE.score](inputs.logits_GSE)
    weigh = replace(BY_SCORE, renormalise=rule.renormalise, weight_scale=rule.weight_scale)
    return choose_by(score_GSE, score_GSE, inputs.top_k, weigh, expert_GSK)


@dataclass(frozen=True, kw_only=True)
class TableRule(HashRule):
    """How a router chooses by a table from ids to experts, and weighs these."""

    token_counts: tuple[int, ...] | None = None
    """How often each id occurs, from 0 on: the table gives all experts an equal load of these."""
    hash_layers: int | None = None
    """So many routed layers go by the table, those at the bottom; the layer knows whether it is one
    (``RouterInput.by_id``). None: all."""


def look_up_and_weigh(inputs: RouterInput, rule: TableRule) -> TokenChoice:
    """Send a token where a table says, and weigh by learned scores; in layers that do not go by the
    table, send it to the best scores.

    DeepSeek-V4 (2026), its released code: the first layers have a table ``tid2eid``, the others
    choose by score and selection bias. How their table was made is not said; that it gives equal
    shares of the tokens is told in kexue.fm 11750. Ours is ``balance_by_frequency``, the same in
    all layers that have one.
    """
    expert_GSK, unbiased_GSK = tabled_experts(inputs, rule.token_counts), None
    if inputs.by_id is not None:
        score_GSE = SCORES[BY_SCORE.score](inputs.logits_GSE)
        biased_GSE = preference(score_GSE, inputs.bias_E, BY_SCORE)
        own_GSK, plain_GSK = (pick(x_GSE, inputs.top_k) for x_GSE in (biased_GSE, score_GSE))
        unbiased_GSK = jnp.where(inputs.by_id, expert_GSK, plain_GSK)
        expert_GSK = jnp.where(inputs.by_id, expert_GSK, own_GSK)
    choice = _weigh(inputs, rule, expert_GSK)
    return choice if inputs.bias_E is None else replace(choice, unbiased_GSK=unbiased_GSK)


def tabled_experts(inputs: RouterInput, token_counts: tuple[int, ...] | None) -> jax.Array:
    """The K experts of each token by the table for such counts, of other ids by their hash:
    ``expert_GSK``.
    """
    hashed_GSK = hashed_experts(inputs)
    if not token_counts:
        return hashed_GSK
    assert inputs.token_GS is not None  # the layer gives it to a router that needs tokens
    E, id_GS = inputs.logits_GSE.shape[-1], inputs.token_GS
    table_IK = jnp.asarray(balance_by_frequency(token_counts, E, inputs.top_k))
    found_GSK = table_IK[jnp.clip(id_GS, 0, len(table_IK) - 1)]
    known_GS1 = ((id_GS >= 0) & (id_GS < len(table_IK)))[..., None]
    return jnp.where(known_GS1 & (found_GSK >= 0), found_GSK, hashed_GSK)


@functools.lru_cache(maxsize=8)
def balance_by_frequency(token_counts: tuple[int, ...], num_experts: int, top_k: int) -> np.ndarray:
    """The K different experts of each id, so that their loads are as equal as greed makes them:
    ``table_IK`` (int32), -1 for ids that do not occur.

    Ids are given out by falling count, each to the K experts with the least load so far (the lower
    index first): the rule of the longest job first (Graham 1969). An id that makes up more than
    K / E of all tokens overloads its K experts in any table.
    """
    table_IK = np.full((len(token_counts), top_k), -1, np.int32)
    loads = [(0, expert) for expert in range(num_experts)]
    for i in sorted(range(len(token_counts)), key=lambda i: -token_counts[i]):
        count = token_counts[i]
        if count == 0:
            break
        least = [heapq.heappop(loads) for _ in range(top_k)]
        table_IK[i] = [expert for _, expert in least]
        for load, expert in least:
            heapq.heappush(loads, (load + count, expert))
    return table_IK


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
