"""Softmax attention to keys and values that are read where they lie in a cache.

On CPUs, XLA copies what is cut out of the cache in front of a product, and converts all of it where
it is shorter than float32; and everywhere what is put together from pages. So a large cache is read
some slots at a time.

Letters: A: width of a head; I: query heads to each key/value head; J: key/value heads; M: slots of
the cache; U: width of a head's values; X: slots that are read at a time.
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax

from moejax.config.attention import AttentionForm
from moejax.models.attend.blockwise import LOWEST, add_keys
from moejax.models.attend.by_form import attend
from moejax.models.attend.case import describe
from moejax.models.attend.choose_form import FEW_QUERIES, choose_form
from moejax.models.attend.dense import normalise
from moejax.models.attend.seen import HIDDEN, Seen, make_mask
from moejax.models.kv_cache import Read
from moejax.moe import lying
from moejax.runtime import device_mesh


def attend_to_cache(
    q_BNHA: jax.Array,
    read: Read,
    seen: Seen,
    sink_H: jax.Array | None,
    scale: float,
    form: AttentionForm = "auto",
) -> jax.Array:
    """``y_BNHU`` as by ``attend``, without a gradient; ``read`` gives keys and values of slots. The
    ``form`` is that of long texts: where few tokens are added to one, ``auto`` is taken.
    """
    form = "auto" if q_BNHA.shape[1] < FEW_QUERIES else form
    M = seen.of_BM.shape[1]
    one_slot = jax.eval_shape(lambda: read(0, 1))
    slot = max(x.size for x in one_slot)
    on_cpu, alone = device_mesh.platform() == "cpu", device_mesh.devices() == 1
    k_BMJA, v_BMJU = jax.eval_shape(lambda: read(0, M))
    chosen, _ = choose_form(form, describe(q_BNHA, k_BMJA, v_BMJU, seen, sink_H))
    in_blocks = (alone if on_cpu else seen.page > 1) and M * slot >= lying.SMALL
    B, N, H, _ = q_BNHA.shape
    if in_blocks and chosen == "blockwise" and 4 * slot >= B * N * H:
        return _attend_once(q_BNHA, read, seen, sink_H, scale)
    if not in_blocks or chosen != "dense":
        k_BMJA, v_BMJU = read(0, M)
        return attend(q_BNHA, k_BMJA, v_BMJU, seen, sink_H, scale, form)
    return _attend_twice(q_BNHA, read, seen, sink_H, scale)


def _attend_twice(
    q_BNHA: jax.Array, read: Read, seen: Seen, sink_H: jax.Array | None, scale: float
) -> jax.Array:
    """As above for few queries, whose scores are all in memory: keys are read, and then values."""
    on_cpu, one_slot = device_mesh.platform() == "cpu", jax.eval_shape(lambda: read(0, 1))
    slot, M = max(x.size for x in one_slot), seen.of_BM.shape[1]
    # A block is there twice: products turn it so that heads come first.
    most = lying.BLOCK if on_cpu else lying.LARGE_BLOCK * device_mesh.token_devices()
    blocks = math.ceil(2 * M * slot / most)
    X = math.ceil(math.ceil(M / blocks) / seen.page) * seen.page
    blocks = math.ceil(M / X)
    (B, N, H, A), (_, _, J, U) = q_BNHA.shape, one_slot[1].shape
    q_BNJIA = widen(q_BNHA.reshape(B, N, J, -1, A), on_cpu)

    def start(i: jax.Array) -> jax.Array:
        return jnp.minimum(i * X, M - X)  # the last block may overlap with the one before

    def put(i: jax.Array, score_BJINM: jax.Array) -> jax.Array:
        k_BXJA, _ = read(start(i), X)
        score_BJINX = jnp.einsum(
            "BNJIA,BXJA->BJINX",
            q_BNJIA,
            widen(k_BXJA, on_cpu),
            preferred_element_type=jnp.float32,
        )
        return lax.dynamic_update_slice_in_dim(score_BJINM, score_BJINX, start(i), 4)

    score_BJINM = jnp.zeros((B, J, H // J, N, M), jnp.float32)
    score_BJINM = lax.fori_loop(0, blocks, put, score_BJINM)
    p_BJINM, _ = normalise(score_BJINM, make_mask(seen), sink_H, scale)

    def add(i: jax.Array, y_BNJIU: jax.Array) -> jax.Array:
        _, v_BXJU = read(start(i), X)
        p_BJINX = lax.dynamic_slice_in_dim(p_BJINM, start(i), X, 4)
        p_BJINX = jnp.where(start(i) + jnp.arange(X) >= i * X, p_BJINX, 0)
        v_BXJU = widen(v_BXJU, on_cpu)
        return y_BNJIU + jnp.einsum(
            "BJINX,BXJU->BNJIU",
            p_BJINX.astype(v_BXJU.dtype),
            v_BXJU,
            preferred_element_type=jnp.float32,
        )

    y_BNJIU = lax.fori_loop(0, blocks, add, jnp.zeros((B, N, J, H // J, U), jnp.float32))
    return y_BNJIU.reshape(B, N, H, U)


def _attend_once(
    q_BNHA: jax.Array, read: Read, seen: Seen, sink_H: jax.Array | None, scale: float
) -> jax.Array:
    """As above for a part of a long text, of which not even all scores are in memory: with a
    running softmax, keys and values are read once, up to the last one that there is.
    """
    on_cpu = device_mesh.platform() == "cpu"
    one_k, one_v = jax.eval_shape(lambda: read(0, 1))
    (B, N, H, A), (J, U), M = q_BNHA.shape, one_v.shape[2:], seen.of_BM.shape[1]
    most = lying.LARGE_BLOCK * device_mesh.token_devices()
    X = min(M, max(1, most // max(one_k.size, one_v.size) // seen.page) * seen.page)
    q_BNJIA = widen(q_BNHA.reshape(B, N, J, -1, A), on_cpu)
    rows = (B, J, H // J, N)

    def look(i: jax.Array, carry: tuple) -> tuple:
        start = jnp.minimum(i * X, M - X)  # the last block may overlap with the one before
        k_BXJA, v_BXJU = (widen(x, on_cpu) for x in read(start, X))
        score_BJINX = jnp.einsum(
            "BNJIA,BXJA->BJINX", q_BNJIA, k_BXJA, preferred_element_type=jnp.float32
        )
        of_BX, at_BX = (lax.dynamic_slice_in_dim(x, start, X, 1) for x in (seen.of_BM, seen.at_BM))
        of_BX = jnp.where(start + jnp.arange(X) >= i * X, of_BX, -1)
        mask_B1NX = make_mask(replace(seen, of_BM=of_BX, at_BM=at_BX))
        score_BJINX = jnp.where(mask_B1NX[:, None], score_BJINX * scale, HIDDEN)

        def weigh(p_BJINX: jax.Array) -> jax.Array:
            return jnp.einsum(
                "BJINX,BXJU->BJINU",
                p_BJINX.astype(v_BXJU.dtype),
                v_BXJU,
                preferred_element_type=jnp.float32,
            )

        return add_keys(carry, score_BJINX, weigh)

    if sink_H is None:
        top_BJIN, sum_BJIN = jnp.full(rows, LOWEST), jnp.zeros(rows)
    else:  # as a key with this score, and no value
        sink_JI1 = sink_H.astype(jnp.float32).reshape(J, -1, 1)
        top_BJIN, sum_BJIN = jnp.broadcast_to(sink_JI1, rows), jnp.ones(rows)
    last = jnp.where(seen.of_BM > 0, jnp.arange(1, M + 1), 0).max()
    begin = (top_BJIN, sum_BJIN, jnp.zeros((*rows, U)))
    _, sum_BJIN, y_BJINU = lax.fori_loop(0, (last + X - 1) // X, look, begin)
    y_BJINU = y_BJINU / jnp.where(sum_BJIN == 0, 1, sum_BJIN)[..., None]
    return y_BJINU.transpose(0, 3, 1, 2, 4).reshape(B, N, H, U)


def widen(x: jax.Array, on_cpu: bool) -> jax.Array:
    """Float32 on CPUs, which multiply nothing shorter."""
    return x.astype(jnp.float32) if on_cpu else x
