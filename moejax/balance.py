"""Balance: what a routed layer says about itself, and the losses and metrics made of it.

``RouterStats`` are sums, not means, so that any scope (a group, a batch, all accumulated
micro-batches) follows exactly by adding them up.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RouterStats:
    """Sums over the real tokens of each group (G), padding left out; layers stack to a leading L.

    Load is what routers *asked* for: before capacity. Differentiable: probability and
    log_z_squared.
    """

    tokens_G: jax.Array
    """Tokens that were routed."""
    asked_GE: jax.Array
    """Choices of each expert, before capacity."""
    seated_GE: jax.Array
    """Choices of each expert that got a slot."""
    probability_GE: jax.Array
    """Router probability of each expert."""
    log_z_squared_G: jax.Array
    """Squared log-sum-exp of the logits."""
    entropy_G: jax.Array
    """Entropy of the router's distribution, in nats."""


def router_stats(
    logits_GSE: jax.Array,
    probability_GSE: jax.Array,
    expert_GSK: jax.Array,
    seated_GSK: jax.Array,
    real_GS: jax.Array,
) -> RouterStats:
    """Sum up one layer's routing over the tokens of each group where ``real_GS`` (no padding)."""
    real_GS1 = real_GS[..., None]
    chosen_GSKE = expert_GSK[..., None] == jnp.arange(logits_GSE.shape[-1])
    asked_GSKE = chosen_GSKE & real_GS[..., None, None]
    log_z_GS = jax.nn.logsumexp(logits_GSE, axis=-1)
    # -sum p log p = log Z - sum p * logit; a metric only, so no gradient.
    entropy_GS = jax.lax.stop_gradient(log_z_GS - (probability_GSE * logits_GSE).sum(-1))

    def count(flags: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
        return flags.sum(axes, dtype=jnp.float32)

    return RouterStats(
        tokens_G=count(real_GS, 1),
        asked_GE=count(asked_GSKE, (1, 2)),
        seated_GE=count(asked_GSKE & seated_GSK[..., None], (1, 2)),
        probability_GE=jnp.where(real_GS1, probability_GSE, 0).sum(1),
        log_z_squared_G=jnp.where(real_GS, jnp.square(log_z_GS), 0).sum(1),
        entropy_G=jnp.where(real_GS, entropy_GS, 0).sum(1),
    )


def sum_groups(stats: RouterStats) -> RouterStats:
    """Add up the groups of stats with leading dimensions L, G."""
    return jax.tree.map(lambda sums: sums.sum(1), stats)


def balance_loss(asked_LE: jax.Array, tokens_L: jax.Array, probability_LE: jax.Array) -> jax.Array:
    """The load-balancing loss of each layer, E * sum_e f_e P_e (Fedus et al. 2021, Eq. 4-6).

    f_e is the share of all *choices* that asked for expert e, before capacity, and P_e the mean
    router probability: 1 at perfect balance for every K. Gradients pass through P alone.
    ``asked_LE`` and ``tokens_L`` may be those of a whole batch of which ``probability_LE`` is one
    part: the losses of the parts add up to that of the batch.
    """
    choices_L1 = jnp.maximum(asked_LE.sum(-1, keepdims=True), 1)
    share_LE = jax.lax.stop_gradient(asked_LE / choices_L1)
    mean_LE = probability_LE / jnp.maximum(tokens_L, 1)[:, None]
    return asked_LE.shape[-1] * (share_LE * mean_LE).sum(-1)


def z_loss(log_z_squared_L: jax.Array, tokens_L: jax.Array) -> jax.Array:
    """The router z-loss of each layer: mean squared log-sum-exp (Zoph et al. 2022, Eq. 5)."""
    return log_z_squared_L / jnp.maximum(tokens_L, 1)


def max_violation(asked_LE: jax.Array) -> jax.Array:
    """Per layer, the largest load over the mean, less 1 (Wang et al. 2024, Eq. 4); 0 is even."""
    mean_L = asked_LE.mean(-1)
    return jnp.where(mean_L > 0, asked_LE.max(-1) / jnp.where(mean_L > 0, mean_L, 1) - 1, 0)


def dead_experts(asked_LE: np.ndarray) -> int:
    """Experts over all layers that no token asked for; on the host."""
    return int((asked_LE == 0).sum())


def dropped_fraction(asked_LE: np.ndarray, seated_LE: np.ndarray) -> float:
    """Share of all choices that got no slot; on the host, where counts of long runs fit."""
    return 1 - float(seated_LE.sum()) / max(1.0, float(asked_LE.sum()))
