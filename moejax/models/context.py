"""What all layers of a model look at beside the residual stream."""

from typing import TypedDict

import jax

from moejax.models.attend.seen import Seen
from moejax.models.kv_cache import Slots


class Context(TypedDict, total=False):
    """What all layers look at."""

    real_BN: jax.Array
    token_BN: jax.Array | None
    cos: jax.Array
    sin: jax.Array
    """Of rotary positions; where layers differ in them, all that there are."""
    seen: Seen
    fresh_BN: jax.Array
    """Where layers have memories: where these begin anew."""
    slots: Slots
    """With a cache: where it has the tokens."""
    stacks: dict[str, dict[str, jax.Array]]
    """In training: the stacks of the routed layers' banks, by the name of the block."""
