"""What a decoder keeps of the texts of a running batch, in pages that texts take and give back.

A pool has pages of so many positions, and seats for the memories of layers that have such. On a
mesh each device that has tokens of its own (a lane) has pages and seats of its own, and a row of a
call looks at those of its lane alone.

Letters: M: positions that are looked at; P: pages of a lane; Q: pages that a row looks at; R: rows
of a lane; S: seats of a lane; X: lanes; Y: positions of a page.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.config.model import ModelConfig
from moejax.models.kv_cache import Cache, CacheType, empty_layers
from moejax.models.layer_runs import count_kept
from moejax.runtime.partition import CACHE, TOKENS

NOWHERE = np.iinfo(np.int32).max
"""A page, or a seat, that there is not: what is written to it is dropped."""
Pool = list[Cache]
"""For each run of layers (see ``layer_runs``), and for the modules that predict further tokens if
there are any, its arrays: of positions [X, L, P, Y, ...], and of
memories [X, L, S, ...]; under the names of ``kv_cache``."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedRows:
    """The rows of a call, lane by lane, each with the next tokens of one text."""

    seat_B: jax.Array
    """The seat of each row on its lane, int32 as all."""
    count_B: jax.Array
    """Its tokens, from the left; what is behind them is padding."""
    at_B: jax.Array
    """The position of the first."""
    begin_B: jax.Array
    """The position of the first slot of the first page."""
    table_BQ: jax.Array
    """Its pages, those that the tokens are written to included."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PageSlots:
    """Slots (``kv_cache.Slots``) in the pages of a pool. What others have left there is read as 0:
    it may not be finite, and a text would have it in spite of its weight of 0.
    """

    page_BN: jax.Array
    """Where each token is written; of padding, no page that there is ..."""
    offset_BN: jax.Array
    """... and at which of its positions."""
    table_BQ: jax.Array
    seat_B: jax.Array
    """Of a row without a text, no seat that there is."""
    end_B: jax.Array
    """Slots of a row that are its own, the tokens at hand included."""
    new_B: jax.Array
    """Whether the row's text begins with these tokens."""

    def write(self, kept: jax.Array, x_BN: jax.Array, layer: jax.Array | int) -> jax.Array:
        page_BN, offset_BN, x_BN = _widen_single(len(kept), self.page_BN, self.offset_BN, x_BN)

        def put(kept_LPY: jax.Array, page_RN: Any, offset_RN: Any, x_RN: jax.Array) -> jax.Array:
            return kept_LPY.at[layer, page_RN, offset_RN].set(x_RN, mode="drop")

        return _on_lanes(put, kept, page_BN, offset_BN, x_BN)

    def read(self, kept: jax.Array, layer: jax.Array | int, first: Any, count: int) -> jax.Array:
        """``first`` is the first slot of a page."""
        page = kept.shape[3]
        pages = -(-count // page)
        table_Bq = jax.lax.dynamic_slice_in_dim(self.table_BQ, first // page, pages, 1)

        def take(kept_LPY: jax.Array, table_Rq: jax.Array) -> jax.Array:
            return kept_LPY.at[layer, table_Rq].get(mode="promise_in_bounds")

        x_XRqY = _on_lanes(take, kept, table_Bq)
        x_BM = x_XRqY.reshape(len(table_Bq), pages * page, *kept.shape[4:])
        own_BM = first + jnp.arange(pages * page) < self.end_B[:, None]
        return jnp.where(_widen(own_BM, x_BM), x_BM, 0)[:, :count]

    def remember(self, kept: jax.Array, x_B: jax.Array, layer: jax.Array | int) -> jax.Array:
        def put(kept_LS: jax.Array, seat_R1: jax.Array, x_R1: jax.Array) -> jax.Array:
            return kept_LS.at[layer, seat_R1].set(x_R1, mode="drop")

        seat_B1, x_B1 = _widen_single(len(kept), self.seat_B[:, None], x_B[:, None])
        return _on_lanes(put, kept, seat_B1, x_B1)

    def recall(self, kept: jax.Array, layer: jax.Array | int) -> jax.Array:
        def take(kept_LS: jax.Array, seat_R1: jax.Array) -> jax.Array:
            return kept_LS.at[layer, seat_R1].get(mode="clip")

        (seat_B1,) = _widen_single(len(kept), self.seat_B[:, None])
        x_XR1 = _on_lanes(take, kept, seat_B1)
        x_B = x_XR1.reshape(*seat_B1.shape, *kept.shape[3:])[:, 0]
        return jnp.where(_widen(self.new_B, x_B), 0, x_B)


def _widen(mask: jax.Array, x: jax.Array) -> jax.Array:
    """A mask of the first dimensions of an array, for the others, too."""
    return mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim))


