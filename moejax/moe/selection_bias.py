"""The bias of the loss-free balance: experts with too little load are chosen more easily.

It is added to the scores for the choice alone, never to weights, and no gradient moves it: it is
updated once per optimizer step from the counts of the whole batch. Always float32.

Letters: M: bins of a histogram.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from moejax.routing.contract import RouterInput
from moejax.routing.token_choice import SCORES, TokenChoiceRule, at, pick, preference

BINS = 1024

Update = Literal["none", "sign", "proportional", "pid", "quantile", "threshold"]


def step(
    bias_LE: jax.Array,
    asked_LE: jax.Array,
    update: Update,
    rate: float,
    share_E: np.ndarray | None = None,
) -> jax.Array:
    """Move the bias towards an even load (Wang et al. 2024, Algorithm 1), or towards these shares
    of all choices, where an expert with share 0 keeps its bias (``target_shares``).

    ``sign``: by ``rate``, up where the load is below its target. ``proportional``: by ``rate``
    times the lack over the target; theirs (section 4.3) multiplies the plain count, which would tie
    the rate to the batch size.
    """
    lack_LE = relative_lack(asked_LE, share_E)
    return bias_LE + rate * (jnp.sign(lack_LE) if update == "sign" else lack_LE)


def relative_lack(asked_LE: jax.Array, share_E: np.ndarray | None = None) -> jax.Array:
    """How much load each expert lacks, over its target: 1 without any, 0 at the target, negative
    above it; 0 where the target is none.
    """
    wanted_LE = asked_LE.mean(-1, keepdims=True)
    if share_E is not None:
        wanted_LE = asked_LE.sum(-1, keepdims=True) * jnp.float32(share_E)
    lack_LE = jnp.where(wanted_LE > 0, wanted_LE - asked_LE, 0)
    return lack_LE / jnp.maximum(wanted_LE, 1)


@dataclass(frozen=True, kw_only=True)
class Gains:
    """How strongly a PID controller answers; ``rate`` is an amount added to scores."""

    rate: float
    """What the lack of one step adds to the sum."""
    proportional: float
    """What the lack itself adds to the bias, in rates."""
    difference: float
    """What its change since the last step adds to the bias, in rates."""
    limit: float
    """Beyond plus or minus this the sum does not go."""


def control(
    sum_LE: jax.Array, last_LE: jax.Array, lack_LE: jax.Array, gains: Gains
) -> tuple[jax.Array, jax.Array]:
    """``(bias_LE, sum_LE)`` after a step: PID control as books have it (Astrom and Murray,
    "Feedback Systems", its chapter on PID control), of each expert by its own ``relative_lack``.
    ``last_LE`` is that of the step before, 0 before the first.

    b_t = s_t + rate (p e_t + d (e_t - e_{t-1})), s_t = s_{t-1} + rate e_t. The sum is not moved out
    of its limit, so that it has not wound up when an expert that nobody wanted is wanted again;
    where it begins outside, it may come back. With p and d 0 this is ``proportional``, which moves
    the bias by the lack, and so is the sum alone. LongCat-Flash (2025) speaks of PID control, but
    has that one term, too (``target_shares``); what is here is no paper's, but that of the books.
    """
    moved_LE = sum_LE + gains.rate * lack_LE
    low_LE, high_LE = jnp.minimum(sum_LE, -gains.limit), jnp.maximum(sum_LE, gains.limit)
    sum_LE = jnp.clip(moved_LE, low_LE, high_LE)
    at_once_LE = gains.proportional * lack_LE + gains.difference * (lack_LE - last_LE)
    return sum_LE + gains.rate * at_once_LE, sum_LE


def target_shares(experts: int, others: int, top_k: int, per_token: float) -> np.ndarray:
    """The share of all choices that each expert should get, so that a token's K choices fall on
    ``per_token`` of the ``experts`` that compute: K_e / (K N); 0 for the ``others``, which come
    last and whose bias is held: ``share_E``.

    LongCat-Flash (2025), section 2.1: b_i += mu (K_e / (K N) - T_i / (K T_all)). Their mu is
    ``proportional``'s rate over this share. They call it PID control; the equation has one term.
    """
    return np.repeat([per_token / (top_k * experts), 0], [experts, others])


def centre(bias_LE: jax.Array) -> jax.Array:
    """Subtract the mean over the experts, which no choice depends on."""
    return bias_LE - bias_LE.mean(-1, keepdims=True)


def margin_histogram(inputs: RouterInput, rule: TokenChoiceRule) -> jax.Array:
    """How much bias each token would need to choose each expert, noise aside: ``margin_EM``.

    Quantile balancing (Su 2026; Kimi K3 report 2026, section 2.3.3): the token's (K+1)-th largest
    biased score less the expert's score. Scores lie in [0, 1], so all margins lie in [min bias - 1,
    max bias + 1], which M bins divide evenly. Histograms of parts of a batch add up.
    """
    assert inputs.bias_E is not None
    score_GSE = jax.lax.stop_gradient(SCORES[rule.score](inputs.logits_GSE))
    biased_GSE = preference(score_GSE, inputs.bias_E, rule)
    cutoff_GS = at(biased_GSE, pick(biased_GSE, inputs.top_k + 1)[..., -1])
    return _count(cutoff_GS[..., None] - score_GSE, inputs.bias_E, inputs.real_GS)


def score_histogram(inputs: RouterInput, rule: TokenChoiceRule) -> jax.Array:
    """How much bias each token would need for its score of each expert to reach 0: minus the score,
    in [-1, 0], by the bins of ``margin_histogram``: ``margin_EM``.
    """
    assert inputs.bias_E is not None
    score_GSE = jax.lax.stop_gradient(SCORES[rule.score](inputs.logits_GSE))
    return _count(-score_GSE, inputs.bias_E, inputs.real_GS)


def _count(margin_GSE: jax.Array, bias_E: jax.Array, real_GS: jax.Array) -> jax.Array:
    """The histogram of each expert's margins over the real tokens."""
    low, high = _range(bias_E)
    place_GSE = (margin_GSE - low) / (high - low) * BINS
    bin_TE = jnp.clip(place_GSE.astype(jnp.int32), 0, BINS - 1).reshape(-1, margin_GSE.shape[-1])
    real_T1 = real_GS.reshape(-1, 1).astype(jnp.float32)
    E = bin_TE.shape[-1]
    return jnp.zeros((E, BINS)).at[jnp.arange(E), bin_TE].add(real_T1)


