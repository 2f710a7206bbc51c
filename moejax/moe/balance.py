"""Balance: what a routed layer says about itself, and the losses and metrics made of it.

``RouterStats`` are sums, not means, so that any scope (a sequence, a device, a batch, all
accumulated micro-batches) follows exactly by adding them up.

Letters: M: bins of a histogram; Q: groups of experts; W: stretches of the sequence.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from moejax.routing import contract
from moejax.routing.contract import Choice, RouterInput, TokenChoice


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RouterStats:
    """Sums over the real tokens of each sequence (B), padding left out; layers stack to a leading
    L, and ``sum_sequences`` leaves LE and L.

    Where sequences lie in pieces (``runtime.pieces``), B are the pieces. Load is what routers
    *asked* for: before capacity. Differentiable: probability (and
    squared), weight, smooth_load, log_z_squared, orthogonality and coupling. E counts
    zero-computation experts, too.
    """

    tokens_B: jax.Array
    """Tokens that were routed."""
    bad_B: jax.Array
    """Tokens that are not finite, or have such a logit: no expert, and in no other sum."""
    asked_BE: jax.Array
    """Choices of each expert, before capacity; of a soft router, the mass in its slots."""
    seated_BE: jax.Array
    """Choices of each expert that got a slot."""
    probability_BE: jax.Array
    """Router probability of each expert."""
    weight_BE: jax.Array
    """Weight that tokens give each expert: Shazeer's importance."""
    log_z_squared_B: jax.Array
    """Squared log-sum-exp of the logits."""
    entropy_B: jax.Array
    """Entropy of the router's distribution, in nats."""
    unbiased_BE: jax.Array | None = None
    """Under a selection bias: choices of each expert if there were none."""
    smooth_load_BE: jax.Array | None = None
    """Shazeer's smooth estimate of the load, of noisy routers in training."""
    sent_BQ: jax.Array | None = None
    """Tokens with a choice in each group of experts (Q), where experts have groups."""
    asked_BW: jax.Array | None = None
    """Choices before capacity in each stretch (W) of the sequence."""
    seated_BW: jax.Array | None = None
    """Choices that got a slot in each stretch of the sequence."""
    probability_squared_BE: jax.Array | None = None
    """Squared router probability of each expert, where its variance is a loss."""
    score_BE: jax.Array | None = None
    """Score of each expert, chosen or not, where their sum is a loss."""
    open_BE: jax.Array | None = None
    """Tokens whose score of each expert is above 0, likewise."""
    entropy_slope_B: jax.Array | None = None
    """The entropy with its gradient, where it is a loss."""
    orthogonality_B: jax.Array | None = None
    """What each token tells of the router's matrix; these seven in training, where used."""
    coupling_B: jax.Array | None = None
    """What each token tells of the router's and the experts' matrices together."""
    margin_1EM: jax.Array | None = None
    """Histogram over M bins of the bias that each token would need to choose each expert, over all
    sequences; for quantile balancing."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routed:
    """What the routed layers say, with a leading L over them."""

    stats: RouterStats
    chosen_LBNE: jax.Array
    """Which experts each token asked for (bool)."""
    expert_LBNK: jax.Array | None = None
    """The same in the order of choice (int32, -1 for no expert), where tokens choose."""
    weight_LBNK: jax.Array | None = None
    """The weight of each of them (float32), 0 for no expert."""


def join_routed(one: Routed | None, other: Routed | None) -> Routed | None:
    """What the layers of both say, one after the other."""
    if one is None or other is None:
        return one or other
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, other)


def router_stats(
    inputs: RouterInput, choice: Choice, seated_GSE: jax.Array, bad_GS: jax.Array, rows: int
) -> RouterStats:
    """Sum up one layer's routing over the tokens of each of ``rows`` sequences, or pieces of
    sequences.
    """
    real_GS = inputs.real_GS
    asked_GSE = contract.asked(choice, real_GS)
    log_z_GS = jax.nn.logsumexp(inputs.logits_GSE, axis=-1)
    # A metric only, so no gradient: that of p log p at p = 0 is not finite.
    probability_GSE = jax.lax.stop_gradient(choice.probability_GSE)
    entropy_GS = jax.scipy.special.entr(probability_GSE).sum(-1)

    def total(x_GS: jax.Array) -> jax.Array:
        """Over each sequence: [rows, ...]. Groups are parts of sequences, or several of them."""
        extra = x_GS.shape[2:]
        mask_GS = real_GS.reshape(*real_GS.shape, *[1] * len(extra))
        x_GS = jnp.where(mask_GS, x_GS.astype(jnp.float32), 0)
        return x_GS.reshape(rows, -1, *extra).sum(1)

    def by_stretch(x_GSE: jax.Array) -> jax.Array:
        x_BN = jnp.where(real_GS, x_GSE.sum(-1), 0).reshape(rows, -1).astype(jnp.float32)
        return sum_stretches(x_BN, stretches(inputs.rows.pieces * x_BN.shape[1]))

    smooth = unbiased = None
    if isinstance(choice, TokenChoice):
        smooth, unbiased = choice.smooth_load_GSE, choice.unbiased_GSK
    if unbiased is not None:
        ones_GSK = jnp.ones(unbiased.shape, jnp.float32)
        unbiased = total(contract.spread(unbiased, ones_GSK, asked_GSE.shape[-1]))
    return RouterStats(
        tokens_B=total(jnp.ones_like(log_z_GS)),
        bad_B=bad_GS.reshape(rows, -1).sum(1, dtype=jnp.float32),
        asked_BE=total(asked_GSE),
        seated_BE=total(seated_GSE),
        probability_BE=total(choice.probability_GSE),
        weight_BE=total(contract.weight(choice, real_GS)),
        log_z_squared_B=total(jnp.square(log_z_GS)),
        entropy_B=total(entropy_GS),
        unbiased_BE=unbiased,
        smooth_load_BE=None if smooth is None else total(smooth),
        asked_BW=by_stretch(asked_GSE),
        seated_BW=by_stretch(seated_GSE),
    )


def stretches(positions: int, most: int = 16) -> np.ndarray:
    """The stretch of the sequence that each position lies in: ``most`` as equal as can be, or one
    for each position if there are fewer.
    """
    count = min(most, positions)
    return np.arange(positions) * count // positions


def sum_stretches(x_BN: jax.Array, stretch_N: np.ndarray) -> jax.Array:
    """Add up positions by stretch, ``x_BW``; a product, as that stays where the sequences are.
    There may be more stretches than positions in a row, which are then a piece of a sequence.
    """
    member_NW = stretch_N[:, None] == np.arange(stretch_N[-1] + 1)
    x_CBN = x_BN.reshape(len(stretch_N) // x_BN.shape[1], -1, x_BN.shape[1])
    member_CNW = jnp.asarray(member_NW, jnp.float32).reshape(len(x_CBN), x_BN.shape[1], -1)
    x_CBW = jnp.matmul(x_CBN, member_CNW, precision=jax.lax.Precision.HIGHEST)
    return x_CBW.reshape(len(x_BN), -1)


def sent_to_groups(choice: Choice, real_GS: jax.Array, expert_groups: int, rows: int) -> jax.Array:
    """Tokens with a choice in each group of experts, ``sent_BQ``."""
    asked_GSE = contract.asked(choice, real_GS)
    asked_GSQE = asked_GSE.reshape(*asked_GSE.shape[:2], expert_groups, -1)
    return (asked_GSQE > 0).any(-1).reshape(rows, -1, expert_groups).sum(1, dtype=jnp.float32)


def sum_sequences(stats: RouterStats) -> RouterStats:
    """Add up the sequences of stats with leading dimensions L, B."""
    return jax.tree.map(lambda sums: sums.sum(1), stats)


# Losses. Each takes one scope's sums, with any leading dimensions, and keeps those.


def _count_choices(stats: RouterStats) -> jax.Array:
    """The choices that f counts: without the selection bias (DeepSeek-V3, 2024, Eq. 18)."""
    return stats.asked_BE if stats.unbiased_BE is None else stats.unbiased_BE


def _divide(total: jax.Array, count: jax.Array) -> jax.Array:
    return total / jnp.maximum(count, 1)


def balance_loss(stats: RouterStats) -> jax.Array:
    """The load-balancing loss, E * sum_e f_e P_e (Fedus et al. 2021, Eq. 4-6).

    f_e is the share of all *choices* that asked for expert e, before capacity, and P_e the mean
    router probability: 1 at perfect balance for every K. Gradients pass through P alone. (GShard's,
    Lepikhin et al. 2020, Algorithm 1, counts first choices alone; ours counts all.)
    """
    counted_E = _count_choices(stats)
    share_E = jax.lax.stop_gradient(_divide(counted_E, counted_E.sum(-1, keepdims=True)))
    mean_E = _divide(stats.probability_BE, stats.tokens_B[..., None])
    return share_E.shape[-1] * (share_E * mean_E).sum(-1)


def pooled_balance_loss(stats: RouterStats) -> jax.Array:
    """The loss of Hugging Face's models, from sums with a leading L: one number, K at balance.

    Layers are pooled before f and P are multiplied, and f counts a token's K choices apart: a
    coefficient of a released model means the same here. Layers that fail in opposite ways cancel.
    """
    pooled = jax.tree.map(lambda x: x.sum(0), stats)
    load_E = jax.lax.stop_gradient(_divide(_count_choices(pooled), pooled.tokens_B[..., None]))
    mean_E = _divide(pooled.probability_BE, pooled.tokens_B[..., None])
    return load_E.shape[-1] * (load_E * mean_E).sum(-1, keepdims=True)


def z_loss(stats: RouterStats) -> jax.Array:
    """The router z-loss: mean squared log-sum-exp (Zoph et al. 2022, Eq. 5)."""
    return _divide(stats.log_z_squared_B, stats.tokens_B)


def importance_loss(stats: RouterStats) -> jax.Array:
    """Squared coefficient of variation of the experts' weights (Shazeer et al. 2017, Eq. 6-7)."""
    return _cv_squared(stats.weight_BE)


