"""The model of a config, and the shapes of its parameters."""

from functools import partial

import jax
import jax.numpy as jnp

from moejax.config.config import Config
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.classifier import ImageClassifier
from moejax.models.decoder import DecoderLM
from moejax.models.initial_params import init_params, selection_bias_shape

MODELS: dict[str, type[DecoderLM] | type[ImageClassifier]] = {
    "decoder": DecoderLM,
    "vit": ImageClassifier,
    "mlp": ImageClassifier,
}
"""By ``ModelConfig.kind``."""


def build(
    config: ModelConfig, vocab_size: int, layout: MeshConfig | None = None
) -> DecoderLM | ImageClassifier:
    """The model of a config, on one device or laid out on the mesh in use."""
    return MODELS[config.kind](config, vocab_size, layout or MeshConfig())


def state_shapes(config: Config, vocab_size: int) -> dict:
    """Shapes of the parts of a train state that a trained model needs."""
    model = build(config.model, vocab_size)
    parts = {"params": jax.eval_shape(partial(init_params, model, config))}
    if (shape := selection_bias_shape(config.model)) is not None:
        parts["bias_LE"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return parts