def threshold(
    bias_LE: jax.Array, margin_LEM: jax.Array, per_token: float, rate: float
) -> jax.Array:
    """Move the bias, which is minus the threshold of each expert, by ``rate`` of the way to the
    quantile of this step: that with which ``per_token`` experts a token have a score above it. A
    layer whose bias is 0 everywhere has had no step, and goes there at once.

    Expert threshold routing (Sun et al. 2026): an exponential moving average of the score that
    the share G / E of all tokens lies above, for each expert; no token is compared with others.
    ``margin_LEM`` is of ``score_histogram``. Of the paper we had the abstract and the figures, not
    the equations: sigmoid scores, weights that are the scores, and the first step are ours. So is
    the limit of K experts a token, which are those furthest above their thresholds: a token whose
    scores reach more of them leaves some out.
    """
    found_LE = _find_quantile(bias_LE, margin_LEM, per_token)
    unset_L1 = (bias_LE == 0).all(-1, keepdims=True)
    return jnp.where(unset_L1, found_LE, bias_LE + rate * (found_LE - bias_LE))


def quantile(bias_LE: jax.Array, margin_LEM: jax.Array, top_k: int) -> jax.Array:
    """The bias with which a share K / E of all tokens would have chosen each expert, centred.

    ``bias_LE`` is the one that the margins were counted under. Kimi K3 report 2026, Eq. 13-14:
    the quantile K / E of the margins, interpolated inside its bin. Exact for the cutoffs of that
    batch, which the new bias will move: an even load takes a few steps. Without any token the bias
    stays.
    """
    return centre(_find_quantile(bias_LE, margin_LEM, top_k))


def _find_quantile(bias_LE: jax.Array, margin_LEM: jax.Array, per_token: float) -> jax.Array:
    """The bias that ``per_token`` of a token's margins lie below, all experts alike."""

    def solve(bias_E: jax.Array, margin_EM: jax.Array) -> jax.Array:
        below_EM = jnp.cumsum(margin_EM, axis=-1)
        wanted_E1 = below_EM[:, -1:] * per_token / bias_E.shape[0]
        first_E1 = (below_EM < wanted_E1).sum(-1, keepdims=True)
        inside_E1 = jnp.take_along_axis(margin_EM, first_E1, axis=-1)
        before_E1 = jnp.take_along_axis(below_EM, first_E1, axis=-1) - inside_E1
        place_E1 = first_E1 + (wanted_E1 - before_E1) / jnp.maximum(inside_E1, 1)
        low, high = _range(bias_E)
        found_E = low + (high - low) * place_E1[:, 0] / BINS
        return jnp.where(below_EM[:, -1] > 0, found_E, bias_E)

    return jax.vmap(solve)(bias_LE, margin_LEM)


def _range(bias_E: jax.Array) -> tuple[jax.Array, jax.Array]:
    return bias_E.min() - 1, bias_E.max() + 1
