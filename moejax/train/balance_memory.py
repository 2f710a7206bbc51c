"""What balancing keeps from step to step: the selection bias, and what its rules remember.

Letters: M: bins of a histogram.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from moejax.config.balance import BalanceConfig
from moejax.config.moe import MoEConfig
from moejax.moe import router_losses, selection_bias
from moejax.moe.selection_bias import Gains
from moejax.train.reports import Sums


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BalanceMemory:
    """What some rules of balancing remember, beside the selection bias; float32."""

    sum_LE: jax.Array | None = None
    """Of a bias under PID control: the sum of what the experts lacked, times the rate."""
    last_LE: jax.Array | None = None
    """What they lacked in the last step."""
    sparsity_weight: jax.Array | None = None
    """The coefficient of the sparsity loss, where it moves."""


NOTHING = BalanceMemory()


def begin_memory(bias_LE: jax.Array | None, balance: BalanceConfig) -> BalanceMemory:
    """What there is to remember before the first step; ``NOTHING`` for most ways to balance."""
    memory = NOTHING
    if balance.bias_update == "pid" and bias_LE is not None:
        memory = BalanceMemory(sum_LE=jnp.copy(bias_LE), last_LE=jnp.zeros_like(bias_LE))
    if balance.moves_sparsity:
        weight = jnp.float32(balance.sparsity_loss_weight)
        memory = replace(memory, sparsity_weight=weight)
    return memory


def move_balance(
    bias_LE: jax.Array | None, memory: BalanceMemory, sums: Sums, moe: MoEConfig
) -> tuple[jax.Array | None, BalanceMemory]:
    """The selection bias and the memory after a step, from the counts of the whole batch."""
    if sums.router is None:
        return bias_LE, memory
    if memory.sparsity_weight is not None:
        wanted = moe.balance.experts_per_token or moe.top_k
        moved = router_losses.move_sparsity_weight(
            memory.sparsity_weight, sums.router, wanted, moe.balance.sparsity_factor
        )
        memory = replace(memory, sparsity_weight=moved)
    if bias_LE is None or moe.balance.bias_update == "none":
        return bias_LE, memory
    settings, margin_LEM = moe.balance, sums.router.margin_1EM
    if settings.bias_update == "quantile":
        assert margin_LEM is not None
        return selection_bias.quantile(bias_LE, margin_LEM, moe.top_k), memory
    if settings.bias_update == "threshold":
        assert margin_LEM is not None
        wanted = settings.experts_per_token or moe.top_k
        rate = settings.bias_rate
        return selection_bias.threshold(bias_LE, margin_LEM, wanted, rate), memory
    bias_LE, memory = _move_by_lack(bias_LE, memory, sums.router.asked_BE, moe)
    return selection_bias.centre(bias_LE) if settings.bias_centred else bias_LE, memory


def _move_by_lack(
    bias_LE: jax.Array, memory: BalanceMemory, asked_LE: jax.Array, moe: MoEConfig
) -> tuple[jax.Array, BalanceMemory]:
    settings, rate = moe.balance, moe.balance.bias_rate
    share_E, target = None, settings.experts_per_token
    others = moe.num_choices - moe.num_experts
    if target is not None and others:
        share_E = selection_bias.target_shares(moe.num_experts, others, moe.top_k, target)
    if settings.bias_update != "pid":
        return selection_bias.step(bias_LE, asked_LE, settings.bias_update, rate, share_E), memory
    assert memory.sum_LE is not None and memory.last_LE is not None
    gains = Gains(
        rate=rate,
        proportional=settings.pid_proportional,
        difference=settings.pid_difference,
        limit=settings.pid_limit,
    )
    lack_LE = selection_bias.relative_lack(asked_LE, share_E)
    bias_LE, sum_LE = selection_bias.control(memory.sum_LE, memory.last_LE, lack_LE, gains)
    return bias_LE, replace(memory, sum_LE=sum_LE, last_LE=lack_LE)
