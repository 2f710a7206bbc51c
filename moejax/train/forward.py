"""A model run on a batch: its losses and statistics, added up.

Letters: P: modules that predict further tokens.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from moejax.config.moe import MoEConfig
from moejax.models.next_tokens import find_real, shift
from moejax.moe import balance
from moejax.moe.balance import Routed
from moejax.runtime import device_mesh
from moejax.train.objective import losses, scoped_loss
from moejax.train.reports import AheadSums, BatchReport, Sums

Batch = dict[str, jax.Array]


def batch_sums(
    model: nn.Module,
    params: dict,
    bias_LE: jax.Array | None,
    batch: Batch,
    key: jax.Array | None,
    label_smoothing: float = 0.0,
) -> tuple[Sums, Routed | None, jax.Array]:
    """Run the model on ``batch`` and add up its losses and statistics; and the logits.

    With a ``key`` as in training, without one as in evaluation.
    """
    config: Any = model.config
    training, rngs = key is not None, {} if key is None else {"router": key}
    method = "look_ahead" if config.next_tokens else None
    found: Any = model.apply({"params": params}, batch, training, bias_LE, rngs=rngs, method=method)
    (logits_BNV, *further), routed = found if config.next_tokens else ([found[0]], found[1])
    nats_BN = cross_entropy(logits_BNV, batch["targets"], label_smoothing)
    real_BN = batch["segments"] > 0
    moe, scoped, scopes = config.moe, None, None
    if routed is not None and moe.balance.scope != "batch":
        scoped, scopes = scoped_loss(routed.stats, moe, device_mesh.token_devices())
    sums = Sums(
        nats=jnp.where(real_BN, nats_BN, 0).sum(),
        targets=real_BN.sum(dtype=jnp.float32),
        text_bytes=batch["bytes"].sum(dtype=jnp.float32) if "bytes" in batch else None,
        correct=count_right(logits_BNV, batch) if config.material.classes else None,
        router=balance.sum_sequences(routed.stats) if routed is not None else None,
        scoped_loss_L=scoped,
        scopes=scopes,
        ahead=sum_ahead(logits_BNV, further, batch, training, label_smoothing),
    )
    return sums, routed, logits_BNV


def sum_ahead(
    logits_BNV: jax.Array, further: list[jax.Array], batch: Batch, training: bool, smoothing: float
) -> AheadSums | None:
    """Add up what the modules predict that look further ahead than the model, whose logits are the
    first. The k-th is compared with the target k positions further on, where that is in the same
    document.
    """
    if not further:
        return None
    nats, targets, accepted = [], [], []
    own_BN = None if training else logits_BNV.argmax(-1)
    for count, ahead_BNV in enumerate(further, start=1):
        real_BN = find_real(batch["segments"], count)
        nats_BN = cross_entropy(ahead_BNV, shift(batch["targets"], count), smoothing)
        nats.append(jnp.where(real_BN, nats_BN, 0).sum())
        targets.append(real_BN.sum(dtype=jnp.float32))
        if own_BN is not None:
            same_BN = real_BN & (ahead_BNV.argmax(-1) == shift(own_BN, count))
            accepted.append(same_BN.sum(dtype=jnp.float32))
    accepted_P = jnp.stack(accepted) if accepted else None
    return AheadSums(jnp.stack(nats), jnp.stack(targets), accepted_P)


def cross_entropy(
    logits_BNV: jax.Array, targets_BN: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Nats of each target; with ``smoothing``, of a target that is spread over all classes to that
    share (Szegedy et al. 2016, section 7).
    """
    nats_BN = optax.softmax_cross_entropy_with_integer_labels(logits_BNV, targets_BN)
    if not smoothing:
        return nats_BN
    mean_BN = jax.nn.logsumexp(logits_BNV, -1) - logits_BNV.mean(-1)  # of all classes
    return (1 - smoothing) * nats_BN + smoothing * mean_BN


def count_right(logits_BNV: jax.Array, batch: Batch) -> jax.Array:
    """How many targets are the most probable class."""
    found_BN = (logits_BNV.argmax(-1) == batch["targets"]) & (batch["segments"] > 0)
    return found_BN.sum(dtype=jnp.float32)


def report_batch(sums: Sums, moe: MoEConfig) -> BatchReport:
    """The losses and the balance of the routed layers over one batch."""
    if sums.router is None:
        return BatchReport(sums, {}, None)
    found = {name: loss_L.mean() for name, loss_L in losses(sums.router, moe).items()}
    if sums.scoped_loss_L is not None and sums.scopes is not None:
        found["scoped_balance_loss"] = sums.scoped_loss_L.mean() / jnp.maximum(sums.scopes, 1)
    return BatchReport(sums, found, balance.max_violation(sums.router.asked_BE).mean())
