"""One optimizer step: a pure function of state and batch.

Letters: J: sources of a mixture; M: positions that are looked at.
"""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from moejax.config.config import Config
from moejax.data.mixed_rows import SOURCES
from moejax.train.balance_memory import BalanceMemory, move_balance
from moejax.train.forward import Batch, report_batch
from moejax.train.gradients import gradients
from moejax.train.offload import fetch_moments, put_moments
from moejax.train.reports import StepReport
from moejax.train.state import RememberingState, TrainState


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    shape: optax.Schedule,
    config: Config,
) -> tuple[TrainState, StepReport]:
    """One update. ``shape`` is the schedule in [0, 1]; an update that is not finite is skipped.

    A batch may have ``signals_B``: the signal to stop that the process of each row has had, or 0.
    The report tells the largest, so that all processes hear of it. Of a mixture it has
    ``sources_B``, of which the report counts the rows.
    """
    signals_B, sources_B = batch.get("signals_B"), batch.get(SOURCES)
    batch = {name: x for name, x in batch.items() if name not in ("signals_B", SOURCES)}
    key = jax.random.fold_in(jax.random.key(config.run.seed), state.step)
    memory = state.remembered
    grads, sums = gradients(
        *(model, state.params, state.bias_LE, batch, key, config, state.step),
        sparsity_weight=memory.sparsity_weight,
    )
    with jax.named_scope("gradient_norm"):
        norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums.nats)
    rate, held = shape(state.step), state.optimizer
    if config.optim.offload:
        grads, held = fetch_moments(grads, held)

    @jax.named_scope("optimizer")
    def apply(
        params: dict,
        optimizer_state: optax.OptState,
        bias_LE: jax.Array | None,
        memory: BalanceMemory,
    ) -> tuple[dict, optax.OptState, jax.Array | None, BalanceMemory]:
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        if config.run.lora.trains_routers:
            bias_LE, memory = move_balance(bias_LE, memory, sums, config.model.moe)
        return params, optimizer_state, bias_LE, memory

    changing = (state.params, held, state.bias_LE, memory)
    params, optimizer_state, bias_LE, moved = jax.lax.cond(
        finite, apply, lambda *unchanged: unchanged, *changing
    )
    if config.optim.offload:
        optimizer_state = put_moments(optimizer_state, jax.memory.Space.Host)
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
    if isinstance(state, RememberingState):
        state = replace(state, memory=moved)
    return state, StepReport(
        batch=report_batch(sums, config.model.moe),
        gradient_norm=norm,
        learning_rate=rate * config.optim.learning_rate,
        skipped=state.skipped,
        skipped_in_a_row=state.skipped_in_a_row,
        signal=None if signals_B is None else signals_B.max(),
        rows_J=None if sources_B is None else count_sources(sources_B, config),
        sparsity_weight=memory.sparsity_weight,
    )


def count_sources(sources_B: jax.Array, config: Config) -> jax.Array:
    """The rows of each source. Where sequences lie in pieces, each piece says whose it is."""
    of_each = sources_B[:, None] == jnp.arange(len(config.data.sources))
    return of_each.sum(0, dtype=jnp.int32) // config.mesh.context
