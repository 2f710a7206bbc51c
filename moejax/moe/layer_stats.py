"""What a layer says about itself: the sums that all settings need, and those that some do.

Letters: M: bins of a histogram; Q: groups of experts.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from moejax.config.moe import MoEConfig
from moejax.moe import balance, router_losses, selection_bias
from moejax.moe.adapted import as_array
from moejax.moe.balance import RouterStats
from moejax.routing.contract import Choice, RouterInput
from moejax.routing.token_choice import SCORES

HISTOGRAMS = {
    "quantile": selection_bias.margin_histogram,
    "threshold": selection_bias.score_histogram,
}
"""What the updates of the selection bias that look at scores count."""


def layer_stats(
    moe: MoEConfig,
    inputs: RouterInput,
    choice: Choice,
    seated_GSE: jax.Array,
    bad_GS: jax.Array,
    rows: int,
    params: Mapping[str, Any],
) -> RouterStats:
    """The sums of each of ``rows`` sequences. ``params`` are the layer's, for losses on them."""
    rule = moe.built_router.token_rule
    stats = balance.router_stats(inputs, choice, seated_GSE, bad_GS, rows=rows)
    if moe.expert_groups:
        sent_BQ = balance.sent_to_groups(choice, inputs.real_GS, moe.expert_groups, rows=rows)
        stats = replace(stats, sent_BQ=sent_BQ)
    if not inputs.training:
        return stats
    if moe.balance.bias_update in HISTOGRAMS and inputs.bias_E is not None:
        assert rule is not None  # as the config demands
        margin_EM = HISTOGRAMS[moe.balance.bias_update](inputs, rule)
        stats = replace(stats, margin_1EM=margin_EM[None])
    if moe.balance.variance_loss_weight:
        real_GS1 = inputs.real_GS[..., None]
        squared_GSE = jnp.where(real_GS1, jnp.square(choice.probability_GSE), 0)
        squared_BE = squared_GSE.reshape(rows, -1, moe.num_choices).sum(1)
        stats = replace(stats, probability_squared_BE=squared_BE)
    if moe.balance.entropy_loss_weight:
        # p log p has no slope at 0.
        log_GSE = jnp.log(jnp.maximum(choice.probability_GSE, 1e-20))
        entropy_GS = -(choice.probability_GSE * log_GSE).sum(-1)
        entropy_B = jnp.where(inputs.real_GS, entropy_GS, 0).reshape(rows, -1).sum(1)
        stats = replace(stats, entropy_slope_B=entropy_B)
    if moe.balance.sparsity_loss_weight:
        assert rule is not None  # as the config demands
        score_GSE = jnp.where(inputs.real_GS[..., None], SCORES[rule.score](inputs.logits_GSE), 0)
        scores = {"score_BE": score_GSE, "open_BE": (score_GSE > 0).astype(jnp.float32)}
        parts = {n: x.reshape(rows, -1, moe.num_choices).sum(1) for n, x in scores.items()}
        stats = replace(stats, **parts)
    return _of_parameters(stats, moe, inputs.key, params)


def _of_parameters(
    stats: RouterStats, moe: MoEConfig, key: jax.Array | None, params: Mapping[str, Any]
) -> RouterStats:
    """The sums with what every token tells of the layer's parameters."""
    if moe.balance.orthogonality_loss_weight:
        told = router_losses.orthogonality(as_array(params["w_router_DE"], jnp.float32))
        stats = replace(stats, orthogonality_B=stats.tokens_B * told)
    if moe.balance.coupling_loss_weight:
        first = "w_gate_EDF" if "w_gate_EDF" in params else "w_up_EDF"
        w_router_DE, w_in_EDF = (as_array(params[n], jnp.float32) for n in ("w_router_DE", first))
        noise_key = None if key is None else jax.random.fold_in(key, 3)
        # Experts without computation, which come last, have no matrix.
        w_router_DE = w_router_DE[:, : moe.num_experts]
        alpha = moe.balance.coupling_alpha
        told = router_losses.coupling(w_router_DE, w_in_EDF, alpha, noise_key)
        stats = replace(stats, coupling_B=stats.tokens_B * told)
    return stats
