"""The gradient of a batch, whole or in parts.

Letters: Q: the model itself, and the modules that predict further tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.config.config import Config
from moejax.models.chunk_loss import Aim
from moejax.train.forward import Batch, batch_sums, count_targets
from moejax.train.masters import gather_masters, scatter_gradients
from moejax.train.objective import objective, weigh_ahead_loss, weigh_modules
from moejax.train.reports import Sums


def gradients(
    model: nn.Module,
    params: dict,
    bias_LE: jax.Array | None,
    batch: Batch,
    key: jax.Array,
    config: Config,
    step: jax.Array | int = 0,
    sparsity_weight: jax.Array | None = None,
) -> tuple[dict, Sums]:
    """The gradient of the batch's objective in this ``step`` and its sums, in ``optim.accumulate``
    parts. ``sparsity_weight`` is the coefficient of the sparsity loss, where that moves.

    The auxiliary losses need the sums of the *whole* batch, which a first forward pass over the
    parts adds up (its price: a third more arithmetic). Each part draws its own random numbers.
    """
    optim, params = config.optim, gather_masters(params, config)
    aim = Aim(smoothing=optim.label_smoothing, z_loss_weight=optim.head_z_loss_weight)
    further = weigh_ahead_loss(optim, step, config.run.steps)
    pieces = config.mesh.context
    weight_Q = weigh_modules(count_targets(batch, config.model.next_tokens, pieces), further)

    def add_up(params: dict, part: Batch, key: jax.Array) -> Sums:
        return batch_sums(model, params, bias_LE, part, key, aim, weight_Q)[0]

    def loss(
        params: dict, part: Batch, key: jax.Array, whole: Sums | None
    ) -> tuple[jax.Array, Sums]:
        sums = add_up(params, part, key)
        whole = sums if whole is None else whole
        return objective(sums, whole, config.model.moe, sparsity_weight), sums

    def differentiate(part: Batch, key: jax.Array, whole: Sums | None) -> tuple[dict, Sums]:
        grads, sums = jax.grad(loss, has_aux=True)(params, part, key, whole)
        return scatter_gradients(grads, config), sums

    if optim.accumulate == 1:
        return differentiate(batch, key, None)

    parts = (cut_batch(batch, config), jax.random.split(key, optim.accumulate))

    def add(one: Any, other: Any) -> Any:
        return jax.tree.map(jnp.add, one, other)

    def total(function: Callable[[Batch, jax.Array], Any]) -> Any:
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(function, *first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(lambda sums, p: (add(sums, function(*p)), None), zeros, parts)[0]

    whole = total(partial(add_up, params))
    return total(lambda part, key: differentiate(part, key, whole))


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