def _widen_single(lanes: int, place_BN: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
    """Places that are written to or read, and what goes with them; of a single one on each lane,
    with another one behind it, which goes nowhere. Of a single one XLA makes other operations, for
    which it copies all that is kept.
    """
    if place_BN.size != lanes:
        return place_BN, *others
    return tuple(
        jnp.pad(x, ((0, 0), (0, 1), *((0, 0),) * (x.ndim - 2)), constant_values=value)
        for x, value in ((place_BN, NOWHERE), *((x, 0) for x in others))
    )


def _on_lanes(act: Callable, kept: jax.Array, *of_rows: jax.Array) -> jax.Array:
    """``act`` on what each lane keeps and on its rows."""
    X = len(kept)
    return jax.vmap(act)(kept, *(x_B.reshape(X, -1, *x_B.shape[1:]) for x_B in of_rows))


def empty_pool(
    config: ModelConfig, lanes: int, seats: int, pages: int, page: int, kind: CacheType | None
) -> Pool:
    """A pool without content: so many seats and pages on each lane, of numbers of this ``kind``, by
    default those of the activations.
    """
    return empty_layers(
        config,
        count_kept(config),
        kind or config.dtype,
        lambda L: (lanes, L, pages, page),
        lambda L: (lanes, L, seats),
    )


def pool_shardings(mesh: Mesh, pool: Pool) -> Any:
    """How a pool lies on a mesh."""

    def sharding(name: str, x: jax.Array) -> NamedSharding:
        # In the dimensions that both have; one entry is on every device.
        both = zip(x.shape[3:], CACHE[name][1:], strict=True)
        inside = [None if n == 1 else axis for n, axis in both]
        return NamedSharding(mesh, P(TOKENS, None, None, *inside))

    return [{name: sharding(name, x) for name, x in cache.items()} for cache in pool]


def page_size(pool: Pool) -> int:
    """Positions of a page; 1 if no layer keeps positions."""
    return next((x.shape[3] for cache in pool for name, x in cache.items() if "BM" in name), 1)


def find_slots(rows: PagedRows, N: int, pool: Pool) -> PageSlots:
    """Where the N tokens of each row are written, and what is read."""
    page = page_size(pool)
    real_BN = jnp.arange(N) < rows.count_B[:, None]
    slot_BN = (rows.at_B - rows.begin_B)[:, None] + jnp.arange(N)
    number_BN = jnp.minimum(slot_BN // page, rows.table_BQ.shape[1] - 1)
    page_BN = jnp.take_along_axis(rows.table_BQ, number_BN, axis=1)
    return PageSlots(
        page_BN=jnp.where(real_BN, page_BN, NOWHERE),
        offset_BN=slot_BN % page,
        table_BQ=rows.table_BQ,
        seat_B=jnp.where(rows.count_B > 0, rows.seat_B, NOWHERE),
        end_B=rows.at_B - rows.begin_B + rows.count_B,
        new_B=rows.at_B == 0,
    )


def take_last(x_BND: jax.Array, count_B: jax.Array) -> jax.Array:
    """Of each row of so many, the last, ``x_B1D``; of one without any, the first."""
    return jnp.take_along_axis(x_BND, jnp.maximum(count_B - 1, 0)[:, None, None], axis=1)
