"""Losses of 2025 on what a router is, not on who is chosen: its matrix, how it meets the experts'
own matrices, and how far its probabilities spread.

What depends on parameters alone is told by every token in the same way, so that sums over tokens
divided by their number give it back for any part of a batch.

Letters: I: proxies of experts, as many as E.
"""

import jax
import jax.numpy as jnp

from moejax.moe.balance import RouterStats
from moejax.moe.scores import multiply_exactly


def orthogonality(w_router_DE: jax.Array) -> jax.Array:
    """The sum of all ``|R^T R - 1|``: 0 where the experts' vectors have length 1 and right angles.

    SimBal (Omi et al. 2025), L_orth. They also begin with an orthogonal router; ours begins with
    normal numbers, whose columns are about 1 long.
    """
    gram_EE = multiply_exactly(w_router_DE.T, w_router_DE)
    return jnp.abs(gram_EE - jnp.eye(len(gram_EE))).sum()


def coupling(
    w_router_DE: jax.Array, w_in_EDF: jax.Array, alpha: float, key: jax.Array | None = None
) -> jax.Array:
    """How far experts answer to the router's vectors of others as much as to their own.

    Expert-router coupling (Lv et al. 2025): the vector of expert i, times noise that keeps it
    nearest to itself, is a token that stands for those of i. M_ij is the length of what the first
    matrix of expert j makes of it, and the loss the mean over all pairs (1 / E^2) of
    max(M_ij - alpha M_ii, 0) + max(M_ji - alpha M_ii, 0), i != j. No noise without a ``key``.
    Experts that are not gated have one first matrix, which is taken.
    """
    E = w_router_DE.shape[1]
    proxy_ID = w_router_DE.T
    if key is not None:
        noise_ID = jax.random.uniform(key, proxy_ID.shape, minval=-1, maxval=1)
        proxy_ID *= 1 + noise_ID * _half_way(proxy_ID)
    precise = jax.lax.Precision.HIGHEST
    hidden_EIF = jnp.einsum("id,edf->eif", proxy_ID, w_in_EDF, precision=precise)
    # At 0 the square root has no slope.
    length_IE = jnp.sqrt(jnp.square(hidden_EIF).sum(-1) + 1e-12).T
    own_I1 = alpha * jnp.diagonal(length_IE)[:, None]
    over_IE = jax.nn.relu(length_IE - own_I1) + jax.nn.relu(length_IE.T - own_I1)
    return jnp.where(jnp.eye(E, dtype=bool), 0, over_IE).sum() / E**2


def _half_way(proxy_ID: jax.Array) -> jax.Array:
    """Half of the way from each vector to the next one, over its length: [I, 1], no gradient."""
    proxy_ID = jax.lax.stop_gradient(proxy_ID)
    gram_II = multiply_exactly(proxy_ID, proxy_ID.T)
    square_I = jnp.diagonal(gram_II)
    away_II = jnp.maximum(square_I[:, None] + square_I - 2 * gram_II, 0)
    nearest_I = jnp.where(jnp.eye(len(square_I), dtype=bool), jnp.inf, away_II).min(1)
    share_I = jnp.sqrt(nearest_I / jnp.maximum(square_I, 1e-12)) / 2
    return jnp.where(jnp.isfinite(share_I), share_I, 0)[:, None]  # one expert has no other


def told_by_tokens(stats: RouterStats, told_B: jax.Array | None) -> jax.Array:
    """The mean of what tokens told: orthogonality, coupling, and entropy (Huang et al. 2024, their
    dynamic loss, whose sum over experts it is).
    """
    assert told_B is not None  # the layer sums it up where it has a weight
    return told_B / jnp.maximum(stats.tokens_B, 1)


def variance_loss(stats: RouterStats) -> jax.Array:
    """The variance of each expert's probability over tokens, their mean over experts, negative:
    the loss falls as tokens differ in what they want.

    Guo et al. 2025, L_v. Theirs is a sum over tokens, ours the mean, which does not tie the
    coefficient to the size of the batch. Their other loss makes the outputs of a token's experts
    orthogonal; no router sees these.
    """
    assert stats.probability_squared_BE is not None  # summed up where it has a weight
    tokens_B1 = jnp.maximum(stats.tokens_B, 1)[..., None]
    mean_BE = stats.probability_BE / tokens_B1
    return -(stats.probability_squared_BE / tokens_B1 - jnp.square(mean_BE)).mean(-1)


def sparsity_loss(stats: RouterStats, top_k: int) -> jax.Array:
    """The sum of all scores of a token, each times its expert's load over the wanted one: 0 where
    no ReLU lets anything through.

    ReMoE (Wang et al. 2024), Eq. 8-9: sum_e f_e R(x)_e, f_e = E / (K T) * the tokens of expert e.
    Here the choices that load counts are at most K. The coefficient may move (below).
    """
    assert stats.score_BE is not None  # summed up where it has a weight
    tokens_B1 = jnp.maximum(stats.tokens_B, 1)[..., None]
    load_BE = stats.asked_BE.shape[-1] / top_k * stats.asked_BE / tokens_B1
    return (jax.lax.stop_gradient(load_BE) * stats.score_BE / tokens_B1).sum(-1)


def find_sparsity(open_LE: jax.Array, tokens_L: jax.Array) -> jax.Array:
    """The share of scores that are 0, over all tokens, experts and layers; NaN without a token."""
    return 1 - open_LE.sum() / (tokens_L.sum() * open_LE.shape[-1])


def move_sparsity_weight(
    weight: jax.Array, stats: RouterStats, per_token: float, factor: float
) -> jax.Array:
    """The coefficient of the sparsity loss after a step, of stats with a leading L: times
    ``factor`` if too few scores were 0 for ``per_token`` experts a token, over it if too many.

    ReMoE (Wang et al. 2024), section 3.2: lambda_{i+1} = lambda_i alpha^sign((1 - k / E) - S_i),
    with alpha 1.2 from 1e-8. S counts what the ReLUs let through, before the limit of K. Theirs is
    the coefficient of a mean over layers; ours that of a sum, as of all losses here.
    """
    assert stats.open_BE is not None  # summed up where the loss has a weight
    sparsity = find_sparsity(stats.open_BE, stats.tokens_B)
    wanted = 1 - per_token / stats.open_BE.shape[-1]
    moved = weight * factor ** jnp.sign(wanted - sparsity)
    return jnp.where(stats.tokens_B.sum() > 0, moved, weight)
