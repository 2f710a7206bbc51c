"""Attention on a mesh: each device has its own rows of the batch, and its own heads.

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; U: width of a
head's values.
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P

from moejax.models.attend.seen import Seen
from moejax.runtime.partition import TOKENS

HEADS = "model"

Attend = Callable[
    [jax.Array, jax.Array, jax.Array, Seen, jax.Array | None, float],
    jax.Array,
]
"""A form of attention, as ``by_form.attend``."""


def attend_on_parts(
    function: Attend,
    q_BNHA: jax.Array,
    k_BMJA: jax.Array,
    v_BMJU: jax.Array,
    seen: Seen,
    sink_H: jax.Array | None,
    scale: float,
) -> jax.Array:
    """``function`` of each device's part, ``y_BNHU``: loops and kernels cannot be spread by XLA.

    What an axis of the mesh does not divide is there on all of its devices. Without a mesh, or on a
    part already, it is the function itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return function(q_BNHA, k_BMJA, v_BMJU, seen, sink_H, scale)
    sizes = dict(mesh.shape)
    (B, _, H, _), J = q_BNHA.shape, k_BMJA.shape[2]
    rows = TOKENS if B % math.prod(sizes[axis] for axis in TOKENS) == 0 else None
    # One key/value head is every query head's.
    heads = HEADS if H % sizes[HEADS] == 0 and (J % sizes[HEADS] == 0 or J == 1) else None
    of_queries = P(rows, None, heads)
    of_keys = P(rows, None, heads if J > 1 else None)
    of_seen = jax.tree.map(lambda x: P(rows) if x.ndim == 2 and len(x) == B else P(), seen)

    def run(
        q_BNHA: jax.Array,
        k_BMJA: jax.Array,
        v_BMJU: jax.Array,
        seen: Seen,
        sink_H: jax.Array | None,
    ) -> jax.Array:
        return function(q_BNHA, k_BMJA, v_BMJU, seen, sink_H, scale)

    # Kernels say nothing of which axes their results vary over, hence no check.
    mapped = jax.shard_map(
        run,
        in_specs=(of_queries, of_keys, of_keys, of_seen, P(heads)),
        out_specs=of_queries,
        check_vma=False,
    )
    return mapped(q_BNHA, k_BMJA, v_BMJU, seen, sink_H)
