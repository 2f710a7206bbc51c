"""The gradient of a batch, whole or in parts."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.config.config import Config
from moejax.train.forward import Batch, batch_sums
from moejax.train.objective import objective, weigh_ahead_loss
from moejax.train.reports import Sums


def gradients(
    model: nn.Module,
    params: dict,
    bias_LE: jax.Array | None,
    batch: Batch,
    key: jax.Array,
    config: Config,
    step: jax.Array | int = 0,
) -> tuple[dict, Sums]:
    """The gradient of the batch's objective in this ``step`` and its sums, in ``optim.accumulate``
    parts.

    The auxiliary losses need the sums of the *whole* batch, which a first forward pass over the
    parts adds up (its price: a third more arithmetic). Each part draws its own random numbers.
    """
    smoothing = config.optim.label_smoothing
    weight = weigh_ahead_loss(config.optim, step, config.run.steps)

    def loss(
        params: dict, part: Batch, key: jax.Array, whole: Sums | None
    ) -> tuple[jax.Array, Sums]:
        sums, *_ = batch_sums(model, params, bias_LE, part, key, smoothing)
        return objective(sums, sums if whole is None else whole, config.model.moe, weight), sums

    if config.optim.accumulate == 1:
        return jax.grad(loss, has_aux=True)(params, batch, key, None)

    parts = (cut_batch(batch, config), jax.random.split(key, config.optim.accumulate))

    def add(one: Any, other: Any) -> Any:
        return jax.tree.map(jnp.add, one, other)

    def total(function: Callable[[Batch, jax.Array], Any]) -> Any:
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(function, *first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(lambda sums, p: (add(sums, function(*p)), None), zeros, parts)[0]

    whole = total(lambda part, key: batch_sums(model, params, bias_LE, part, key, smoothing)[0])
    return total(
        lambda part, key: jax.grad(loss, has_aux=True)(params, part, key, whole),
    )


def cut_batch(batch: Batch, config: Config) -> Batch:
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
