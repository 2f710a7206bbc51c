"""One optimizer step and one evaluation step: pure functions of state and batch."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from moejax.config.config import Config
from moejax.config.moe import MoEConfig
from moejax.models.batch_shapes import batch_shapes
from moejax.moe import balance, selection_bias
from moejax.moe.balance import Routed
from moejax.runtime import device_mesh
from moejax.train.objective import Sums, losses, objective, scoped_loss

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
    bias_LE: jax.Array | None
    """Selection bias of each routed layer (float32), or None for a model that has none."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchReport:
    """What one batch says about itself: its sums, and what does not add up over batches."""

    sums: Sums
    losses: dict[str, jax.Array]
    """Auxiliary losses without their weights, mean over routed layers."""
    max_violation: jax.Array | None
    """Mean over routed layers."""


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


def init_params(model: nn.Module, config: Config) -> dict:
    """Parameters before the first step, drawn from ``config.run.seed``."""
    # Of the smallest batch that can be spread over the mesh.
    rows = config.sequences_per_group * config.mesh.chunks * device_mesh.token_devices()
    shapes = batch_shapes(config, rows)
    batch = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)
    return model.init(jax.random.key(config.run.seed), batch, True)["params"]


def state_of(
    params: dict,
    bias_LE: jax.Array | None,
    optimizer: optax.GradientTransformation,
    config: Config,
) -> TrainState:
    """The state before the first step, of given parameters; without a bias, it begins at 0."""
    zero = jnp.zeros((), jnp.int32)
    routed, moe = sum(config.model.routed_layers), config.model.moe
    if not (routed and moe.has_selection_bias):
        bias_LE = None
    elif bias_LE is None:
        bias_LE = jnp.zeros((routed, moe.num_choices), jnp.float32)
    return TrainState(params, optimizer.init(params), zero, zero, zero, bias_LE)


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, config: Config
) -> TrainState:
    """The state before the first step, from ``config.run.seed``."""
    return state_of(init_params(model, config), None, optimizer, config)


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
    training, rngs = key is not None, {} if key is None else {"router": key}
    logits_BNV, routed = model.apply({"params": params}, batch, training, bias_LE, rngs=rngs)
    nats_BN = cross_entropy(logits_BNV, batch["targets"], label_smoothing)
    real_BN = batch["segments"] > 0
    moe, scoped, scopes = model.config.moe, None, None
    if routed is not None and moe.balance.scope != "batch":
        scoped, scopes = scoped_loss(routed.stats, moe, device_mesh.token_devices())
    sums = Sums(
        nats=jnp.where(real_BN, nats_BN, 0).sum(),
        targets=real_BN.sum(dtype=jnp.float32),
        text_bytes=batch["bytes"].sum(dtype=jnp.float32) if "bytes" in batch else None,
        correct=right(logits_BNV, batch) if model.config.sees_images else None,
        router=balance.sum_sequences(routed.stats) if routed is not None else None,
        scoped_loss_L=scoped,
        scopes=scopes,
    )
    return sums, routed, logits_BNV


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


def right(logits_BNV: jax.Array, batch: Batch) -> jax.Array:
    """How many targets are the most probable class."""
    found_BN = (logits_BNV.argmax(-1) == batch["targets"]) & (batch["segments"] > 0)
    return found_BN.sum(dtype=jnp.float32)


def micro_batches(batch: Batch, config: Config) -> Batch:
    """Cut [B, ...] arrays into [accumulate, B / accumulate, ...].

    Each part takes rows from all over the batch, so that every device keeps its share, and takes
    routing groups whole, so that the same choices are dropped as in one large batch.
    """
    parts = config.optim.accumulate
    group = config.sequences_per_group

    def cut(x: jax.Array) -> jax.Array:
        groups = x.reshape(-1, parts, group, *x.shape[1:])
        return groups.swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])

    return jax.tree.map(cut, batch)


