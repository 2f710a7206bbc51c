"""Softmax attention on NVIDIA GPUs by cuDNN's kernels, through ``jax.nn.dot_product_attention``.

They keep no scores, but know nothing of packed documents without a mask of N x M: JAX's function
has none, and the one below it keeps numbers for each pair of a document and a position. So here the
scores themselves tell documents apart (``tag``).

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; U: width of a
head's values; X: numbers of a tag.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from moejax.models.attend.carried import find_width, tag_size
from moejax.models.attend.seen import Seen, list_limits

APART = 2.0**20
"""What takes keys of other documents out of a query's sight, times the scale of scores."""


def attend_cudnn(
    q_BNHA: jax.Array,
    k_BMJA: jax.Array,
    v_BMJU: jax.Array,
    seen: Seen,
    sink_H: None,
    scale: float,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """As ``by_form.attend``, of queries to keys in the same rows (N = M), which are in order
    (``Seen.in_order``), without sinks. Positions of padding are told apart by their index.
    """
    (B, N, _, A), U = q_BNHA.shape, v_BMJU.shape[-1]
    tag_q_BN1X, tag_k_BN1X = tag(jnp.broadcast_to(seen.of_BN, (B, N)))
    width = find_width(N, A, U)

    def widen(x_BNHA: jax.Array) -> jax.Array:
        return jnp.pad(x_BNHA, ((0, 0), (0, 0), (0, 0), (0, width - x_BNHA.shape[-1])))

    def with_tag(x_BNHA: jax.Array, tag_BN1X: jax.Array) -> jax.Array:
        tag_BNHX = jnp.broadcast_to(tag_BN1X, (*x_BNHA.shape[:3], tag_BN1X.shape[-1]))
        return widen(jnp.concatenate([tag_BNHX.astype(x_BNHA.dtype), x_BNHA], -1))

    arrays = with_tag(q_BNHA, tag_q_BN1X), with_tag(k_BMJA, tag_k_BN1X), widen(v_BMJU)
    runs = [
        partial(
            jax.nn.dot_product_attention,
            scale=scale,
            is_causal=seen.causal,
            local_window_size=None if limit is None else (limit - 1, 0),
            implementation=implementation,
        )
        for limit in list_limits(seen, N)
    ]
    y_BNHX = runs[0](*arrays) if seen.near is None else jax.lax.cond(seen.near, *runs, *arrays)
    return y_BNHX[..., :U]


def tag(of_BN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What stands before queries and before keys, ``tag_BN1X``, so that products of both are 0 in a
    document, and very low between two.

    A query's tag has the bits of its document's number and their opposites, times ``-APART``; a
    key's has first the opposites. So what is added up is 0 everywhere in a document, and nothing is
    rounded away, in any order. A row has no more documents than positions, and their numbers follow
    one another, so bits for as many as positions are enough.
    """
    bits = jnp.arange(tag_size(of_BN.shape[1]) // 2)
    bit_BN1X = (of_BN[:, :, None, None] >> bits & 1).astype(jnp.float32)
    both = bit_BN1X, 1 - bit_BN1X
    return -APART * jnp.concatenate(both, -1), jnp.concatenate(both[::-1], -1)
