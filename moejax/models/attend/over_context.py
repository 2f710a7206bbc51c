"""Attention where each device of the mesh axis ``context`` has a piece of every sequence.

Keys and values are gathered from all devices of the axis, as they are kept: their gradients are
added up and scattered back. Queries stay where they are, or are dealt out anew: of causal attention
the last piece of a sequence costs almost twice the mean. Every device then gets a strip of each
piece, turn about from the front and from the back, and gives back what its strips have found.

Moved out of a device with T tokens, C devices on the axis: T (C - 1) times the numbers that are
kept of a position, once for keys and values, and once for their gradients; and, where queries are
dealt out, T (C - 1) / C times those of a query, and of an output, and likewise for their gradients.

Letters: A: width of a head; M: positions that are looked at; U: width of a head's values.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from moejax.models.attend.seen import Seen
from moejax.runtime.partition import TOKENS

Kept = Any
"""What is kept of positions, arrays [B, M, ...]."""
MakeHeads = Callable[[Kept, Any], tuple[jax.Array, jax.Array]]
"""``(kept, weights) -> (k_BMJA, v_BMJU)``."""
Attend = Callable[..., jax.Array]
"""``(q_BNHA, k_BMJA, v_BMJU, seen, sink_H, scale) -> y_BNHU``."""
OF_TOKENS, OF_HEADS = P(TOKENS), P(TOKENS, None, "model")


def attend_over_context(
    attend: Attend,
    q_BNHA: jax.Array,
    kept: Kept,
    weights: Any,
    make_heads: MakeHeads,
    seen: Seen,
    sink_H: jax.Array | None,
    scale: float,
    *,
    lie: tuple[Any, Any],
    deals: bool,
) -> jax.Array:
    """``attend`` of each device's queries to the keys and values of whole sequences, ``y_BNHU``.

    ``seen`` has the places of all keys of a row's sequence. ``lie`` says how ``kept`` and
    ``weights`` lie on the mesh; ``deals``, whether queries are dealt out.
    """
    specs = replace(
        jax.tree.map(lambda _: OF_TOKENS, seen), near=None if seen.near is None else P()
    )
    sink = None if sink_H is None else P("model")

    def run(q: jax.Array, kept: Kept, weights: Any, seen: Seen, sink_H: Any) -> jax.Array:
        kept = jax.tree.map(partial(lax.all_gather, axis_name="context", axis=1, tiled=True), kept)
        k, v = make_heads(kept, weights)
        if not deals:
            return attend(q, k, v, seen, sink_H, scale)
        strips = replace(seen, of_BN=take_strips(seen.of_BM), at_BN=take_strips(seen.at_BM))
        return collect(attend(deal(q), k, v, strips, sink_H, scale))

    # Kernels say nothing of which axes their results vary over, hence no check.
    mapped = jax.shard_map(
        run,
        in_specs=(OF_HEADS, *lie, specs, sink),
        out_specs=OF_HEADS,
        check_vma=False,
    )
    return mapped(q_BNHA, kept, weights, seen, sink_H)


def deal(x_BN: jax.Array) -> jax.Array:
    """The strips of a device, from the pieces of all: [B, N, ...], N the positions of a piece."""
    return _exchange(_turn(x_BN))


def collect(x_BN: jax.Array) -> jax.Array:
    """The piece of a device, from the strips of all: what ``deal`` has done, undone."""
    return _turn(_exchange(x_BN))


_exchange = partial(lax.all_to_all, axis_name="context", split_axis=1, concat_axis=1, tiled=True)


def _turn(x_BN: jax.Array) -> jax.Array:
    """Every second device has its strips in the opposite order."""
    B, N, *rest = x_BN.shape
    strips = x_BN.reshape(B, lax.axis_size("context"), -1, *rest)
    odd = lax.axis_index("context") % 2 == 1
    return jnp.where(odd, strips[:, ::-1], strips).reshape(x_BN.shape)


def take_strips(x_BM: jax.Array) -> jax.Array:
    """The strips of this device, from whole sequences: [B, M / C]."""
    n, me = lax.axis_size("context"), lax.axis_index("context")
    piece = jnp.arange(n)
    strip = jnp.where(piece % 2 == 1, n - 1 - me, me)
    x_BCCS = x_BM.reshape(len(x_BM), n, n, -1)
    return x_BCCS[:, piece, strip].reshape(len(x_BM), -1)
