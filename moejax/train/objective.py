"""The loss: cross-entropy and the auxiliary losses of the routers.

Letters: M: positions that are looked at; P: modules that predict further tokens; Q: these and the
model itself, which comes first.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from moejax.config.balance import OTHER_LOSSES
from moejax.config.moe import MoEConfig
from moejax.config.optim import OptimConfig
from moejax.moe import balance, router_losses
from moejax.moe.balance import RouterStats
from moejax.train.reports import Sums


def losses(router: RouterStats, moe: MoEConfig) -> dict[str, jax.Array]:
    """The auxiliary losses of a whole batch by name, each by layer [L] (pooled ones [1]).

    ``balance_loss`` and ``z_loss`` are always there, as metrics; the others where they have a
    weight, those of ``router_losses`` in training alone.
    """
    settings = moe.balance
    found = {"balance_loss": balance.balance_loss(router), "z_loss": balance.z_loss(router)}
    if settings.convention == "hf":
        found["pooled_balance_loss"] = balance.pooled_balance_loss(router)
    if settings.importance_loss_weight:
        found["importance_loss"] = balance.importance_loss(router)
    if settings.load_loss_weight:
        found["load_loss"] = balance.load_loss(router)
    if settings.device_loss_weight and moe.expert_groups:
        found["device_loss"] = balance.device_loss(router, moe.expert_groups)
    if settings.communication_loss_weight and moe.expert_groups:
        kept = moe.kept_expert_groups or min(moe.top_k, moe.expert_groups)
        found["communication_loss"] = balance.communication_loss(router, kept)
    told = {
        "orthogonality_loss": router.orthogonality_B,
        "coupling_loss": router.coupling_B,
        "entropy_loss": router.entropy_slope_B,
    }
    found |= {n: router_losses.told_by_tokens(router, t) for n, t in told.items() if t is not None}
    if router.score_BE is not None:
        found["sparsity_loss"] = router_losses.sparsity_loss(router, moe.top_k)
    if router.probability_squared_BE is not None:
        found["variance_loss"] = router_losses.variance_loss(router)
    return found


def weights(moe: MoEConfig) -> dict[str, float]:
    """The coefficient of each of ``losses`` (those of a scope smaller than the batch left out)."""
    settings = moe.balance
    found = {name: getattr(settings, f"{name}_weight") for name in OTHER_LOSSES}
    if settings.scope == "batch":
        pooled = settings.convention == "hf"
        found["pooled_balance_loss" if pooled else "balance_loss"] = settings.loss_weight
    return {name: weight for name, weight in found.items() if weight}


def scoped_loss(
    stats: RouterStats, moe: MoEConfig, devices: int, pieces: int = 1
) -> tuple[jax.Array, jax.Array]:
    """The balance losses of all sequences, or of each device's part, added up: [L], and how many.

    ``stats`` have a leading L, B, those of the ``pieces`` of each sequence. Sequence: DeepSeek-V3
    (2024), Eq. 17-20.
    """
    stats = replace(stats, margin_1EM=None)  # which is of all sequences
    if moe.balance.scope == "device":
        stats = jax.tree.map(
            lambda x: x.reshape(x.shape[0], devices, -1, *x.shape[2:]).sum(2), stats
        )
    elif pieces > 1:
        stats = jax.tree.map(lambda x: x.reshape(len(x), pieces, -1, *x.shape[2:]).sum(1), stats)
    there = (stats.tokens_B > 0).any(0)
    loss_LB = jnp.where(there, balance.balance_loss(stats), 0)
    return loss_LB.sum(1), there.sum(dtype=jnp.float32)


def weigh_modules(targets_Q: jax.Array, next_token_weight: jax.Array | float) -> jax.Array:
    """The coefficients of a nat of the model itself and of each module that predicts a further
    token, float32 [1 + P], where a batch has so many targets of each: for the mean over targets,
    and ``next_token_weight`` times the mean over the modules of theirs.

    DeepSeek-V3 (2024), Eq. 24-25. Eq. 24 divides by the length of the sequence, also where a module
    has fewer targets, as at its end; this is the mean over the targets.
    """
    share_Q = 1 / jnp.maximum(targets_Q, 1)
    modules = len(targets_Q) - 1
    return share_Q.at[1:].multiply(next_token_weight / modules) if modules else share_Q


def weigh_ahead_loss(optim: OptimConfig, step: jax.Array | int, steps: int) -> jax.Array | float:
    """What further tokens weigh in this step of so many: DeepSeek-V3's lambda."""
    if optim.next_token_late_weight is None:
        return optim.next_token_weight
    late = step >= round(2 * steps / 3)
    return jnp.where(late, optim.next_token_late_weight, optim.next_token_weight)


def objective(
    sums: Sums, whole: Sums, moe: MoEConfig, sparsity_weight: jax.Array | None = None
) -> jax.Array:
    """The loss that is minimised: ``sums.loss``, which is weighed already, and each routed layer's
    losses; that on sparsity with ``sparsity_weight``, if it is given.

    ``sums`` belong to a part of the batch whose totals are ``whole``. The losses are functions of
    the whole batch's sums; a part enters with its share of their differential at ``whole``, so that
    the *gradients* of the parts add up to that of the batch, whatever the losses. (Their value is
    not right; reported losses come from ``whole``.) Layers are added, as in
    Switch Transformers.
    """
    whole = jax.lax.stop_gradient(whole)
    loss = sums.loss
    if sums.router is None:
        return loss

    coefficients: dict[str, jax.Array | float] = {**weights(moe)}
    if sparsity_weight is not None:
        coefficients["sparsity_loss"] = sparsity_weight

    def auxiliary(router: RouterStats) -> jax.Array:
        found = losses(router, moe)
        return sum((w * found[name].sum() for name, w in coefficients.items()), jnp.zeros(()))

    slopes = jax.grad(auxiliary)(whole.router)
    loss += sum(jax.tree.leaves(jax.tree.map(jnp.vdot, slopes, sums.router)))
    if sums.scoped_loss_L is not None and whole.scopes is not None:
        mean_L = sums.scoped_loss_L / jnp.maximum(whole.scopes, 1)
        loss += moe.balance.loss_weight * mean_L.sum()
    return loss
