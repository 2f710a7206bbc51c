"""Attention where each device of the mesh axis ``context`` has a piece of every sequence.

Keys and values are gathered from all devices of the axis, as they are kept: their gradients are
added up and scattered back. Queries stay where they are, or are dealt out anew: of causal attention
the last piece of a sequence costs almost twice the mean. Sequences are then cut into runs of C
strips. Every device gets one strip of each run, turn about from the front and from the back, and
gives back what its strips have found.

Moved out of a device with T tokens, C devices on the axis: T (C - 1) times the numbers that are
kept of a position, once for keys and values, and once for their gradients; and, where queries are
dealt out, T (C - 1) / C times those of a query, and of an output, and likewise for their gradients.

Letters: A: width of a head; C: devices of the axis; J: key/value heads; K: runs of strips in a
piece; M: positions that are looked at; S: positions of a strip; U: width of a head's values.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from moejax.models.attend.on_parts import Attend
from moejax.models.attend.seen import Seen
from moejax.runtime.partition import SPECS

Kept = Any
"""What is kept of positions, arrays [B, M, ...]."""
MakeHeads = Callable[[Kept, Any], tuple[jax.Array, jax.Array]]
"""``(kept, weights) -> (k_BMJA, v_BMJU)``."""
OF_TOKENS, OF_HEADS = SPECS["tokens_BND"], SPECS["heads_BNHA"]


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


def deals_queries(form: str, positions: int, devices: int) -> bool:
    """Whether queries are dealt out, under this form of attention, where a piece has so many
    positions: only what passes over blocks that nobody sees has less to do for the first piece.
    """
    return form != "dense" and positions % devices == 0


SHORTEST = 256
"""Positions of a strip at least, if a piece has enough: more strips share out packed documents more
evenly, and blocks of queries, which are no longer, still lie in one."""


def count_strips(positions: int, devices: int) -> int:
    """How many strips of a piece of so many positions each device gets."""
    most = max(1, positions // devices // SHORTEST)
    return next(k for k in range(most, 0, -1) if positions % (k * devices) == 0)


def deal(x_BN: jax.Array) -> jax.Array:
    """The strips of a device, from the pieces of all: [B, N, ...], N the positions of a piece."""
    B, N, *rest = x_BN.shape
    n = lax.axis_size("context")
    x_BKCS = _turn(x_BN.reshape(B, count_strips(N, n), n, -1, *rest))
    return _exchange(x_BKCS.swapaxes(1, 2).reshape(x_BN.shape))


def collect(x_BN: jax.Array) -> jax.Array:
    """The piece of a device, from the strips of all: what ``deal`` has done, undone."""
    B, N, *rest = x_BN.shape
    n = lax.axis_size("context")
    x_BCKS = _exchange(x_BN).reshape(B, n, count_strips(N, n), -1, *rest)
    return _turn(x_BCKS.swapaxes(1, 2)).reshape(x_BN.shape)


_exchange = partial(lax.all_to_all, axis_name="context", split_axis=1, concat_axis=1, tiled=True)


def _turn(x_BKCS: jax.Array) -> jax.Array:
    """Every second run of C strips in the opposite order."""
    K = x_BKCS.shape[1]
    odd_K = (lax.axis_index("context") * K + jnp.arange(K)) % 2 == 1
    odd_K = odd_K.reshape(K, *[1] * (x_BKCS.ndim - 2))
    return jnp.where(odd_K, x_BKCS[:, :, ::-1], x_BKCS)


def take_strips(x_BM: jax.Array) -> jax.Array:
    """The strips of this device, from whole sequences: [B, M / C]."""
    n, me = lax.axis_size("context"), lax.axis_index("context")
    runs = n * count_strips(x_BM.shape[1] // n, n)
    run = jnp.arange(runs)
    strip = jnp.where(run % 2 == 1, n - 1 - me, me)
    return x_BM.reshape(len(x_BM), runs, n, -1)[:, run, strip].reshape(len(x_BM), -1)
