"""What a decoder keeps of the positions that it has seen.

All sequences of a batch fill the same slots: shorter prompts begin later, after empty slots.

Numbers of the cache may be shorter than those of the activations: bfloat16 (on CPUs as its bits,
see ``moe.lying``), or int8 with a scale for each vector, its largest number.

Letters: A: width of a head; J: key/value heads; M: slots of the cache; R: width of a latent vector.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from moejax.config.model import ModelConfig
from moejax.moe.lying import to_bits, widen
from moejax.runtime import device_mesh

CacheType = Literal["float32", "bfloat16", "float16", "int8"]
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


def empty_cache(
    config: ModelConfig, layers: list[int], rows: int, slots: int, kind: CacheType
) -> KVCache:
    """A cache without content, for runs of so many ``layers`` and ``rows`` sequences."""
    J, A, U = config.key_value_heads, config.query_head_size, config.value_head_size
    if config.is_latent:
        shapes = {
            "c_LBMR": (config.attention.kv_rank,),
            "key_LBM1A": (1, config.rotary_size),
        }
    else:
        shapes = {"k_LBMJA": (J, A), "v_LBMJA": (J, U)}

    if kind == "int8":
        shapes |= {_name_scale(name): (*shape[:-1], 1) for name, shape in shapes.items()}
    bits = kind == "bfloat16" and device_mesh.platform() == "cpu"

    def zeros(L: int) -> Cache:
        return {
            name: jnp.zeros(
                (L, rows, slots, *shape),
                jnp.float32 if name.startswith("scale_") else jnp.uint16 if bits else kind,
            )
            for name, shape in shapes.items()
        }

    nothing_BM = jnp.zeros((rows, slots), jnp.int32)
    return KVCache([zeros(L) for L in layers], nothing_BM, nothing_BM, jnp.zeros((), jnp.int32))


def extend_cache(
    cache: Cache, new: Cache, layer: jax.Array | int, start: jax.Array
) -> tuple[Cache, list[jax.Array]]:
    """The cache with ``new`` [B, N, ...] in the slots from ``start`` of a layer, and all slots
    [B, M, ...] of that layer, which may be float32 where the cache is shorter.
    """
    stored: Cache = {}
    for name, x in new.items():
        stored |= _shorten(name, x, cache[name].dtype)
    cache = {
        name: jax.lax.dynamic_update_slice(
            all_, stored[name][None], (layer, 0, start, *(0,) * (all_.ndim - 3))
        )
        for name, all_ in cache.items()
    }
    of_layer = {n: jax.lax.dynamic_index_in_dim(x, layer, 0, False) for n, x in cache.items()}
    return cache, [_lengthen(name, of_layer) for name in new]


def _shorten(name: str, x: jax.Array, dtype: jnp.dtype) -> Cache:
    """Numbers as the cache keeps them, with their scales where it has such."""
    if dtype == jnp.uint16:
        return {name: to_bits(x)}
    if dtype != jnp.int8:
        return {name: x.astype(dtype)}
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(-1, keepdims=True), 1e-30) / 127
    return {name: jnp.round(x / scale).astype(jnp.int8), _name_scale(name): scale}


def _lengthen(name: str, cache: Cache) -> jax.Array:
    """The numbers that were kept."""
    if cache[name].dtype != jnp.int8:
        return widen(cache[name])
    return cache[name].astype(jnp.float32) * cache[_name_scale(name)]


def _name_scale(name: str) -> str:
    return f"scale_{name[:-1]}1"
