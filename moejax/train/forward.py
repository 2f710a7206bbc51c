"""A model run on a batch: its losses and statistics, added up.

Letters: P: modules that predict further tokens; Q: these and the model itself, which comes first.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.config.moe import MoEConfig
from moejax.models.chunk_loss import PLAIN, Aim
from moejax.models.head_loss import HeadSums, Tokens, sum_losses
from moejax.models.next_tokens import find_real
from moejax.moe import balance
from moejax.moe.balance import Routed
from moejax.runtime import device_mesh
from moejax.runtime.pieces import shift
from moejax.train.objective import losses, scoped_loss
from moejax.train.reports import AheadSums, BatchReport, Sums

Batch = dict[str, jax.Array]


def batch_sums(
    model: nn.Module,
    params: dict,
    bias_LE: jax.Array | None,
    batch: Batch,
    key: jax.Array | None,
    aim: Aim = PLAIN,
    weight_Q: jax.Array | None = None,
) -> tuple[Sums, Routed | None, jax.Array | None]:
    """Run the model on ``batch`` and add up its losses and statistics; and the most probable token
    or class of each position, ``best_BN``, in evaluation and for images.

    With a ``key`` as in training, without one as in evaluation. ``weight_Q`` is what a nat weighs
    in ``Sums.loss`` (see ``objective.weigh_modules``); by default 1.
    """
    config: Any = model.config
    pieces = model.layout.context
    training, rngs = key is not None, {} if key is None else {"router": key}
    run: Any = model.apply
    states, head, routed = run(
        {"params": params}, batch, training, bias_LE, rngs=rngs, method="find_states"
    )
    if weight_Q is None:
        weight_Q = jnp.ones(len(states))
    tokens = list_tokens(states, batch, pieces)
    best = bool(config.material.classes) or not training
    with jax.named_scope("head"):
        found = sum_losses(head, tokens, weight_Q, aim, best)
    moe, scoped, scopes = config.moe, None, None
    if routed is not None and moe.balance.scope != "batch":
        scoped, scopes = scoped_loss(routed.stats, moe, device_mesh.token_devices(), pieces)
    best_BN = found.best_QBN[0] if found.best_QBN else None
    sums = Sums(
        loss=found.loss,
        nats=found.nats_Q[0],
        log_z_squared=found.log_z_squared_Q[0],
        targets=tokens.real_QBN[0].sum(dtype=jnp.float32),
        text_bytes=batch["bytes"].sum(dtype=jnp.float32) if "bytes" in batch else None,
        correct=count_right(best_BN, batch) if config.material.classes else None,
        router=balance.sum_sequences(routed.stats) if routed is not None else None,
        scoped_loss_L=scoped,
        scopes=scopes,
        ahead=sum_ahead(found, tokens, pieces),
    )
    return sums, routed, best_BN


def list_tokens(states: list[jax.Array], batch: Batch, pieces: int = 1) -> Tokens:
    """What the head reads, the model's states and those of the modules that look further ahead, and
    what it should say. The k-th module is held to the target k positions further on, where that is
    in the same document. Sequences lie in so many ``pieces``.
    """
    targets_BN, further = batch["targets"], range(1, len(states))
    return Tokens(
        tuple(states),
        (targets_BN, *(shift(targets_BN, count, pieces) for count in further)),
        list_counted(batch, len(further), pieces),
    )


def list_counted(batch: Batch, modules: int, pieces: int = 1) -> tuple[jax.Array, ...]:
    """Which positions the model and each module are held to the target of, bool [B, N] each: where
    it is real, and in conversations where the assistant has said it (``counted``).
    """
    segments_BN, further = batch["segments"], range(1, modules + 1)
    real_QBN = (segments_BN > 0, *(find_real(segments_BN, count, pieces) for count in further))
    if "counted" not in batch:
        return real_QBN
    counted_BN = batch["counted"] > 0
    return tuple(
        real_BN & (shift(counted_BN, count, pieces) if count else counted_BN)
        for count, real_BN in enumerate(real_QBN)
    )


def count_targets(batch: Batch, modules: int, pieces: int = 1) -> jax.Array:
    """How many tokens the model and each module are held to, float32 [1 + modules]."""
    counted_QBN = list_counted(batch, modules, pieces)
    return jnp.stack([counted_BN.sum(dtype=jnp.float32) for counted_BN in counted_QBN])


def sum_ahead(found: HeadSums, tokens: Tokens, pieces: int = 1) -> AheadSums | None:
    """What the modules predict that look further ahead than the model."""
    real_PBN = tokens.real_QBN[1:]
    if not real_PBN:
        return None
    accepted_P = None
    if found.best_QBN is not None:
        own_BN, *best_PBN = found.best_QBN
        same = [
            (real_BN & (best_BN == shift(own_BN, count, pieces))).sum(dtype=jnp.float32)
            for count, (real_BN, best_BN) in enumerate(zip(real_PBN, best_PBN, strict=True), 1)
        ]
        accepted_P = jnp.stack(same)
    targets_P = jnp.stack([real_BN.sum(dtype=jnp.float32) for real_BN in real_PBN])
    return AheadSums(found.nats_Q[1:], targets_P, accepted_P)


def count_right(best_BN: jax.Array | None, batch: Batch) -> jax.Array:
    """How many targets are the most probable class."""
    found_BN = (best_BN == batch["targets"]) & (batch["segments"] > 0)
    return found_BN.sum(dtype=jnp.float32)


def report_batch(sums: Sums, moe: MoEConfig) -> BatchReport:
    """The losses and the balance of the routed layers over one batch."""
    if sums.router is None:
        return BatchReport(sums, {}, None)
    found = {name: loss_L.mean() for name, loss_L in losses(sums.router, moe).items()}
    if sums.scoped_loss_L is not None and sums.scopes is not None:
        found["scoped_balance_loss"] = sums.scoped_loss_L.mean() / jnp.maximum(sums.scopes, 1)
    return BatchReport(sums, found, balance.max_violation(sums.router.asked_BE).mean())