def load_loss(stats: RouterStats) -> jax.Array:
    """Squared coefficient of variation of the smooth loads (Shazeer et al. 2017, Eq. 10-11)."""
    if stats.smooth_load_BE is None:  # no noise: the loads have no gradient
        return _cv_squared(stats.asked_BE)
    return _cv_squared(stats.smooth_load_BE)


def _cv_squared(x_E: jax.Array) -> jax.Array:
    """Variance over squared mean, along the experts."""
    mean = x_E.mean(-1)
    return jnp.square(x_E - mean[..., None]).mean(-1) / jnp.maximum(jnp.square(mean), 1e-10)


def device_loss(stats: RouterStats, expert_groups: int) -> jax.Array:
    """DeepSeek-V2's device-level balance (2024, Eq. 26-28): the balance of groups of experts.

    1 at balance, as theirs: sum over groups of the mean f of its experts times the sum of their P.
    """
    E = stats.asked_BE.shape[-1]
    share_E = _divide(stats.asked_BE, stats.asked_BE.sum(-1, keepdims=True))
    f_E = jax.lax.stop_gradient(E * share_E)
    p_E = _divide(stats.probability_BE, stats.tokens_B[..., None])
    f_QE, p_QE = (x.reshape(*x.shape[:-1], expert_groups, -1) for x in (f_E, p_E))
    return (f_QE.mean(-1) * p_QE.sum(-1)).sum(-1)


