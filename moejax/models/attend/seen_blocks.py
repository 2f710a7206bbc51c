"""Which blocks of keys each block of queries has to look at, found without looking at each pair of
positions.

Letters: O: blocks of queries; P: blocks of keys; X: positions in a block.
"""

import jax
import jax.numpy as jnp

LAST = 2**31 - 1
"""The number of padding among documents: it stands behind texts, mostly."""


def find_seen_blocks(
    of_OX: jax.Array,
    at_OX: jax.Array,
    of_PX: jax.Array,
    at_PX: jax.Array,
    limit: jax.Array | int | None,
    causal: bool,
) -> jax.Array:
    """``seen_OP``: False where no query of a block sees a key of the other block.

    The arguments are those of ``seen.sees``. It may be True in vain, as it only compares ends:
    documents and positions are ordered by document first, and a block of queries needs what begins
    before its last query, ends in its first document or later, and, with a limit, ends after the
    first position that its first query sees. So positions may stand in any order, but where
    that is mixed, more blocks are looked at.
    """
    of_OX, of_PX = (jnp.where(of_X > 0, of_X, LAST) for of_X in (of_OX, of_PX))
    (first_O, start_O), (last_O, end_O) = _find_ends(of_OX, at_OX)
    (first_P, start_P), (last_P, end_P) = _find_ends(of_PX, at_PX)
    first_O, start_O, last_O, end_O = (x_O[:, None] for x_O in (first_O, start_O, last_O, end_O))
    seen_OP = (first_P <= last_O) & (first_O <= last_P)
    if causal:
        seen_OP &= (first_P < last_O) | (start_P <= end_O)
    if limit is not None:
        seen_OP &= (last_P > first_O) | (end_P > start_O - limit)
    return seen_OP


def list_blocks(seen_OP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each of the O, first those of the P that it has to look at, ``order_OP``; and how many
    they are, ``count_O``.
    """
    return jnp.argsort(~seen_OP, axis=1), seen_OP.sum(1)


Ends = tuple[jax.Array, jax.Array]


def _find_ends(of_OX: jax.Array, at_OX: jax.Array) -> tuple[Ends, Ends]:
    """The first and the last document of each block, with the first and the last position in it."""
    first_O, last_O = of_OX.min(1), of_OX.max(1)
    start_O = jnp.where(of_OX == first_O[:, None], at_OX, LAST).min(1)
    end_O = jnp.where(of_OX == last_O[:, None], at_OX, -LAST).max(1)
    return (first_O, start_O), (last_O, end_O)
