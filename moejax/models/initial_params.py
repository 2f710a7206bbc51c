"""The parameters of a model before the first step, and the shape of its selection bias."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.config.config import Config
from moejax.config.model import ModelConfig
from moejax.models.batch_shapes import batch_shapes
from moejax.runtime import device_mesh


def init_params(model: nn.Module, config: Config) -> dict:
    """Parameters drawn from ``config.run.seed``."""
    # Of the smallest batch that can be spread over the mesh.
    rows = config.sequences_per_group * config.mesh.chunks * device_mesh.token_devices()
    shapes = batch_shapes(config, rows)
    batch = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)
    return model.init(jax.random.key(config.run.seed), batch, True)["params"]


def selection_bias_shape(config: ModelConfig) -> tuple[int, int] | None:
    """The shape of ``bias_LE``; None for a model without a selection bias."""
    routed = sum(config.routed_blocks)
    if not (routed and config.moe.has_selection_bias):
        return None
    return routed, config.moe.num_choices
