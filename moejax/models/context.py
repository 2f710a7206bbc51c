"""What all layers of a model look at beside the residual stream.

Letters: M: positions that are looked at.
"""

from typing import TypedDict

import jax


class Context(TypedDict, total=False):
    """What all layers look at."""

    real_BN: jax.Array
    token_BN: jax.Array | None
    cos: jax.Array
    sin: jax.Array
    """Of rotary positions; where layers differ in them, all that there are."""
    mask_B1NM: jax.Array
    distance_B1NM: jax.Array
    """Where layers have windows."""
    fresh_BN: jax.Array
    """Where layers have memories: where these begin anew."""
    start: jax.Array
    """With a cache: its first free slot."""
    stacks: dict[str, dict[str, jax.Array]]
    """In training: the stacks of the routed layers' banks, by the name of the block."""


def mask_positions(
    segments_BN: jax.Array, positions_BN: jax.Array, of_BM: jax.Array, at_BM: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``mask_B1NM``: a position sees itself and what came before it in its own document; and how
    far apart they are, ``distance_B1NM``. ``of_BM`` and ``at_BM`` are the keys' documents and
    positions.
    """
    distance_BNM = positions_BN[:, :, None] - at_BM[:, None, :]
    same_BNM = segments_BN[:, :, None] == of_BM[:, None, :]
    return (same_BNM & (distance_BNM >= 0))[:, None], distance_BNM[:, None]
