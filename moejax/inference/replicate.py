"""A decoder for inference with replicas of its experts."""

import jax
import numpy as np

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.models.layer_runs import get_stack, set_stack, stack_layers
from moejax.moe.experts import bank_shapes
from moejax.moe.parallel.placement import Placement
from moejax.moe.parallel.replicas import list_places

BANK = tuple(bank_shapes("swiglu", 1, 1, 1, bias=True))


def replicate(config: ModelConfig, params: dict, plan: Placement) -> tuple[dict, np.ndarray]:
    """A decoder's parameters with a bank of P places in each routed layer instead of E experts, and
    ``place_LER``, which goes with them into ``DecoderLM``: for inference, on a mesh whose expert
    axis has the plan's devices. Raises ``ConfigError`` if the plan is of another model.
    """
    L, E = sum(config.routed_layers), config.moe.num_experts
    planned = (plan.expert_LP.shape[0], plan.replicas_LE.shape[1])
    check(
        planned == (L, E),
        f"the plan is of {planned[0]} layers of {planned[1]} experts, but the model has {L} routed"
        f" layers of {E}.",
    )
    for stack in stack_layers(config):
        if stack.routed is not None:
            moved = _moved(get_stack(params, stack), plan.expert_LP[list(stack.routed)])
            params = set_stack(params, stack, moved)
    return params, list_places(plan)


def _moved(block: dict, expert_RP: np.ndarray) -> dict:
    """A block of R repeats with its experts in their places."""
    repeat_R1 = np.arange(expert_RP.shape[0])[:, None]
    moe = block["moe"]
    bank: dict[str, jax.Array] = {n: moe[n][repeat_R1, expert_RP] for n in BANK if n in moe}
    return block | {"moe": moe | bank}
