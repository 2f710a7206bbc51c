"""The types in which a model uses its parameters.

Letters: W: positions that a convolution looks at; X: all heads side by side.
"""

from typing import Any

import jax

from moejax.config.model import ModelConfig
from moejax.moe.quantised import is_quantised
from moejax.runtime import partition

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
