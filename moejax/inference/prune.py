"""A model with some of its experts, and the router's columns for these alone.

Letters: Q: groups of experts; R: repeats of a block; Y: experts that are kept; Z: experts without
computation.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.models.layer_runs import get_stack, set_stack, stack_layers
from moejax.moe.experts import take_bank

COLUMNS = ("w_router_DE", "b_router_E", "w_noise_DE")
"""What has a number for all that a router chooses among, in its last dimension."""


def count_kept(config: ModelConfig, keep: float) -> int:
    """How many experts of each routed layer the share ``keep`` is. Raises ``ConfigError`` that says
    why they are too few, or cannot be pruned.
    """
    moe, groups = config.moe, config.moe.expert_groups or 1
    check(any(config.routed_layers), "a dense model has no experts to prune.")
    rule = moe.built_router.token_rule
    check(
        rule is not None and moe.built_router.learned,
        f"--model.moe.router {moe.router}: experts can be pruned where tokens choose them by"
        f" learned scores.",
    )
    assert rule is not None
    check(0 < keep < 1, f"--keep must be between 0 and 1, such as 0.5, not {keep}.")
    E, K, kept = moe.num_experts, moe.top_k, round(keep * moe.num_experts)
    leaves = f"--keep {keep} leaves {kept} of the {E} experts of a layer"
    check(kept < E, f"{leaves}: give a smaller share.")
    check(kept >= K, f"{leaves}, but a token chooses {K}: keep at least {K / E:.3g}.")
    least = 2 if rule.group_score == "best_two" and groups > 1 else 1
    within = kept // groups * (moe.kept_expert_groups or groups)
    check(
        kept % groups == 0,
        f"{leaves}, which cannot be shared equally by the model's {groups} groups of experts: keep"
        f" a multiple of {groups / E:.3g}.",
    )
    check(
        kept >= least * groups and within >= K,
        f"{leaves}, too few in each of the model's {groups} groups of experts, of which a token"
        f" chooses {K} in {moe.kept_expert_groups or groups}: keep more.",
    )
    return kept


def choose_kept(score_LE: np.ndarray, kept: int, groups: int = 1) -> np.ndarray:
    """``expert_LY``: in each layer the experts of the highest scores, as many of each group of
    consecutive ones; the first of equal ones, in their order.
    """
    L, E = score_LE.shape
    score_LQE = score_LE.reshape(L, groups, -1)
    best_LQY = np.argsort(-score_LQE, axis=-1, kind="stable")[..., : kept // groups]
    first_Q1 = np.arange(0, E, E // groups)[:, None]
    return np.sort((best_LQY + first_Q1).reshape(L, -1))


def prune_config(config: ModelConfig, kept: int) -> ModelConfig:
    """The settings with so many experts in each routed layer."""
    moe = replace(config.moe, num_experts=kept)
    return replace(config, moe=moe, dense_hidden_size=config.dense_hidden)


def prune(
    config: ModelConfig, params: dict, bias_LE: jax.Array | None, expert_LY: np.ndarray
) -> tuple[ModelConfig, dict, jax.Array | None]:
    """A decoder without modules that predict further tokens, its parameters and its selection bias
    with the experts ``expert_LY`` alone. Those without computation are all kept.
    """
    E, C = config.moe.num_experts, config.moe.num_choices
    rest_LZ = np.broadcast_to(np.arange(E, C), (len(expert_LY), C - E))
    column_LC = np.concatenate([expert_LY, rest_LZ], axis=1)
    for stack in stack_layers(config):
        if stack.routed is not None:
            block, own = get_stack(params, stack), list(stack.routed)
            moe = dict(block["moe"])
            repeat_R1 = np.arange(len(own))[:, None]
            for name, bank in take_bank(moe).items():
                moe[name] = bank[repeat_R1, expert_LY[own]]
            for name in [name for name in COLUMNS if name in moe]:
                moe[name] = _take_last(moe[name], column_LC[own])
            params = set_stack(params, stack, block | {"moe": moe})
    bias_LE = None if bias_LE is None else _take_last(bias_LE, column_LC)
    return prune_config(config, expert_LY.shape[1]), params, bias_LE


def _take_last(array: jax.Array, column_RC: np.ndarray) -> jax.Array:
    """Columns of the last dimension, others for each of the first."""
    shape = (len(column_RC), *[1] * (array.ndim - 2), column_RC.shape[1])
    return jnp.take_along_axis(array, column_RC.reshape(shape), axis=-1)
