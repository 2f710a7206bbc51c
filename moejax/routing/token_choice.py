"""Token choice: every token picks its experts. One algebra; a named router is a preset of it.

Letters: M: candidates of a token; Q: groups of experts.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from moejax.routing.contract import RouterInput, TokenChoice

SCORES = {
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
    "sqrt_softplus": lambda logits_GSE: jnp.sqrt(jax.nn.softplus(logits_GSE)),
    "relu": jax.nn.relu,
}


@dataclass(frozen=True, kw_only=True)
class TokenChoiceRule:
    """How logits become choices and weights: the fields are applied from top to bottom."""

    noise: Literal["none", "learned", "fixed"] = "none"
    """Normal noise on the logits in training: `learned`, softplus(x W_noise) wide (Shazeer et al.
    2017, Eq. 4); `fixed`, 1/E wide (Riquelme et al. 2021, section 2.2)."""
    score: Literal["softmax", "sigmoid", "sqrt_softplus", "relu"] = "softmax"
    """From logits to scores."""
    bias_on: Literal["scores", "logits"] = "scores"
    """To a copy of what the selection bias is added, for the choice alone. On `logits` it moves an
    expert as far for sure tokens as for others; sigmoids are flat there. The weights are those of
    the logits without it."""
    expert_groups: int | None = None
    """Groups of consecutive experts (Q), usually one for each device or node."""
    kept_expert_groups: int | None = None
    """Groups with the best group score, from which a token may choose."""
    group_score: Literal["max", "best_two"] = "max"
    """What a group is judged by: its best score, or the sum of its best two."""
    positive: bool = False
    """Of the K choices keep those whose score, with the selection bias, is greater than 0. With a
    negative bias that is a threshold of each expert; of a ReLU, what is not cut off."""
    eval_candidates: int | None = None
    """In evaluation with too few slots, experts that a token may end up with: see ``with_room``."""
    top_p: float | None = None
    """Of the K choices keep the best that gather this much probability, and no more."""
    renormalise: bool = False
    """Divide the chosen weights by their sum; of a softmax that is the softmax over the chosen."""
    weight_scale: float = 1.0
    """Multiplies the weights."""
    random_second: bool = False
    """In training, keep a second choice of weight w with probability 2 w (Lepikhin et al. 2020).
    One that is not kept takes no slot; in their Algorithm 1 it still counts as a taken one."""
    weigh: Literal["output", "input"] = "output"
    """Whether weights multiply the experts' outputs or their inputs."""


def choose(inputs: RouterInput, rule: TokenChoiceRule) -> TokenChoice:
    """Choose the ``top_k`` experts of largest score for every token; ties go to the lower index.

    Gradients reach the logits through the weights, never through the choice.
    """
    logits_GSE, K = inputs.logits_GSE, inputs.top_k
    if inputs.key is not None:
        noise_key, second_key = jax.random.split(inputs.key)
        logits_GSE = noisy(inputs, rule, noise_key)
    score_GSE = SCORES[rule.score](logits_GSE)
    wanted_GSE, bias_E = logits_GSE, inputs.bias_E
    if bias_E is not None and rule.bias_on == "logits":
        wanted_GSE, bias_E = logits_GSE + bias_E, None
    # Scores of very confident routers are equal in float32 where logits are not.
    if bias_E is not None or rule.kept_expert_groups is not None or rule.positive:
        wanted_GSE = preference(SCORES[rule.score](wanted_GSE), bias_E, rule)
    replayed_GSK = inputs.replayed_GSK
    short = inputs.capacity < inputs.real_GS.shape[1] and not inputs.training
    if not short or replayed_GSK is not None:
        rule = replace(rule, eval_candidates=None)  # all have room, or have been chosen
    if rule.eval_candidates is not None:
        if rule.positive:  # who would not go there takes no room
            wanted_GSE = jnp.where(wanted_GSE > 0, wanted_GSE, -jnp.inf)
        wanted_GSE = with_room(wanted_GSE, score_GSE, inputs, rule.eval_candidates)
    choice = choose_by(wanted_GSE, score_GSE, K, rule, replayed_GSK)
    if inputs.bias_E is not None:
        unbiased_GSK = keep(pick(score_GSE, K), score_GSE, score_GSE, rule)
        choice = replace(choice, unbiased_GSK=unbiased_GSK)
    if rule.noise == "learned" and inputs.key is not None:
        own_GSK = choice.expert_GSK if replayed_GSK is None else pick(wanted_GSE, K)
        load_GSE = smooth_load(inputs, logits_GSE, own_GSK)
        choice = replace(choice, smooth_load_GSE=load_GSE)
    if rule.random_second and inputs.key is not None and K > 1 and replayed_GSK is None:
        # Lepikhin et al. 2020, Algorithm 1, line 18. Without a key, in evaluation, all stay.
        shape = choice.weight_GSK.shape
        coin_GSK = inputs.rows.draw(jax.random.uniform, second_key, shape)
        stays_GSK = (2 * choice.weight_GSK > coin_GSK).at[..., 0].set(True)
        choice = replace(choice, expert_GSK=jnp.where(stays_GSK, choice.expert_GSK, -1))
    return choice


