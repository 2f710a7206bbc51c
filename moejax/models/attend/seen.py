"""Which keys each query sees. It is an array of N x M numbers only where a form of attention makes
one (``make_mask``).

Letters: M: positions that are looked at.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

HIDDEN = -1e30
"""The score of a key that is not seen."""
NO_LIMIT = 2**30
"""Positions, where a layer without a window runs in one loop with others that have one."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["of_BN", "at_BN", "of_BM", "at_BM", "near"],
    meta_fields=["window", "reach", "causal", "in_order", "pieces", "page"],
)
@dataclass(frozen=True, kw_only=True)
class Seen:
    """A query sees the keys of its own document that are not after it, and of these only the last
    ones, where there is a limit. What is the same for all rows of a batch may have one row.
    """

    of_BN: jax.Array
    """The document of each query; 0 is padding."""
    at_BN: jax.Array
    """Where each query is in its document."""
    of_BM: jax.Array
    """The document of each key."""
    at_BM: jax.Array
    """Where each key is in its document."""
    window: int | None = None
    """How many positions a layer with a window sees, the query's own included; None: no layer has
    one."""
    near: jax.Array | None = None
    """Whether this layer has the window, where layers differ in that; by default it has."""
    reach: int | None = None
    """No layer sees more than so many positions, the query's own included."""
    causal: bool = True
    """Whether keys after the query are hidden."""
    in_order: bool = False
    """Whether queries and keys are the same positions, each document's behind one another: a query
    is as far behind a key as by index."""
    pieces: int = 1
    """In how many pieces sequences lie on the mesh (``runtime.pieces``): the places of keys are
    those of all positions of a sequence, while keys and values come as pieces."""
    page: int = 1
    """Keys in a cache are read so many at once."""


def find_limit(seen: Seen) -> jax.Array | int | None:
    """How many positions a query of this layer sees at most, its own included; None: no limit."""
    limit: jax.Array | int | None = seen.window
    if seen.window is not None and seen.near is not None:
        limit = jnp.where(seen.near, seen.window, NO_LIMIT)
    if seen.reach is None:
        return limit
    return seen.reach if limit is None else jnp.minimum(limit, seen.reach)


def list_limits(seen: Seen, N: int) -> list[int | None]:
    """As ``find_limit``, of N positions: numbers that are known before the program runs. Where
    layers differ, they are two, for those with the window first.
    """
    reach = N if seen.reach is None else seen.reach
    near = reach if seen.window is None else min(seen.window, reach)
    limits = [near] if seen.near is None else [near, reach]
    return [None if limit >= N else limit for limit in limits]


def sees(
    of_N: jax.Array,
    at_N: jax.Array,
    of_M: jax.Array,
    at_M: jax.Array,
    limit: jax.Array | int | None,
    causal: bool,
) -> jax.Array:
    """Whether queries, by their documents and positions, see keys: ``mask_NM``. Leading dimensions
    are those of both.
    """
    distance_NM = at_N[..., :, None] - at_M[..., None, :]
    mask_NM = of_N[..., :, None] == of_M[..., None, :]
    if causal:
        mask_NM &= distance_NM >= 0
    if limit is not None:
        mask_NM &= distance_NM < limit
    return mask_NM


def make_mask(seen: Seen) -> jax.Array:
    """``mask_B1NM``: whether a query sees a key."""
    limit = find_limit(seen)
    mask_BNM = sees(seen.of_BN, seen.at_BN, seen.of_BM, seen.at_BM, limit, seen.causal)
    return mask_BNM[:, None]
