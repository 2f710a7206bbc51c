"""What a model keeps on the devices between its calls.

Letters: L: routed layers; P: modules that predict further tokens; S: seats of a lane; X: lanes.
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
from moejax.models.kv_pages import PagedRows, empty_pool, pool_shardings
from moejax.runtime.partition import TOKENS

State = dict[str, Any]
"""``pool``; ``token_XS``, the last token that was drawn for each seat; and ``asked_XLE``, the
choices asked of each expert (uint32, which may overflow). With modules that predict further tokens
also ``before_XSP`` and ``before_XSPD``: of each seat the last P tokens in its pages, and the states
that the head reads there."""


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
    lanes, L, P = sizes.lanes, sum(config.routed_layers), config.next_tokens
    of_seats = (lanes, sizes.seats, P)
    routed = {"asked_XLE": jnp.zeros((lanes, L, config.moe.num_choices), jnp.uint32)}
    ahead = {
        "before_XSP": jnp.zeros(of_seats, jnp.int32),
        "before_XSPD": jnp.zeros((*of_seats, config.width), config.dtype),
    }
    return {
        "pool": empty_pool(config, lanes, sizes.seats, sizes.pages, sizes.page, kind),
        "token_XS": jnp.zeros((lanes, sizes.seats), jnp.int32),
        **(routed if L else {}),
        **(ahead if P else {}),
    }


def take_seats(x_XS: jax.Array, rows: PagedRows) -> jax.Array:
    """What the seats of a call's rows have, row by row."""
    seat_XR = rows.seat_B.reshape(len(x_XS), -1)
    x_XR = jax.vmap(lambda x_S, seat_R: x_S[seat_R])(x_XS, seat_XR)
    return x_XR.reshape(-1, *x_XS.shape[2:])


def put_seats(x_XS: jax.Array, rows: PagedRows, x_B: jax.Array) -> jax.Array:
    """What seats have, with something new for those of rows that have a text."""
    nobody = x_XS.shape[1]
    seat_XR = jnp.where(rows.count_B > 0, rows.seat_B, nobody).reshape(len(x_XS), -1)
    put = jax.vmap(lambda x_S, seat_R, x_R: x_S.at[seat_R].set(x_R, mode="drop"))
    return put(x_XS, seat_XR, x_B.reshape(*seat_XR.shape, *x_B.shape[1:]))
