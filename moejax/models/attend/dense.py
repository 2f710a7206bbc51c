"""Softmax attention with all scores at once, and its gradient.

Letters: A: width of a head; I: query heads to each key/value head; J: key/value heads; M: positions
that are looked at; U: width of a head's values.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moejax.models.attend.seen import HIDDEN


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_dense(
    q_BNHA: jax.Array,
    k_BMJA: jax.Array,
    v_BMJU: jax.Array,
    mask_B1NM: jax.Array,
    sink_H: jax.Array | None,
    scale: float,
) -> jax.Array:
    """As ``by_form.attend``, with a mask.

    The gradient is written out because XLA's own sums over whole rows of the probabilities; that
    sum is also the product of the output and its gradient (Dao et al. 2022, Eq. 4 of appendix B),
    which is N / U times shorter.
    """
    return _attend_forward(q_BNHA, k_BMJA, v_BMJU, mask_B1NM, sink_H, scale)[0]


Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array]
"""Queries, keys, values, probabilities, what the sinks took of them, and the output."""


def _attend_forward(
    q_BNHA: jax.Array,
    k_BMJA: jax.Array,
    v_BMJU: jax.Array,
    mask_B1NM: jax.Array,
    sink_H: jax.Array | None,
    scale: float,
) -> tuple[jax.Array, Saved]:
    B, N, H, A = q_BNHA.shape
    J = k_BMJA.shape[2]
    q_BNJIA = q_BNHA.reshape(B, N, J, -1, A)
    score_BJINM = jnp.einsum(
        "BNJIA,BMJA->BJINM", q_BNJIA, k_BMJA, preferred_element_type=jnp.float32
    )
    p_BJINM, sunk_BJIN1 = normalise(score_BJINM, mask_B1NM, sink_H, scale)
    p_BJINM = p_BJINM.astype(v_BMJU.dtype)
    y_BNHU = jnp.einsum("BJINM,BMJU->BNJIU", p_BJINM, v_BMJU).reshape(B, N, H, -1)
    y_BNHU = checkpoint_name(y_BNHU, "attention_heads")
    return y_BNHU, (q_BNJIA, k_BMJA, v_BMJU, p_BJINM, sunk_BJIN1, y_BNHU)


def normalise(
    score_BJINM: jax.Array, mask_B1NM: jax.Array, sink_H: jax.Array | None, scale: float
) -> tuple[jax.Array, jax.Array | None]:
    """The probabilities, and what sinks took of them."""
    score_BJINM = jnp.where(mask_B1NM[:, None], score_BJINM * scale, HIDDEN)
    if sink_H is None:
        return jax.nn.softmax(score_BJINM), None
    B, J, I, N, _ = score_BJINM.shape  # noqa: E741
    sink_BJIN1 = jnp.broadcast_to(sink_H.reshape(J, -1, 1, 1), (B, J, I, N, 1))
    p_BJINM = jax.nn.softmax(jnp.concatenate([score_BJINM, sink_BJIN1], -1))
    return p_BJINM[..., :-1], p_BJINM[..., -1:]


def _attend_backward(
    scale: float, saved: Saved, dy_BNHU: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None]:
    q_BNJIA, k_BMJA, v_BMJU, p_BJINM, sunk_BJIN1, y_BNHU = saved
    B, N, J, _, A = q_BNJIA.shape
    dy_BNJIU = dy_BNHU.reshape(B, N, J, -1, dy_BNHU.shape[-1])
    delta_BNJI = (dy_BNHU * y_BNHU).astype(jnp.float32).sum(-1).reshape(B, N, J, -1)
    delta_BJIN1 = delta_BNJI.transpose(0, 2, 3, 1)[..., None]
    dv_BMJU = jnp.einsum("BJINM,BNJIU->BMJU", p_BJINM, dy_BNJIU)
    dp_BJINM = jnp.einsum("BNJIU,BMJU->BJINM", dy_BNJIU, v_BMJU, preferred_element_type=jnp.float32)
    ds_BJINM = (p_BJINM * (dp_BJINM - delta_BJIN1) * scale).astype(v_BMJU.dtype)
    dq_BNHA = jnp.einsum("BJINM,BMJA->BNJIA", ds_BJINM, k_BMJA).reshape(B, N, -1, A)
    dk_BMJA = jnp.einsum("BJINM,BNJIA->BMJA", ds_BJINM, q_BNJIA)
    dsink_H = None if sunk_BJIN1 is None else -(sunk_BJIN1 * delta_BJIN1).sum((0, 3, 4)).reshape(-1)
    return dq_BNHA, dk_BMJA, dv_BMJU, None, dsink_H


attend_dense.defvjp(_attend_forward, _attend_backward)