def gradients(
    model: nn.Module,
    params: dict,
    bias_LE: jax.Array | None,
    batch: Batch,
    key: jax.Array,
    config: Config,
) -> tuple[dict, Sums]:
    """The gradient of the batch's objective and its sums, in ``optim.accumulate`` parts.

    The auxiliary losses need the sums of the *whole* batch, which a first forward pass over the
    parts adds up (its price: a third more arithmetic). Each part draws its own random numbers.
    """

    def run(params: dict, part: Batch, key: jax.Array) -> Sums:
        return batch_sums(model, params, bias_LE, part, key, config.optim.label_smoothing)[0]

    def loss(
        params: dict, part: Batch, key: jax.Array, whole: Sums | None
    ) -> tuple[jax.Array, Sums]:
        sums = run(params, part, key)
        return objective(sums, sums if whole is None else whole, config.model.moe), sums

    if config.optim.accumulate == 1:
        return jax.grad(loss, has_aux=True)(params, batch, key, None)

    parts = (micro_batches(batch, config), jax.random.split(key, config.optim.accumulate))

    def add(one: object, other: object) -> object:
        return jax.tree.map(jnp.add, one, other)

    def total(function: Callable[[Batch, jax.Array], object]) -> object:
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(function, *first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(lambda sums, p: (add(sums, function(*p)), None), zeros, parts)[0]

    whole = total(functools.partial(run, params))
    return total(
        lambda part, key: jax.grad(loss, has_aux=True)(params, part, key, whole),
    )


def updated_bias(bias_LE: jax.Array | None, sums: Sums, moe: MoEConfig) -> jax.Array | None:
    """The selection bias after a step, from the counts of the whole batch."""
    settings = moe.balance
    if bias_LE is None or settings.bias_update == "none":
        return bias_LE
    if settings.bias_update == "quantile":
        return selection_bias.quantile(bias_LE, sums.router.margin_1EM, moe.top_k)
    bias_LE = selection_bias.step(
        bias_LE, sums.router.asked_BE, settings.bias_update, settings.bias_rate
    )
    return selection_bias.centred(bias_LE) if settings.bias_centred else bias_LE


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
    key = jax.random.fold_in(jax.random.key(config.run.seed), state.step)
    grads, sums = gradients(model, state.params, state.bias_LE, batch, key, config)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums.nats)
    rate = shape(state.step)

    def apply(
        params: dict, optimizer_state: optax.OptState, bias_LE: jax.Array | None
    ) -> tuple[dict, optax.OptState, jax.Array | None]:
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        return params, optimizer_state, updated_bias(bias_LE, sums, config.model.moe)

    changing = (state.params, state.optimizer, state.bias_LE)
    params, optimizer_state, bias_LE = jax.lax.cond(
        finite, apply, lambda *unchanged: unchanged, *changing
    )
    missed = 1 - finite.astype(jnp.int32)
    state = replace(
        state,
        params=params,
        optimizer=optimizer_state,
        step=state.step + 1,
        skipped=state.skipped + missed,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * missed,
        bias_LE=bias_LE,
    )
    return state, StepReport(
        batch=report_batch(sums, config.model.moe),
        gradient_norm=norm,
        learning_rate=rate * config.optim.learning_rate,
        skipped=state.skipped,
        skipped_in_a_row=state.skipped_in_a_row,
    )


def report_batch(sums: Sums, moe: MoEConfig) -> BatchReport:
    """The losses and the balance of the routed layers over one batch."""
    if sums.router is None:
        return BatchReport(sums, {}, None)
    found = {name: loss_L.mean() for name, loss_L in losses(sums.router, moe).items()}
    if sums.scoped_loss_L is not None:
        found["scoped_balance_loss"] = sums.scoped_loss_L.mean() / jnp.maximum(sums.scopes, 1)
    return BatchReport(sums, found, balance.max_violation(sums.router.asked_BE).mean())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassCounts:
    """How a batch of images was sorted."""

    confusion_VV: jax.Array
    """Images by their class, and by what they were taken for."""
    asked_LEV: jax.Array | None
    """Choices of each expert by the image's class; None for a dense model."""


def class_counts(logits_B1V: jax.Array, batch: Batch, routed: Routed | None) -> ClassCounts:
    """Count real images by class."""
    real_B = (batch["segments"][:, 0] > 0).astype(jnp.float32)
    class_BV = jax.nn.one_hot(batch["targets"][:, 0], logits_B1V.shape[-1]) * real_B[:, None]
    found_BV = jax.nn.one_hot(logits_B1V[:, 0].argmax(-1), logits_B1V.shape[-1])
    if routed is None:
        return ClassCounts(class_BV.T @ found_BV, None)
    asked_LBE = routed.chosen_LBNE.sum(2, dtype=jnp.float32)
    return ClassCounts(class_BV.T @ found_BV, jnp.einsum("LBE,BV->LEV", asked_LBE, class_BV))


def eval_step(
    params: dict, bias_LE: jax.Array | None, batch: Batch, *, model: nn.Module
) -> tuple[BatchReport, jax.Array | None, ClassCounts | None]:
    """One validation batch, under the evaluation capacity; who chose whom, ``chosen_LBNE``; and
    counts by class, if it is of images.
    """
    sums, routed, logits_BNV = batch_sums(model, params, bias_LE, batch, None)
    chosen_LBNE = None if routed is None else routed.chosen_LBNE
    counts = class_counts(logits_BNV, batch, routed) if model.config.sees_images else None
    return report_batch(sums, model.config.moe), chosen_LBNE, counts
