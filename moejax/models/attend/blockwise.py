"""Softmax attention block by block, without an array of N x M numbers, and its gradient.

Letters: A: width of a head; I: query heads to each key/value head; J: key/value heads; M: positions
that are looked at; O: blocks of queries; P: blocks of keys; R: rows of a block: its queries, each
with I heads; U: width of a head's values; X: queries in a block; Y: keys in one.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from moejax.models.attend.seen import HIDDEN, Seen, find_limit, sees
from moejax.models.attend.seen_blocks import find_seen_blocks, list_blocks
from moejax.runtime import device_mesh

KEYS = 256
"""Keys of a block: its scores then lie in a cache near the core (see docs/benchmarks.md)."""
ROWS = 256
"""Rows of a block, heads of the same keys together ..."""
QUERIES = 32
"""... but at least so many queries, as blocks are skipped by their queries."""
LOWEST = -1e20
"""No score is lower, but those of what is not seen: so it has no weight even where nothing is
seen."""


class Blocks(NamedTuple):
    """One sequence in blocks."""

    q_OJRA: jax.Array
    k_PJYA: jax.Array
    v_PJYU: jax.Array
    of_OX: jax.Array
    at_OX: jax.Array
    of_PY: jax.Array
    at_PY: jax.Array
    limit: jax.Array | int | None
    causal: bool

    def sees(self, o: jax.Array, p: jax.Array) -> jax.Array:
        """``mask_RY`` of a pair of blocks."""
        heads = self.q_OJRA.shape[2] // self.of_OX.shape[1]
        of_R, at_R = (jnp.repeat(x_OX[o], heads) for x_OX in (self.of_OX, self.at_OX))
        return sees(of_R, at_R, self.of_PY[p], self.at_PY[p], self.limit, self.causal)

    def score(self, o: jax.Array, p: jax.Array, scale: float) -> jax.Array:
        """``score_JRY`` of a pair of blocks, float32."""
        score_JRY = _multiply("JRA,JYA->JRY", self.q_OJRA[o], self.k_PJYA[p])
        return jnp.where(self.sees(o, p), score_JRY * scale, HIDDEN)

    def find_seen(self) -> jax.Array:
        """``seen_OP``: which blocks of keys the blocks of queries have to look at."""
        of_and_at = (self.of_OX, self.at_OX, self.of_PY, self.at_PY)
        return find_seen_blocks(*of_and_at, self.limit, self.causal)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_blockwise(
    q_BNHA: jax.Array,
    k_BMJA: jax.Array,
    v_BMJU: jax.Array,
    seen: Seen,
    sink_H: jax.Array | None,
    scale: float,
) -> jax.Array:
    """As ``by_form.attend`` (Dao et al. 2022, Algorithm 1; Dao 2023, section 3.1): each row has a
    running maximum and sum, from which the gradient computes its probabilities again.

    Sequences are taken one after another, as each has its own blocks that are not seen.
    """
    return _attend_forward(q_BNHA, k_BMJA, v_BMJU, seen, sink_H, scale)[0]


Saved = tuple[jax.Array, jax.Array, jax.Array, Seen, jax.Array | None, jax.Array, jax.Array]
"""Queries, keys, values, what is seen, sinks, the output and the log-sum-exp of the scores."""


def _attend_forward(
    q_BNHA: jax.Array,
    k_BMJA: jax.Array,
    v_BMJU: jax.Array,
    seen: Seen,
    sink_H: jax.Array | None,
    scale: float,
) -> tuple[jax.Array, Saved]:
    def attend_row(row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return _attend_row(*row, seen=seen, sink_H=sink_H, scale=scale)

    rows = (q_BNHA, k_BMJA, v_BMJU, *_list_seen(seen, len(q_BNHA)))
    y_BNHU, lse_BNH = checkpoint_name(lax.map(attend_row, rows), "attention_heads")
    return y_BNHU, (q_BNHA, k_BMJA, v_BMJU, seen, sink_H, y_BNHU, lse_BNH)


def add_keys(
    carry: tuple[jax.Array, jax.Array, jax.Array],
    score_RY: jax.Array,
    weigh: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A running softmax (Dao et al. 2022, Algorithm 1) with Y more keys, of these scores: the
    largest score so far, the sum over it, and the output, which ``weigh`` makes of the weights of
    the new keys. R stands for all dimensions of queries.
    """
    top_R, sum_R, y_RU = carry
    new_R = jnp.maximum(top_R, score_RY.max(-1))
    p_RY, fade_R = jnp.exp(score_RY - new_R[..., None]), jnp.exp(top_R - new_R)
    more_RU = weigh(p_RY)
    sum_R = sum_R * fade_R + p_RY.sum(-1)
    return new_R, sum_R, y_RU * fade_R[..., None] + more_RU


