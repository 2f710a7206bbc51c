"""What a model keeps on the devices between its calls.

Letters: L: routed layers; S: seats of a lane; X: lanes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.config.model import ModelConfig
from moejax.inference.engine.calls import Sizes
from moejax.inference.inference_config import inference_config
from moejax.models.kv_cache import CacheType
from moejax.models.kv_pages import empty_pool, pool_shardings
from moejax.runtime.partition import TOKENS

State = dict[str, Any]
"""``pool``; ``token_XS``, the last token that was drawn for each seat; and ``asked_XLE``, the
choices asked of each expert (uint32, which may overflow)."""


def make_empty_state(config: ModelConfig, mesh: Mesh, kind: CacheType | None = None) -> Any:
    """``sizes -> state``, jitted: of a pool without content, of numbers of this ``kind``."""
    return jax.jit(
        lambda sizes: _make_state(config, sizes, kind),
        static_argnums=0,
        out_shardings=state_shardings(config, mesh, kind),
    )


def state_shardings(config: ModelConfig, mesh: Mesh, kind: CacheType | None = None) -> State:
    """How the state of a model lies on a mesh, whatever its sizes."""
    nothing: Any = dict.fromkeys(("rows", "tables", "prompt_rows", "prompt_tables"), ())
    sizes = Sizes(lanes=1, seats=1, page=1, pages=1, chunk=1, **nothing)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda: _make_state(config, sizes, kind))
    of_lanes = NamedSharding(mesh, P(TOKENS))
    return {name: of_lanes for name in state} | {"pool": pool_shardings(mesh, state["pool"])}


def _make_state(config: ModelConfig, sizes: Sizes, kind: CacheType | None) -> State:
    config = inference_config(config)
    lanes, L = sizes.lanes, sum(config.routed_layers)
    routed = {"asked_XLE": jnp.zeros((lanes, L, config.moe.num_choices), jnp.uint32)}
    return {
        "pool": empty_pool(config, lanes, sizes.seats, sizes.pages, sizes.page, kind),
        "token_XS": jnp.zeros((lanes, sizes.seats), jnp.int32),
        **(routed if L else {}),
    }
