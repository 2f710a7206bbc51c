"""What a decoder keeps of the positions that it has seen.

All sequences of a batch fill the same slots: shorter prompts begin later, after empty slots.

Letters: A: width of a head; J: key/value heads; M: slots of the cache; R: width of a latent vector.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moejax.config.model import ModelConfig

Cache = dict[str, jax.Array]
"""The arrays of several layers, with a leading L; ``{}`` where nothing is kept."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of M slots, and whose they are."""

    layers: list[Cache]
    """For each run of layers (see ``layer_runs``), its arrays."""
    segments_BM: jax.Array
    """0 in empty slots."""
    positions_BM: jax.Array
    start: jax.Array
    """The first slot that is free."""


def empty_cache(config: ModelConfig, layers: list[int], rows: int, slots: int) -> KVCache:
    """A cache without content, for runs of so many ``layers`` and ``rows`` sequences."""
    J, A, U = config.key_value_heads, config.query_head_size, config.value_head_size
    if config.is_latent:
        shapes = {
            "c_LBMR": (config.attention.kv_rank,),
            "key_LBM1A": (1, config.rotary_size),
        }
    else:
        shapes = {"k_LBMJA": (J, A), "v_LBMJA": (J, U)}

    def zeros(L: int) -> Cache:
        return {
            name: jnp.zeros((L, rows, slots, *shape), config.dtype)
            for name, shape in shapes.items()
        }

    nothing_BM = jnp.zeros((rows, slots), jnp.int32)
    return KVCache([zeros(L) for L in layers], nothing_BM, nothing_BM, jnp.zeros((), jnp.int32))


def extend_cache(
    cache: Cache, new: Cache, layer: jax.Array | int, start: jax.Array
) -> tuple[Cache, list[jax.Array]]:
    """The cache with ``new`` [B, N, ...] in the slots from ``start`` of a layer, and all slots
    [B, M, ...] of that layer.
    """
    cache = {
        name: jax.lax.dynamic_update_slice(
            all_, new[name][None], (layer, 0, start, *(0,) * (all_.ndim - 3))
        )
        for name, all_ in cache.items()
    }
    return cache, [jax.lax.dynamic_index_in_dim(cache[n], layer, 0, False) for n in new]
