"""Assignment: tokens are shared out among the experts evenly, by an optimisation over the group."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moejax.routing.contract import RouterInput, TokenChoice
from moejax.routing.token_choice import TokenChoiceRule, choose_by


@dataclass(frozen=True, kw_only=True)
class BaseRule:
    """How BASE shares out the tokens (Lewis et al. 2021)."""

    precision: float = 1e-4
    """The assignment is optimal up to this share of the range of the scores, a token."""
    rounds: int = 1000
    """Rounds of bidding after which those who are left are seated in order."""


def base(inputs: RouterInput, rule: BaseRule) -> TokenChoice:
    """Balanced assignment in training, the best expert in evaluation; weights are sigmoids.

    Lewis et al. 2021, Eq. 1 (y = x + sigmoid(x w_a) f_a(x)), Eq. 2-3 (the linear assignment, S / E
    tokens for every expert) and section 3.2 (greedy at test time). K is 1.
    """
    score_GSE = jax.nn.sigmoid(inputs.logits_GSE)
    preference_GSE = jax.lax.stop_gradient(inputs.logits_GSE)
    if inputs.training and inputs.replayed_GSK is None:
        expert_GS = balanced_assignment(preference_GSE, inputs.real_GS, rule)
        one_hot_GSE = expert_GS[..., None] == jnp.arange(score_GSE.shape[-1])
        preference_GSE = one_hot_GSE.astype(jnp.float32)
    rule_of_weights = TokenChoiceRule(score="sigmoid")
    return choose_by(preference_GSE, score_GSE, 1, rule_of_weights, inputs.replayed_GSK)


def balanced_assignment(score_GSE: jax.Array, real_GS: jax.Array, rule: BaseRule) -> jax.Array:
    """One expert for each token, at most ceil(S / E) tokens an expert, so that the sum of the
    scores is largest: ``expert_GS`` (int32).

    Padding scores the same everywhere: it takes the places that real tokens leave.
    """
    G, S, E = score_GSE.shape
    places = math.ceil(S / E)
    real_GS1 = real_GS[..., None]
    low_G11 = score_GSE.min((1, 2), keepdims=True, where=real_GS1, initial=jnp.inf)
    high_G11 = score_GSE.max((1, 2), keepdims=True, where=real_GS1, initial=-jnp.inf)
    value_GSE = (score_GSE - low_G11) / jnp.maximum(high_G11 - low_G11, 1e-6)
    value_GSE = jnp.where(real_GS1, value_GSE, 0)
    # E * places for S tokens: worthless stand-ins take the rest.
    value_GRE = jnp.pad(value_GSE, ((0, 0), (0, E * places - S), (0, 0)))
    return jax.vmap(lambda value_RE: auction(value_RE, rule))(value_GRE)[:, :S]


Auction = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
"""Prices of experts, bids and experts of tokens, the step, and the rounds so far."""


def auction(value_RE: jax.Array, rule: BaseRule) -> jax.Array:
    """Seat R tokens with E experts of R / E places each: ``owner_R`` (int32); values in [0, 1].

    Bertsekas' auction for similar objects (Bertsekas & Castanon 1989): every token without a place
    bids for one with its most profitable expert, as much as leaves it what the second best would
    yield, less a small step; an expert keeps its highest bids, and the lowest of them is its price.
    At the end no exchange gains more than the step a token. The step shrinks in phases, each begun
    with the prices of the one before.
    """
    R, E = value_RE.shape
    if E == 1:
        return jnp.zeros(R, jnp.int32)

    def unfinished(state: Auction) -> jax.Array:
        _, _, owner_R, step, rounds = state
        return ((owner_R == E).any() | (step > rule.precision)) & (rounds < rule.rounds)

    def bid(state: Auction) -> Auction:
        price_E, bid_R, owner_R, step, rounds = state
        # All are seated, at this step: begin again with a smaller one.
        seated = (owner_R < E).all()
        step = jnp.where(seated, jnp.maximum(step / 5, rule.precision), step)
        free_R = (owner_R == E) | seated

        profit_RE = value_RE - price_E
        best_R = profit_RE.argmax(1).astype(jnp.int32)
        others_RE = jnp.where(best_R[:, None] == jnp.arange(E), -jnp.inf, profit_RE)
        offer_R = price_E[best_R] + profit_RE.max(1) - others_RE.max(1) + step
        owner_R = jnp.where(free_R, best_R, owner_R)
        bid_R = jnp.where(free_R, offer_R, bid_R)

        # By expert, the highest bid first: a token's place in its expert's queue is its rank.
        queue_R, low_R, token_R = jax.lax.sort((owner_R, -bid_R, jnp.arange(R)), num_keys=2)
        size_E = (owner_R[:, None] == jnp.arange(E)).sum(0)
        rank_R = jnp.arange(R) - (jnp.cumsum(size_E) - size_E)[queue_R]
        last_RE = (rank_R == R // E - 1)[:, None] & (queue_R[:, None] == jnp.arange(E))
        price_E = jnp.where(last_RE.any(0), jnp.where(last_RE, -low_R[:, None], 0).sum(0), price_E)
        kept_R = jnp.where(rank_R < R // E, queue_R, E)
        owner_R = jnp.zeros_like(owner_R).at[token_R].set(kept_R, unique_indices=True)
        return price_E, bid_R, owner_R, step, rounds + 1

    start = jnp.zeros(E), jnp.zeros(R), jnp.full(R, E, jnp.int32)
    state = (*start, jnp.float32(0.05), jnp.zeros((), jnp.int32))
    _, _, owner_R, _, _ = jax.lax.while_loop(unfinished, bid, state)
    return _fill(owner_R, E)


def _fill(owner_R: jax.Array, num_experts: int) -> jax.Array:
    """Give tokens without an owner the free places in order (when the rounds ran out)."""
    left_R = owner_R == num_experts
    free_E = owner_R.shape[0] // num_experts - (owner_R == jnp.arange(num_experts)[:, None]).sum(1)
    rank_R = jnp.cumsum(left_R) - 1
    taker_R = (rank_R[:, None] >= jnp.cumsum(free_E)).sum(1).astype(jnp.int32)
    return jnp.where(left_R, taker_R, owner_R)


@dataclass(frozen=True, kw_only=True)
class SinkhornRule:
    """How Sinkhorn routing balances (Clark et al. 2022)."""

    iterations: int = 10
    """Rounds of normalising tokens and experts in turn."""


def sinkhorn(inputs: RouterInput, rule: SinkhornRule) -> TokenChoice:
    """Choose the best K of a balanced plan in training, of the logits in evaluation.

    Clark et al. 2022, section 3.2 and appendix B.2.1 (S-BASE): the plan is exp(logits), scaled so
    that every token has mass 1 and every expert an even share of the tokens; weights are the
    softmax of the logits, not of the plan.
    """
    probability_GSE = jax.nn.softmax(inputs.logits_GSE)
    preference_GSE = jax.lax.stop_gradient(inputs.logits_GSE)
    if inputs.training and inputs.replayed_GSK is None:
        preference_GSE = balanced_log_plan(preference_GSE, inputs.real_GS, rule.iterations)
    rule_of_weights = TokenChoiceRule()
    return choose_by(
        preference_GSE, probability_GSE, inputs.top_k, rule_of_weights, inputs.replayed_GSK
    )


def balanced_log_plan(logits_GSE: jax.Array, real_GS: jax.Array, iterations: int) -> jax.Array:
    """The logarithm of the Sinkhorn plan of each group; padding has no part in it."""
    log_GSE, real_GS1 = logits_GSE, real_GS[..., None]

    def normalise(_: int, log_GSE: jax.Array) -> jax.Array:
        # The experts' even share is a constant, which the tokens' turn takes away again.
        mass_G1E = jax.nn.logsumexp(log_GSE, axis=1, keepdims=True, where=real_GS1)
        log_GSE -= jnp.where(jnp.isfinite(mass_G1E), mass_G1E, 0)
        return log_GSE - jax.nn.logsumexp(log_GSE, axis=2, keepdims=True)

    return jax.lax.fori_loop(0, iterations, normalise, log_GSE)
