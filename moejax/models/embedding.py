"""Tokens to vectors: rows of a table that may lie spread over the mesh.

Letters: Y: parts of the vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from moejax.moe.lying import take
from moejax.runtime import device_mesh, partition
from moejax.runtime.partition import TOKENS


def look_up(embedding_VD: Any, token_BN: jax.Array, dtype: jnp.dtype, fsdp: bool) -> jax.Array:
    """The rows of tokens, ``x_BND`` in this type. The gradient of the table adds up in float32.

    The table stays where it lies. With FSDP, every device finds all tokens' numbers in its part of
    the width, and sends each device those of its tokens; if the vocabulary is split, rows that are
    on another device count nothing here, and all parts are added up.
    """
    axis = partition.find_vocabulary_axis(embedding_VD.shape[0])
    devices = device_mesh.token_devices()
    here = axis is None and (not fsdp or devices == 1)
    if here or not isinstance(embedding_VD, jax.Array) or len(token_BN) % devices:
        return partition.pin(take(embedding_VD, token_BN).astype(dtype), "tokens_BND")

    def on_device(w_VD: jax.Array, token_BN: jax.Array) -> jax.Array:
        if fsdp:
            token_BN = lax.all_gather(token_BN, TOKENS, tiled=True)
        if axis is not None:
            token_BN -= lax.axis_index(axis) * len(w_VD)
        there_BN = (token_BN >= 0) & (token_BN < len(w_VD))
        x_BND = jnp.where(there_BN[..., None], w_VD[token_BN].astype(dtype), 0)
        if fsdp:
            x_BND = lax.all_to_all(x_BND, TOKENS, 0, 2, tiled=True)
        return x_BND[None]

    x_YBND = jax.shard_map(
        on_device,
        in_specs=(P(axis, TOKENS if fsdp else None), P(TOKENS)),
        out_specs=P(axis, TOKENS),
        check_vma=False,
    )(embedding_VD, token_BN)
    return partition.pin(x_YBND.sum(0) if axis else x_YBND[0], "tokens_BND")