def choose_by(
    preference_GSE: jax.Array,
    score_GSE: jax.Array,
    top_k: int,
    rule: TokenChoiceRule,
    replayed_GSK: jax.Array | None = None,
) -> TokenChoice:
    """Choose by one array and weigh by another, as ``rule`` says; or weigh what was chosen before
    (``RouterInput.replayed_GSK``; Ma et al. 2025, "rollout routing replay").
    """
    expert_GSK = replayed_GSK
    if expert_GSK is None:
        expert_GSK = keep(pick(preference_GSE, top_k), preference_GSE, score_GSE, rule)
    # A masked sum, not a gather: its gradient is a product, not a scatter.
    weight_GSK = jnp.stack([at(score_GSE, expert_GSK[..., k]) for k in range(top_k)], axis=-1)
    if rule.renormalise:
        # All chosen scores may underflow: then the weights are 0, not 0/0 (as in DeepSeek-V3).
        weight_GSK /= weight_GSK.sum(-1, keepdims=True) + 1e-20
    weight_GSK *= rule.weight_scale
    return TokenChoice(expert_GSK, weight_GSK, distribute(score_GSE, rule), weigh=rule.weigh)


def distribute(score_GSE: jax.Array, rule: TokenChoiceRule) -> jax.Array:
    """The scores as a distribution: those that are none over their sum (DeepSeek-V3, Eq. 19)."""
    total_GS1 = 1.0 if rule.score == "softmax" else score_GSE.sum(-1, keepdims=True) + 1e-20
    return score_GSE / total_GS1


def keep(
    expert_GSK: jax.Array,
    preference_GSE: jax.Array,
    score_GSE: jax.Array,
    rule: TokenChoiceRule,
) -> jax.Array:
    """The choices, best first, that the rule lets stay; -1 for the others, which come after them.

    ``eval_candidates``: those that have room. ``positive``: those whose preference is greater than
    0. ``top_p``: up to the one with which they gather that much probability (Huang et al. 2024,
    Eq. 3-4).
    """
    if rule.eval_candidates is not None:
        # Best first: those without room come last.
        open_GS1 = (preference_GSE > -jnp.inf).sum(-1, keepdims=True)
        expert_GSK = jnp.where(jnp.arange(expert_GSK.shape[-1]) < open_GS1, expert_GSK, -1)
    if rule.positive:
        own_GSK = at_each(jax.lax.stop_gradient(preference_GSE), expert_GSK)
        expert_GSK = jnp.where(own_GSK > 0, expert_GSK, -1)
    if rule.top_p is not None:
        share_GSE = distribute(jax.lax.stop_gradient(score_GSE), rule)
        share_GSK = at_each(share_GSE, expert_GSK)
        before_GSK = jnp.cumsum(share_GSK, axis=-1) - share_GSK
        # The first stays; of what lies before it, rounding could make more than nothing.
        stays_GSK = (before_GSK < rule.top_p).at[..., 0].set(True)
        expert_GSK = jnp.where(stays_GSK, expert_GSK, -1)
    return expert_GSK


def with_room(
    preference_GSE: jax.Array, score_GSE: jax.Array, inputs: RouterInput, candidates: int
) -> jax.Array:
    """The preference, -inf where a token finds no room: each expert keeps, of the tokens of its
    group among whose best ``candidates`` it is, the C that score it highest.

    Capacity-aware inference (He et al. 2025, arXiv 2503.05066): token drop where there are as many
    candidates as choices, expanded drop where there are more: then a token takes the best K that
    keep it, and fewer than K only if fewer do. As in the authors' code, by score, over all devices.
    No expert gets more than its C slots, so that nothing is dropped after this. Equal scores go to
    the earlier token.
    """
    E, real_GS1 = score_GSE.shape[-1], inputs.real_GS[..., None]
    best_GSM = pick(preference_GSE, candidates)
    candidate_GSE = (best_GSM[..., None] == jnp.arange(E)).any(-2) & real_GS1
    candidate_GSE &= preference_GSE > -jnp.inf
    queue_GSE = jnp.where(candidate_GSE, -jax.lax.stop_gradient(score_GSE), jnp.inf)
    place_GSE = jnp.argsort(jnp.argsort(queue_GSE, axis=1), axis=1)
    stays_GSE = candidate_GSE & (place_GSE < inputs.capacity)
    return jnp.where(stays_GSE, preference_GSE, -jnp.inf)


