"""What a training step changes."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from moejax.config.config import Config
from moejax.models.adapters import begin_adapters
from moejax.models.initial_params import init_params, selection_bias_shape
from moejax.train.balance_memory import NOTHING, BalanceMemory, begin_memory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step changes; parameters are float32. Of a frozen model with adapters (see
    ``models.adapters``) what is trained.
    """

    params: dict
    optimizer: optax.OptState
    step: jax.Array
    skipped: jax.Array
    """Updates skipped so far because the loss or the gradient was not finite."""
    skipped_in_a_row: jax.Array
    bias_LE: jax.Array | None
    """Selection bias of each routed layer (float32), or None for a model that has none."""

    @property
    def remembered(self) -> BalanceMemory:
        """What balancing remembers beside that."""
        return NOTHING


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RememberingState(TrainState):
    """The same, where balancing remembers more; apart, so that checkpoints of others stay as they
    have always been.
    """

    memory: BalanceMemory

    @property
    def remembered(self) -> BalanceMemory:
        """What balancing remembers beside the selection bias."""
        return self.memory


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, config: Config
) -> TrainState:
    """The state before the first step, from ``config.run.seed``."""
    params, lora = init_params(model, config), config.run.lora
    if lora.rank is not None:
        params = begin_adapters(params, lora, jax.random.key(config.run.seed))
    return start_state(params, None, optimizer, config)


def start_state(
    params: dict,
    bias_LE: jax.Array | None,
    optimizer: optax.GradientTransformation,
    config: Config,
) -> TrainState:
    """The state before the first step, of given parameters; without a bias, it begins at 0. What
    balancing remembers begins anew.
    """
    zero = jnp.zeros((), jnp.int32)
    shape = selection_bias_shape(config.model)
    if shape is None:
        bias_LE = None
    elif bias_LE is None:
        bias_LE = jnp.zeros(shape, jnp.float32)
    state = TrainState(params, optimizer.init(params), zero, zero, zero, bias_LE)
    routed, memory = any(config.model.routed_layers), NOTHING
    if routed:
        memory = begin_memory(bias_LE, config.model.moe.balance)
    return state if memory is NOTHING else RememberingState(**vars(state), memory=memory)