def _list_seen(seen: Seen, B: int) -> tuple[jax.Array, ...]:
    """Documents and positions of B sequences."""
    given = (seen.of_BN, seen.at_BN, seen.of_BM, seen.at_BM)
    return tuple(jnp.broadcast_to(x, (B, x.shape[1])) for x in given)


def _attend_row(
    q_NHA: jax.Array,
    k_MJA: jax.Array,
    v_MJU: jax.Array,
    *of_and_at: jax.Array,
    seen: Seen,
    sink_H: jax.Array | None,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """The output of one sequence, ``y_NHU``, and the log-sum-exp of its scores, ``lse_NH``."""
    N, H = q_NHA.shape[:2]
    blocks = _cut(q_NHA, k_MJA, v_MJU, of_and_at, seen)
    (_, J, R, _), U = blocks.q_OJRA.shape, v_MJU.shape[-1]
    order_OP, count_O = list_blocks(blocks.find_seen())
    if sink_H is None:
        start = jnp.full((J, R), LOWEST), jnp.zeros((J, R))
    else:  # as a key with this score, and no value
        start = _repeat_heads(sink_H.astype(jnp.float32), J, R), jnp.ones((J, R))

    def attend_block(o: jax.Array) -> tuple[jax.Array, jax.Array]:
        def look(i: jax.Array, carry: tuple) -> tuple:
            p = order_OP[o, i]

            def weigh(p_JRY: jax.Array) -> jax.Array:
                return _multiply("JRY,JYU->JRU", p_JRY, blocks.v_PJYU[p])

            return add_keys(carry, blocks.score(o, p, scale), weigh)

        carry = (*start, jnp.zeros((J, R, U)))
        top_JR, sum_JR, y_JRU = lax.fori_loop(0, count_O[o], look, carry)
        sum_JR = jnp.where(sum_JR > 0, sum_JR, 1)
        y_JRU = (y_JRU / sum_JR[..., None]).astype(v_MJU.dtype)
        return y_JRU, (top_JR + jnp.log(sum_JR))[..., None]

    y_OJRU, lse_OJR1 = lax.map(attend_block, jnp.arange(len(blocks.q_OJRA)))
    return _join_rows(y_OJRU, N, H), _join_rows(lse_OJR1, N, H)[..., 0]


def _attend_backward(
    scale: float, saved: Saved, dy_BNHU: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None]:
    q_BNHA, k_BMJA, v_BMJU, seen, sink_H, y_BNHU, lse_BNH = saved
    delta_BNH = (dy_BNHU.astype(jnp.float32) * y_BNHU).sum(-1)
    rows = (q_BNHA, k_BMJA, v_BMJU, dy_BNHU, lse_BNH, delta_BNH, *_list_seen(seen, len(q_BNHA)))

    def pull_row(row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _pull_row(*row, seen=seen, scale=scale)

    dq_BNHA, dk_BMJA, dv_BMJU = lax.map(pull_row, rows)
    if sink_H is None:
        return dq_BNHA, dk_BMJA, dv_BMJU, None, None
    sunk_BNH = jnp.exp(sink_H - lse_BNH)
    dsink_H = -(sunk_BNH * delta_BNH).sum((0, 1)).astype(sink_H.dtype)
    return dq_BNHA, dk_BMJA, dv_BMJU, None, dsink_H


def _pull_row(
    q_NHA: jax.Array,
    k_MJA: jax.Array,
    v_MJU: jax.Array,
    dy_NHU: jax.Array,
    lse_NH: jax.Array,
    delta_NH: jax.Array,
    *of_and_at: jax.Array,
    seen: Seen,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of one sequence: ``dq_NHA``, ``dk_MJA``, ``dv_MJU``."""
    (N, H, _), (M, J, _) = q_NHA.shape, k_MJA.shape
    blocks = _cut(q_NHA, k_MJA, v_MJU, of_and_at, seen)
    order_PO, count_P = list_blocks(blocks.find_seen().T)
    X = blocks.of_OX.shape[1]
    dy_OJRU = _cut_rows(dy_NHU.astype(blocks.v_PJYU.dtype), J, X)
    lse_OJR, delta_OJR = (_cut_rows(x_NH[..., None], J, X)[..., 0] for x_NH in (lse_NH, delta_NH))

    def pull_block(dq_OJRA: jax.Array, p: jax.Array) -> tuple[jax.Array, tuple]:
        k_JYA, v_JYU = blocks.k_PJYA[p], blocks.v_PJYU[p]

        def pull(i: jax.Array, carry: tuple) -> tuple:
            dq_OJRA, dk_JYA, dv_JYU = carry
            o = order_PO[p, i]
            dy_JRU = dy_OJRU[o]
            p_JRY = jnp.exp(blocks.score(o, p, scale) - lse_OJR[o][..., None])
            dv_JYU += _multiply("JRY,JRU->JYU", p_JRY, dy_JRU)
            dp_JRY = _multiply("JRU,JYU->JRY", dy_JRU, v_JYU)
            ds_JRY = p_JRY * (dp_JRY - delta_OJR[o][..., None]) * scale
            dk_JYA += _multiply("JRY,JRA->JYA", ds_JRY, blocks.q_OJRA[o])
            dq_OJRA = dq_OJRA.at[o].add(_multiply("JRY,JYA->JRA", ds_JRY, k_JYA))
            return dq_OJRA, dk_JYA, dv_JYU

        nothing = jnp.zeros(k_JYA.shape), jnp.zeros(v_JYU.shape)
        dq_OJRA, *of_keys = lax.fori_loop(0, count_P[p], pull, (dq_OJRA, *nothing))
        return dq_OJRA, (of_keys[0].astype(k_MJA.dtype), of_keys[1].astype(v_MJU.dtype))

    dq_OJRA, (dk_PJYA, dv_PJYU) = lax.scan(
        pull_block, jnp.zeros(blocks.q_OJRA.shape), jnp.arange(len(blocks.k_PJYA))
    )
    dq_NHA = _join_rows(dq_OJRA.astype(q_NHA.dtype), N, H)
    return dq_NHA, _join_rows(dk_PJYA, M, J), _join_rows(dv_PJYU, M, J)


attend_blockwise.defvjp(_attend_forward, _attend_backward)


def _multiply(form: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """A product, float32, of numbers in the shorter type of the two."""
    shorter = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    a, b = a.astype(shorter), b.astype(shorter)
    return jnp.einsum(form, a, b, preferred_element_type=jnp.float32)


def choose_sizes(N: int, M: int, I: int) -> tuple[int, int]:  # noqa: E741
    """Queries and keys of a block, so that the last blocks of both are about full."""
    most = max(QUERIES, ROWS // I)
    return math.ceil(N / math.ceil(N / most)), math.ceil(M / math.ceil(M / KEYS))


def _cut(
    q_NHA: jax.Array,
    k_MJA: jax.Array,
    v_MJU: jax.Array,
    of_and_at: tuple[jax.Array, ...],
    seen: Seen,
) -> Blocks:
    (N, H, _), (M, J, _) = q_NHA.shape, k_MJA.shape
    X, Y = choose_sizes(N, M, H // J)
    of_N, at_N, of_M, at_M = of_and_at
    if device_mesh.platform() == "cpu":  # which multiplies what is shorter as float32, each time
        q_NHA, k_MJA, v_MJU = (x.astype(jnp.float32) for x in (q_NHA, k_MJA, v_MJU))
    return Blocks(
        q_OJRA=_cut_rows(q_NHA, J, X),
        k_PJYA=_cut_rows(k_MJA, J, Y),
        v_PJYU=_cut_rows(v_MJU, J, Y),
        # What fills blocks up is of documents that are not there.
        of_OX=_fill(of_N, X, -1).reshape(-1, X),
        at_OX=_fill(at_N, X).reshape(-1, X),
        of_PY=_fill(of_M, Y, -2).reshape(-1, Y),
        at_PY=_fill(at_M, Y).reshape(-1, Y),
        limit=find_limit(seen),
        causal=seen.causal,
    )


def _fill(x_N: jax.Array, X: int, filler: int = 0) -> jax.Array:
    """Positions up to a multiple of X."""
    widths = [(0, -len(x_N) % X)] + [(0, 0)] * (x_N.ndim - 1)
    return jnp.pad(x_N, widths, constant_values=filler)


def _cut_rows(x_NHA: jax.Array, J: int, X: int) -> jax.Array:
    """Blocks of X positions, ``x_OJRA``: first those that differ in their keys, then positions with
    the heads of the same keys.
    """
    H, A = x_NHA.shape[1:]
    x_OXJIA = _fill(x_NHA, X).reshape(-1, X, J, H // J, A)
    return x_OXJIA.swapaxes(1, 2).reshape(-1, J, X * H // J, A)


def _join_rows(x_OJRA: jax.Array, N: int, H: int) -> jax.Array:
    """Blocks as the first N positions of H heads again, ``x_NHA``."""
    O, J, _, A = x_OJRA.shape  # noqa: E741
    x_OJXIA = x_OJRA.reshape(O, J, -1, H // J, A)
    return x_OJXIA.swapaxes(1, 2).reshape(-1, H, A)[:N]


def _repeat_heads(x_H: jax.Array, J: int, R: int) -> jax.Array:
    """A number of each head for the rows of a block, ``x_JR``."""
    x_JI = x_H.reshape(J, 1, -1)
    return jnp.broadcast_to(x_JI, (J, R // x_JI.shape[-1], x_JI.shape[-1])).reshape(J, R)