def pick(preference_GSE: jax.Array, top_k: int) -> jax.Array:
    """The ``top_k`` largest of every token, best first, the lower index first among equals."""
    experts, E = [], preference_GSE.shape[-1]
    # K rounds of argmax: lax.top_k would gather the scores of all devices (and K is small).
    left_GSE = jax.lax.stop_gradient(preference_GSE)
    for _ in range(top_k):
        experts.append(jnp.argmax(left_GSE, axis=-1))
        left_GSE = jnp.where(experts[-1][..., None] == jnp.arange(E), -jnp.inf, left_GSE)
    return jnp.stack(experts, axis=-1).astype(jnp.int32)


def at(value_GSE: jax.Array, expert_GS: jax.Array) -> jax.Array:
    """Each token's value at one expert."""
    chosen_GSE = expert_GS[..., None] == jnp.arange(value_GSE.shape[-1])
    return jnp.where(chosen_GSE, value_GSE, 0).sum(-1)


def preference(score_GSE: jax.Array, bias_E: jax.Array | None, rule: TokenChoiceRule) -> jax.Array:
    """What experts are chosen by: scores and bias, -inf outside the kept expert groups.

    Wang et al. 2024, Eq. 3 (bias); DeepSeek-V2, section 2.2.2, and DeepSeek-V3, section 2.1.2
    (groups). Hugging Face's code does the same (transformers 5.24); older versions set other
    groups to 0, which differs only where a bias makes the score of a kept expert negative.
    """
    score_GSE = jax.lax.stop_gradient(score_GSE)
    if bias_E is not None:
        score_GSE = score_GSE + bias_E
    if rule.kept_expert_groups is None:
        return score_GSE
    Q = rule.expert_groups
    score_GSQE = score_GSE.reshape(*score_GSE.shape[:2], Q, -1)
    best_two = rule.group_score == "best_two" and score_GSQE.shape[-1] > 1
    best_GSQK = at_each(score_GSQE, pick(score_GSQE, 2 if best_two else 1))
    judged_GSQ = best_GSQK[..., 0] + best_GSQK[..., 1] if best_two else best_GSQK[..., 0]
    kept_GSK = pick(judged_GSQ, rule.kept_expert_groups)
    kept_GSQ = (kept_GSK[..., None] == jnp.arange(Q)).any(-2)
    return jnp.where(kept_GSQ[..., None], score_GSQE, -jnp.inf).reshape(score_GSE.shape)


def at_each(value_GSQE: jax.Array, expert_GSQK: jax.Array) -> jax.Array:
    """The values at several experts: [..., K]."""
    return jnp.stack(
        [at(value_GSQE, expert_GSQK[..., k]) for k in range(expert_GSQK.shape[-1])], axis=-1
    )


def noisy(inputs: RouterInput, rule: TokenChoiceRule, key: jax.Array) -> jax.Array:
    """The logits with the rule's noise."""
    logits_GSE = inputs.logits_GSE
    if rule.noise == "none":
        return logits_GSE
    normal_GSE = inputs.rows.draw(jax.random.normal, key, logits_GSE.shape)
    if rule.noise == "fixed":
        return logits_GSE + normal_GSE / logits_GSE.shape[-1]
    return logits_GSE + normal_GSE * width(inputs.noise_GSE)


def width(noise_GSE: jax.Array | None) -> jax.Array:
    """The standard deviation of the learned noise (Shazeer et al. 2017, Eq. 4), and 0.01 more, as
    in the authors' code: the smooth load divides by it.
    """
    assert noise_GSE is not None  # the layer gives it where the rule's noise is learned
    return jax.nn.softplus(noise_GSE) + 0.01


def smooth_load(inputs: RouterInput, noisy_GSE: jax.Array, expert_GSK: jax.Array) -> jax.Array:
    """P(x, i): the probability that expert i is chosen if only its own noise is drawn again.

    Shazeer et al. 2017, Eq. 9: the normal distribution function of the clean logit less the K-th
    largest noisy logit of the others, over the noise's width.
    """
    K, E = inputs.top_k, noisy_GSE.shape[-1]
    if K == E:
        return jnp.ones_like(noisy_GSE)
    beyond_GS = pick(noisy_GSE, K + 1)[..., K]
    chosen_GSE = (expert_GSK[..., None] == jnp.arange(E)).any(-2)
    last_GS1 = at(noisy_GSE, expert_GSK[..., -1])[..., None]
    threshold_GSE = jnp.where(chosen_GSE, at(noisy_GSE, beyond_GS)[..., None], last_GS1)
    distance_GSE = (inputs.logits_GSE - threshold_GSE) / width(inputs.noise_GSE)
    return jax.scipy.stats.norm.cdf(distance_GSE)
