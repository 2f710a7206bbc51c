"""One compiled call of a decoder: it reads N tokens of each row and draws the next one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.inference.inference_config import inference_config, inference_layout
from moejax.inference.sampling import Draws, draw, make_keys
from moejax.models.decoder import DecoderLM, make_cache
from moejax.models.kv_cache import CacheType, KVCache
from moejax.moe.lying import lie
from moejax.runtime import partition

Weights = tuple[dict, jax.Array | None, jax.Array | None]
"""Parameters, the selection bias, and the places of replicas: see ``DecoderLM``."""


def make_step(
    config: ModelConfig,
    vocab_size: int,
    layout: MeshConfig,
    mesh: Mesh,
    window: int | None = None,
    kind: CacheType | None = None,
    record: bool = False,
) -> Any:
    """``(weights, cache, token_BN, segment_BN, position_BN, draws) -> (cache, token_B1,
    position_B1)``, jitted: the cache with the tokens in it, written in place, the token after the
    last of them, and its position. N is 1 in a decode step, and the length of the prompts before.
    With ``record``, it gives the routes of the tokens that it reads, too: ``routes_BNLK``.
    """
    model = DecoderLM(inference_config(config), vocab_size, inference_layout(layout))
    everywhere = partition.activation_sharding(mesh, "everywhere")
    plain = [everywhere] * (3 if record else 2)
    return jax.jit(
        partial(_extend, model, window, "decode_and_record" if record else "decode"),
        donate_argnums=1,
        out_shardings=(cache_shardings(config, mesh, kind), *plain),
    )


def make_empty_cache(
    config: ModelConfig, mesh: Mesh, kind: CacheType | None = None
) -> Callable[[int, int], KVCache]:
    """``(rows, slots) -> cache``, jitted; of numbers of this ``kind`` (see ``make_cache``)."""
    config = inference_config(config)
    return jax.jit(
        lambda rows, slots: make_cache(config, rows, slots, kind),
        static_argnums=(0, 1),
        out_shardings=cache_shardings(config, mesh, kind),
    )


def cache_shardings(config: ModelConfig, mesh: Mesh, kind: CacheType | None = None) -> Any:
    """How the cache of a model lies on a mesh."""
    like = jax.eval_shape(lambda: make_cache(inference_config(config), 2, 2, kind))
    return partition.tree_shardings(mesh, like)


def _extend(
    model: DecoderLM,
    window: int | None,
    method: str,
    weights: Weights,
    cache: KVCache,
    token_BN: jax.Array,
    segment_BN: jax.Array,
    position_BN: jax.Array,
    draws: Draws,
) -> tuple[KVCache, *tuple[jax.Array, ...]]:
    params, bias_LE, place_LER = weights
    params = lie(params)
    batch = {"inputs": token_BN, "segments": segment_BN, "positions": position_BN}
    found: Any = model.apply(
        {"params": params},
        {name: partition.pin(x_BN, "batch_BN") for name, x_BN in batch.items()},
        cache,
        bias_LE,
        place_LER,
        window,
        method=method,
    )
    logits_B1V, written, *routes = found
    next_B = position_BN[:, -1] + 1
    token_B = draw(logits_B1V[:, 0], make_keys(draws, next_B), draws)
    return written, token_B[:, None], next_B[:, None], *routes
