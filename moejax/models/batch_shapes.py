"""The batches that a model wants."""

import jax
import jax.numpy as jnp

from moejax.config.config import Config


def batch_shapes(config: Config, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of the arrays of a batch of so many sequences (``runtime.pieces`` has how
    they lie on a mesh), or images.
    """
    pieces = config.mesh.context
    piece = (pieces * rows, config.data.sequence_length // pieces)
    whole = jax.ShapeDtypeStruct(piece, jnp.int32)
    if config.model.material.language:
        names = ["inputs", "targets", "segments", "positions", "bytes"]
        names += ["counted"] * config.data.learns_parts
        return dict.fromkeys(names, whole)
    one, image = jax.ShapeDtypeStruct((rows, 1), jnp.int32), config.model.image
    shape = (rows, image.size, image.size, image.channels)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return {"images": images, "targets": one, "segments": one}
