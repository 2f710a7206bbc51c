"""Float32 parameters that lie spread over devices and are brought together once a step: ZeRO-1
(Rajbhandari et al. 2020).
"""

from typing import Any

import jax
import jax.numpy as jnp

from moejax.config.config import Config
from moejax.models.used_types import cast_shapes
from moejax.runtime import device_mesh, partition

IN_PLACE = "embedding_VD"
"""What is read where it lies: so the gradient of rows that occur often adds up in float32."""


def _spreads(config: Config) -> bool:
    return config.mesh.zero1 and device_mesh.devices() > 1


def gather_masters(params: dict, config: Config) -> dict:
    """The parameters as a step computes with them. With ``mesh.zero1`` every device gets all that
    it multiplies with, in the type of products; what travels has that type, too. Else they are as
    they are: with FSDP, each layer brings its own together.
    """
    if not _spreads(config):
        return params

    def gather(path: tuple, p: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == IN_PLACE:
            return p
        return partition.constrain(p.astype(like.dtype), partition.leaf_spec(path, p, False))

    like = cast_shapes(params, config.model)
    return jax.tree_util.tree_map_with_path(gather, params, like)


def scatter_gradients(grads: dict, config: Config) -> dict:
    """The gradients of what ``gather_masters`` gave: added up over devices in the type that they
    have, each device with its own part, in float32.
    """
    if not _spreads(config):
        return grads

    def scatter(path: tuple, d: Any) -> jax.Array:
        return partition.constrain(d, partition.leaf_spec(path, d, True)).astype(jnp.float32)

    return jax.tree_util.tree_map_with_path(scatter, grads)
