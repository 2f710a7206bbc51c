"""What a decoder keeps of the positions that it has seen.

Layers with attention keep every position; layers with a memory (``gated_delta``) keep the memory
alone. Where they lie is said by ``kv_pages``.

Numbers of positions may be shorter than those of the activations: bfloat16 (on CPUs as its bits,
see ``moe.lying``), or int8 with a scale for each vector, its largest number. Memories are float32.

Letters: A: width of a head; J: key/value heads; M: slots of the cache; R: width of a latent vector;
U: width of a value; W: positions that a short convolution looks at before the own; X: channels.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from moejax.config.model import ModelConfig
from moejax.moe.float_bits import to_bits, widen_bits
from moejax.runtime import device_mesh

CacheType = Literal["float32", "bfloat16", "float16", "int8"]
Cache = dict[str, jax.Array]
"""The arrays of several layers, with a leading L; ``{}`` where nothing is kept."""
Read = Callable[[Any, int], list[jax.Array]]
"""``(first, count) -> arrays [B, count, ...]``: so many slots of a layer from one on, which may be
float32 where the cache is shorter."""


class Slots(Protocol):
    """Where the tokens of a call lie in the arrays of a cache, which have all layers of a run."""

    def write(self, kept: jax.Array, x_BN: jax.Array, layer: jax.Array | int) -> jax.Array:
        """The array with what a layer keeps of the tokens, [B, N, ...]."""

    def read(self, kept: jax.Array, layer: jax.Array | int, first: Any, count: int) -> jax.Array:
        """So many slots of a layer from one on, [B, count, ...]."""

    def remember(self, kept: jax.Array, x_B: jax.Array, layer: jax.Array | int) -> jax.Array:
        """The array with a layer's memory of each text, [B, ...]."""

    def recall(self, kept: jax.Array, layer: jax.Array | int) -> jax.Array:
        """A layer's memory of each text, [B, ...]."""


def empty_layers(
    config: ModelConfig,
    runs: list[tuple[int, int]],
    kind: CacheType,
    of_slots: Callable[[int], tuple[int, ...]],
    of_texts: Callable[[int], tuple[int, ...]],
) -> list[Cache]:
    """The arrays of each run: the first dimensions of what so many layers keep of positions, and of
    texts, are given.
    """
    of_positions = _position_shapes(config, kind)
    bits = kind == "bfloat16" and device_mesh.platform() == "cpu"
    of_memory = _memory_shapes(config)

    def zeros(attending: int, remembering: int) -> Cache:
        kept = {
            name: jnp.zeros(
                (*of_slots(attending), *shape),
                jnp.float32 if name.startswith("scale_") else jnp.uint16 if bits else kind,
            )
            for name, shape in of_positions.items()
            if attending
        }
        memory = {
            name: jnp.zeros((*of_texts(remembering), *shape), jnp.float32)
            for name, shape in of_memory.items()
            if remembering
        }
        return kept | memory

    return [zeros(*counts) for counts in runs]


def _position_shapes(config: ModelConfig, kind: CacheType) -> dict[str, tuple[int, ...]]:
    """What a layer with attention keeps of each position."""
    J, A, U = config.key_value_heads, config.query_head_size, config.value_head_size
    shapes: dict[str, tuple[int, ...]]
    if config.attention.kv_rank is not None:
        shapes = {"c_LBMR": (config.attention.kv_rank,), "key_LBM1A": (1, config.rotary_size)}
    else:
        shapes = {"k_LBMJA": (J, A), "v_LBMJA": (J, U)}
    if kind == "int8":
        shapes |= {_name_scale(name): (*shape[:-1], 1) for name, shape in shapes.items()}
    return shapes


def _memory_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What a layer with a memory keeps of a text."""
    sizes = config.delta_sizes
    J, H, A, U = sizes.key_heads, sizes.value_heads, sizes.key_size, sizes.value_size
    widths = {"query": J * A, "key": J * A, "value": H * U}
    last: dict[str, tuple[int, ...]]
    last = {f"last_{name}_LBWX": (sizes.convolution - 1, X) for name, X in widths.items()}
    return {"state_LBHAU": (H, A, U)} | last


def extend_cache(
    cache: Cache, new: Cache, layer: jax.Array | int, slots: Slots
) -> tuple[Cache, Read]:
    """The cache with ``new`` [B, N, ...] in the slots of a layer, and what reads the layer where it
    lies.
    """
    stored: Cache = {}
    for name, x in new.items():
        stored |= _shorten(name, x, cache[name].dtype)
    cache = cache | {name: slots.write(cache[name], x, layer) for name, x in stored.items()}

    def read(first: Any, count: int) -> list[jax.Array]:
        there = {name: slots.read(cache[name], layer, first, count) for name in stored}
        return [_lengthen(name, there) for name in new]

    return cache, read


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
        return widen_bits(cache[name])
    return cache[name].astype(jnp.float32) * cache[_name_scale(name)]


def _name_scale(name: str) -> str:
    return f"scale_{name[:-1]}1"
