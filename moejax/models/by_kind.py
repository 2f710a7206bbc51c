"""The model of a config, and the shapes of its parameters.

Letters: W: positions that a convolution looks at; X: all heads side by side.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moejax.config.config import Config
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.classifier import ImageClassifier
from moejax.models.decoder import DecoderLM
from moejax.models.initial_params import init_params, selection_bias_shape
from moejax.moe.quantised import is_quantised
from moejax.runtime import partition

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


EXACT = (
    *("w_router_DE", "sink_H", "log_rate_H", "step_bias_H"),
    *("mix_query_WX", "mix_key_WX", "mix_value_WX"),
)
"""Parameters that a model computes with in float32, of those that lie spread over a mesh."""


def read_frozen(params: dict, config: ModelConfig) -> dict:
    """Parameters as they lie beside adapters: in the types of ``cast_shapes``, or quantised if they
    came so.
    """
    like = cast_shapes(params, config)

    def cast(leaf: Any, shape: jax.ShapeDtypeStruct) -> Any:
        return leaf if is_quantised(leaf) else leaf.astype(shape.dtype)

    return jax.tree.map(cast, params, like, is_leaf=is_quantised)


def cast_shapes(params: dict, config: ModelConfig) -> dict:
    """Shapes of parameters in the types in which a model uses them. Matrices and their biases have
    the type of the activations: the model would cast them at every step. What belongs to routers,
    norms, softmaxes and memories is float32.
    """

    def cast(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = path[-1].key
        casts = name in partition.PARAMETERS and name not in EXACT
        return jax.ShapeDtypeStruct(leaf.shape, config.dtype if casts else leaf.dtype)

    return jax.tree_util.tree_map_with_path(cast, params, is_leaf=is_quantised)
