"""The model of a config."""

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.classifier import ImageClassifier
from moejax.models.decoder import DecoderLM

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
