"""The model of a config, and the batches that it wants."""

import jax
import jax.numpy as jnp

from moejax.config.config import Config
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.classifier import ImageClassifier
from moejax.models.decoder import DecoderLM

MODELS = {"decoder": DecoderLM, "vit": ImageClassifier, "mlp": ImageClassifier}
"""By ``ModelConfig.kind``."""


def build(
    config: ModelConfig, vocab_size: int, layout: MeshConfig | None = None
) -> DecoderLM | ImageClassifier:
    """The model of a config, on one device or laid out on the mesh in use."""
    return MODELS[config.kind](config, vocab_size, layout or MeshConfig())


def batch_shapes(config: Config, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of the arrays of a batch of so many sequences, or images."""
    whole = jax.ShapeDtypeStruct((rows, config.data.sequence_length), jnp.int32)
    if not config.model.sees_images:
        names = ("inputs", "targets", "segments", "positions", "bytes")
        return dict.fromkeys(names, whole)
    one, image = jax.ShapeDtypeStruct((rows, 1), jnp.int32), config.model.image
    shape = (rows, image.size, image.size, image.channels)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return {"images": images, "targets": one, "segments": one}
