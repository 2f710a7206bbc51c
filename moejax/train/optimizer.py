"""The optimizer: one optax transformation for each kind of parameter, and one schedule for all."""

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from moejax.config.optim import OptimConfig
from moejax.train.moments import store_moments

C0, C1, C2 = 3.4445, -4.7750, 2.0315
"""The polynomial of Newton-Schulz's iteration (Jordan et al. 2024)."""


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate over its peak, by step: warm-up from 0, then the decay of the config.

    ``cosine``: Loshchilov & Hutter 2017. ``wsd``: constant, then linear decay (Hu et al. 2024).
    """
    warmup = round(config.warmup_fraction * steps)
    if config.schedule == "cosine":
        rest = optax.cosine_decay_schedule(1.0, max(1, steps - warmup), alpha=config.final_fraction)
        parts, borders = [rest], []
    else:
        decay = round(config.decay_fraction * steps)
        end = optax.linear_schedule(1.0, config.final_fraction, max(1, decay))
        parts, borders = [optax.constant_schedule(1.0), end], [steps - decay]
    if warmup:
        # The first step already moves: step i of the warm-up has (i + 1) / warmup of the peak.
        rise = optax.linear_schedule(1 / warmup, 1.0, max(1, warmup - 1))
        parts, borders = [rise, *parts], [warmup, *borders]
    return optax.join_schedules(parts, borders)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """The whole update for a learning rate at its peak; the train step multiplies by the schedule.

    Muon (Jordan et al. 2024) orthogonalises the momentum of each matrix; stacked layers and experts
    are separate matrices, so a bank ``w_up_EDF`` is E of them. The rest is AdamW (Loshchilov &
    Hutter 2019). Weight decay reaches matrices only.
    """

    def adamw(rate: float, decay: float) -> optax.GradientTransformation:
        return optax.adamw(rate, config.beta1, config.beta2, weight_decay=decay)

    def name_axes(params: optax.Params) -> optax.Params:
        dimensions = MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
        return jax.tree.map(lambda _: dimensions, params)

    def orthogonalise_all(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        return jax.tree.map(lambda x: orthogonalise(x, config.muon_iterations), updates)

    orthogonal = optax.chain(
        # No steps: the momentum alone; aol, as the others would normalise it first.
        scale_by_muon(ns_steps=0, preconditioning="aol", weight_dimension_numbers=name_axes),
        optax.stateless(orthogonalise_all),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(config.muon_learning_rate),
    )
    groups = {
        "muon": orthogonal,
        "matrix": adamw(config.learning_rate, config.weight_decay),
        "router": adamw(config.router_learning_rate or config.learning_rate, config.weight_decay),
        "rest": adamw(config.learning_rate, 0.0),
    }

    def name_groups(params: optax.Params) -> optax.Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: config.choose_transform(path[-1].key), params
        )

    update = optax.partition(groups, name_groups)
    if config.moments == "bfloat16":
        update = store_moments(update)
    if config.clip_norm is None:
        return update
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def orthogonalise(x: jax.Array, iterations: int) -> jax.Array:
    """The matrices [..., m, n] with singular values near 1, times sqrt(max(1, n / m)).

    Newton-Schulz (Jordan et al. 2024), the first step with the AOL preconditioner (Boissin et al.
    2025). optax's own, which supplies the momentum, lays layers and experts side by side first:
    where experts lie on several devices, all would be gathered for that.

    Of wide or tall matrices only the square of the shorter side is iterated (``find_factor``): in
    exact arithmetic that is the same.
    """
    m, n = x.shape[-2:]
    if m > n:
        x = x.mT
    square = x @ x.mT
    scale = jax.lax.rsqrt(jnp.maximum(jnp.abs(square).sum(-1, keepdims=True), 1e-8))
    square = square * scale * scale.mT
    if iterates_square(m, n, iterations):
        x = (find_factor(square, iterations) * scale.mT) @ x
    else:
        x = x * scale
        for i in range(iterations):
            square = x @ x.mT if i else square
            x = C0 * x + (C1 * square + C2 * square @ square) @ x
    return (x.mT if m > n else x) * max(1, n / m) ** 0.5


def iterates_square(m: int, n: int, iterations: int) -> bool:
    """Whether iterating X X^T is better than iterating X [m, n]: it takes fewer products
    (``muon_flops``), and is as exact.

    X X^T loses the directions of X that are smaller than a few ten-thousandths of the largest one,
    and each iteration makes what is left of them 12 times as large, 3.4 times in X: after three
    that is 3e-6 of the result, after four 5e-5.
    """
    return 2 * max(m, n) > 3 * min(m, n) and iterations <= 3


def find_factor(square: jax.Array, iterations: int) -> jax.Array:
    """Q with Q X the result of the iterations on X, from ``square``, X X^T [..., m, m].

    Each takes X to P X with P = c0 + c1 X X^T + c2 (X X^T)^2, and so X X^T to P X X^T P.
    """
    unit, factor = jnp.eye(square.shape[-1], dtype=square.dtype), None
    for i in range(iterations):
        step = C0 * unit + C1 * square + C2 * square @ square
        factor = step if factor is None else step @ factor
        if i + 1 < iterations:
            square = step @ square @ step
    assert factor is not None  # the config wants an iteration
    return factor