def communication_loss(stats: RouterStats, kept_expert_groups: int) -> jax.Array:
    """DeepSeek-V2's communication balance (2024, Eq. 29-31): how many tokens each group receives.

    1 if every token goes to ``kept_expert_groups`` groups, evenly.
    """
    assert stats.sent_BQ is not None  # the layer counts it where experts have groups
    sent_Q = jax.lax.stop_gradient(stats.sent_BQ)
    Q = sent_Q.shape[-1]
    f_Q = _divide(Q * sent_Q, kept_expert_groups * stats.tokens_B[..., None])
    p_E = _divide(stats.probability_BE, stats.tokens_B[..., None])
    return (f_Q * p_E.reshape(*p_E.shape[:-1], Q, -1).sum(-1)).sum(-1)


# Metrics.


def max_violation(asked_LE: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Per layer, the largest load over the mean, less 1 (Wang et al. 2024, Eq. 4); 0 is even."""
    mean_L = asked_LE.mean(-1)
    return asked_LE.max(-1) / (mean_L + (mean_L == 0)) - (mean_L > 0)


def dead_experts(asked_LE: np.ndarray) -> int:
    """Experts over all layers that no token asked for; on the host."""
    return int((asked_LE == 0).sum())


def saturation(chosen_LBNE: np.ndarray, earlier_LBNE: np.ndarray) -> np.ndarray:
    """Per layer, the share of all choices that an earlier router made, too; on the host.

    Router saturation (Muennighoff et al. 2024, section 5.1): 1 if routing has not changed since.
    """
    both_L = (chosen_LBNE & earlier_LBNE).sum((1, 2, 3))
    return both_L / np.maximum(chosen_LBNE.sum((1, 2, 3)), 1)


def dropped_fraction(asked_LE: np.ndarray, seated_LE: np.ndarray) -> float:
    """Share of all choices that got no slot; on the host, where counts of long runs fit."""
    return 1 - float(seated_LE.sum()) / max(1.0, float(asked_LE.sum()))
