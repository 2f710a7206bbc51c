"""One optimizer step and one evaluation step: pure functions of state and batch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from moejax import balance
from moejax.balance import RouterStats
from moejax.config import Config

Batch = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step changes; parameters are float32."""

    params: dict
    optimizer: optax.OptState
    step: jax.Array
    skipped: jax.Array
    """Updates skipped so far because the loss or the gradient was not finite."""
    skipped_in_a_row: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """What a batch adds up to; sums of parts are the sum of the whole."""

    nats: jax.Array
    """Cross-entropy over all targets."""
    targets: jax.Array
    """Target tokens, padding left out."""
    text_bytes: jax.Array
    """Bytes of text that the targets stand for."""
    router: RouterStats | None
    """Router sums of each routed layer (a leading L, no groups)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchReport:
    """What one batch says about itself: its sums, and what does not add up over batches."""

    sums: Sums
    balance_loss_L: jax.Array | None
    z_loss_L: jax.Array | None
    max_violation_L: jax.Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepReport:
    """What one training step says about itself."""

    batch: BatchReport
    gradient_norm: jax.Array
    learning_rate: jax.Array
    """Of AdamW; the other groups' follow it in proportion."""
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, config: Config
) -> TrainState:
    """The state before the first step, from ``config.run.seed``."""
    tokens = jnp.zeros((config.sequences_per_group, config.data.sequence_length), jnp.int32)
    batch = {"inputs": tokens, "segments": tokens, "positions": tokens}
    params = model.init(jax.random.key(config.run.seed), batch, True)["params"]
    zero = jnp.zeros((), jnp.int32)
    return TrainState(params, optimizer.init(params), zero, zero, zero)


def batch_sums(model: nn.Module, params: dict, batch: Batch, training: bool) -> Sums:
    """Run the model on ``batch`` (int32 [B, N] each) and add up its losses and statistics."""
    logits_BNV, stats = model.apply({"params": params}, batch, training)
    nats_BN = optax.softmax_cross_entropy_with_integer_labels(logits_BNV, batch["targets"])
    real_BN = batch["segments"] > 0
    return Sums(
        nats=jnp.where(real_BN, nats_BN, 0).sum(),
        targets=real_BN.sum(dtype=jnp.float32),
        text_bytes=batch["bytes"].sum(dtype=jnp.float32),
        router=balance.sum_groups(stats) if stats is not None else None,
    )


def objective(sums: Sums, whole: Sums, config: Config) -> jax.Array:
    """The loss that is minimised: cross-entropy, plus each routed layer's auxiliary losses.

    ``sums`` belong to a part of the batch whose totals are ``whole``: the objectives of the parts
    add up to that of the batch, auxiliary losses included. Layers are added, as in Switch
    Transformers.
    """
    loss = sums.nats / jnp.maximum(whole.targets, 1)
    if sums.router is None:
        return loss
    router, moe = sums.router, config.model.moe
    tokens_L = whole.router.tokens_G
    balance_L = balance.balance_loss(whole.router.asked_GE, tokens_L, router.probability_GE)
    z_L = balance.z_loss(router.log_z_squared_G, tokens_L)
    return loss + moe.balance_loss_weight * balance_L.sum() + moe.z_loss_weight * z_L.sum()


def micro_batches(batch: Batch, config: Config) -> Batch:
    """Cut [B, N] arrays into [accumulate, B / accumulate, N].

    Each part takes rows from all over the batch, so that every device keeps its share, and takes
    routing groups whole, so that the same choices are dropped as in one large batch.
    """
    parts = config.optim.accumulate
    group = config.sequences_per_group

    def cut(x_BN: jax.Array) -> jax.Array:
        x = x_BN.reshape(-1, parts, group, x_BN.shape[-1])
        return x.swapaxes(0, 1).reshape(parts, -1, x_BN.shape[-1])

    return jax.tree.map(cut, batch)


def gradients(model: nn.Module, params: dict, batch: Batch, config: Config) -> tuple[dict, Sums]:
    """The gradient of the batch's objective and its sums, in ``optim.accumulate`` parts.

    The balance loss multiplies each part's probabilities with the loads of the *whole* batch, which
    a first forward pass over the parts counts (its price: a third more arithmetic).
    """

    def loss(params: dict, part: Batch, whole: Sums | None) -> tuple[jax.Array, Sums]:
        sums = batch_sums(model, params, part, training=True)
        return objective(sums, sums if whole is None else whole, config), sums

    if config.optim.accumulate == 1:
        grads, sums = jax.grad(loss, has_aux=True)(params, batch, None)
        return grads, sums

    parts = micro_batches(batch, config)

    def add(one: object, other: object) -> object:
        return jax.tree.map(jnp.add, one, other)

    def total(function: Callable[[Batch], object]) -> object:
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, first))
        return jax.lax.scan(lambda sums, part: (add(sums, function(part)), None), zeros, parts)[0]

    whole = total(lambda part: batch_sums(model, params, part, training=True))
    return total(lambda part: jax.grad(loss, has_aux=True)(params, part, whole))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    shape: optax.Schedule,
    config: Config,
) -> tuple[TrainState, StepReport]:
    """One update. ``shape`` is the schedule in [0, 1]; an update that is not finite is skipped."""
    grads, sums = gradients(model, state.params, batch, config)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums.nats)
    rate = shape(state.step)

    def apply(params: dict, optimizer_state: optax.OptState) -> tuple[dict, optax.OptState]:
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        return jax.tree.map(lambda p, u: p + rate * u, params, updates), optimizer_state

    params, optimizer_state = jax.lax.cond(
        finite, apply, lambda *unchanged: unchanged, state.params, state.optimizer
    )
    missed = 1 - finite.astype(jnp.int32)
    state = replace(
        state,
        params=params,
        optimizer=optimizer_state,
        step=state.step + 1,
        skipped=state.skipped + missed,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * missed,
    )
    return state, StepReport(
        batch=report_batch(sums),
        gradient_norm=norm,
        learning_rate=rate * config.optim.learning_rate,
        skipped=state.skipped,
        skipped_in_a_row=state.skipped_in_a_row,
    )


def report_batch(sums: Sums) -> BatchReport:
    """The losses and the balance of each routed layer over one batch."""
    if sums.router is None:
        return BatchReport(sums, None, None, None)
    asked_LE, tokens_L = sums.router.asked_GE, sums.router.tokens_G
    return BatchReport(
        sums=sums,
        balance_loss_L=balance.balance_loss(asked_LE, tokens_L, sums.router.probability_GE),
        z_loss_L=balance.z_loss(sums.router.log_z_squared_G, tokens_L),
        max_violation_L=balance.max_violation(asked_LE),
    )


def eval_step(params: dict, batch: Batch, *, model: nn.Module) -> BatchReport:
    """One validation batch, under the evaluation capacity."""
    return report_batch(batch_sums(model, params, batch, training=False))
