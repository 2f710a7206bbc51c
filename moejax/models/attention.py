"""Causal self-attention with rotary positions, grouped keys and values, and packed documents.

Letters: A: width of a head; I: query heads to each key/value head; J: key/value heads; M: positions
that are looked at; U: width of a head's values; X: all heads side by side.
"""

from functools import partial
from typing import TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.kv_cache import Cache, extended
from moejax.models.rotary import rotate
from moejax.moe.parameters import weight, zeros
from moejax.runtime import partition


class Context(TypedDict, total=False):
    """What all layers look at."""

    real_BN: jax.Array
    token_BN: jax.Array | None
    cos: jax.Array
    sin: jax.Array
    mask_B1NM: jax.Array
    distance_B1NM: jax.Array
    """Where layers have windows."""
    start: jax.Array
    """With a cache: its first free slot."""


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, in float32 (Zhang & Sennrich 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = self.param("scale_D", nn.initializers.ones, x.shape[-1:], jnp.float32)
        x32 = x.astype(jnp.float32)
        mean_square = jnp.square(x32).mean(-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + self.epsilon) * scale_D).astype(x.dtype)


def may_see(
    segments_BN: jax.Array, positions_BN: jax.Array, of_BM: jax.Array, at_BM: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``mask_B1NM``: a position sees itself and what came before it in its own document; and how
    far apart they are, ``distance_B1NM``. ``of_BM`` and ``at_BM`` are the keys' documents and
    positions.
    """
    distance_BNM = positions_BN[:, :, None] - at_BM[:, None, :]
    same_BNM = segments_BN[:, :, None] == of_BM[:, None, :]
    return (same_BNM & (distance_BNM >= 0))[:, None], distance_BNM[:, None]


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(
    q_BNHA: jax.Array,
    k_BMJA: jax.Array,
    v_BMJU: jax.Array,
    mask_B1NM: jax.Array,
    sink_H: jax.Array | None,
    scale: float,
) -> jax.Array:
    """Softmax attention of H query heads over J key/value heads, H a multiple of J: ``y_BNHU``.

    Scores and probabilities are float32. ``sink_H`` are logits that take a part of the probability
    (gpt-oss). Its gradient is written out because XLA's own sums over whole rows of the
    probabilities; that sum is also the product of the output and its gradient (Dao et al. 2022,
    Eq. 4 of appendix B), which is N / U times shorter.
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
    score_BJINM = jnp.where(mask_B1NM[:, None], score_BJINM * scale, -1e30)
    sunk_BJIN1 = None
    if sink_H is None:
        p_BJINM = jax.nn.softmax(score_BJINM)
    else:
        sink_BJIN1 = jnp.broadcast_to(sink_H.reshape(J, -1, 1, 1), (B, J, H // J, N, 1))
        p_BJINM = jax.nn.softmax(jnp.concatenate([score_BJINM, sink_BJIN1], -1))
        p_BJINM, sunk_BJIN1 = p_BJINM[..., :-1], p_BJINM[..., -1:]
    p_BJINM = p_BJINM.astype(v_BMJU.dtype)
    y_BNHU = jnp.einsum("BJINM,BMJU->BNJIU", p_BJINM, v_BMJU).reshape(B, N, H, -1)
    return y_BNHU, (q_BNJIA, k_BMJA, v_BMJU, p_BJINM, sunk_BJIN1, y_BNHU)


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


attend.defvjp(_attend_forward, _attend_backward)


def biased(module: nn.Module, name: str, x_BNX: jax.Array, there: bool) -> jax.Array:
    """``x_BNX`` plus a bias parameter, where there is one."""
    return x_BNX + zeros(module, name, x_BNX.shape[-1:]).astype(x_BNX.dtype) if there else x_BNX


class Attention(nn.Module):
    """``(x_BND, context, cache, layer) -> (y_BND, cache)``, with J key/value heads for H query
    heads. Without a cache (``{}``) positions see each other; with one they are written into it
    first, at ``layer``, and see all that is there.
    """

    config: ModelConfig
    layout: MeshConfig = MeshConfig()

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, context: Context, cache: Cache, layer: jax.Array | int
    ) -> tuple[jax.Array, Cache]:
        config, settings, (B, N, D) = self.config, self.config.attention, x_BND.shape
        H, J, A = config.num_heads, config.key_value_heads, config.plain_head_size

        def heads(name: str, count: int) -> jax.Array:
            w_DX = weight(self, f"w_{name}_DX", (D, count * A), x_BND.dtype)
            return biased(self, f"b_{name}_X", x_BND @ w_DX, settings.bias != "none")

        def normed(x_BNX: jax.Array, name: str, count: int) -> jax.Array:
            over_head = settings.qk_norm_over == "head"
            norm = RMSNorm(config.norm_epsilon, name=name) if config.qk_norm else lambda x: x
            x_BNX = x_BNX if over_head else norm(x_BNX)
            x_BNHA = partition.pin(x_BNX.reshape(B, N, count, A), "heads_BNHA")
            return norm(x_BNHA) if over_head else x_BNHA

        q_BNHA = normed(heads("query", H), "query_norm", H)
        k_BMJA = normed(heads("key", J), "key_norm", J)
        v_BMJA = partition.pin(heads("value", J).reshape(B, N, J, A), "heads_BNHA")
        q_BNHA = rotate(q_BNHA, context["cos"], context["sin"])
        k_BMJA = rotate(k_BMJA, context["cos"], context["sin"])
        if cache:
            new = {"k_LBMJA": k_BMJA, "v_LBMJA": v_BMJA}
            cache, (k_BMJA, v_BMJA) = extended(cache, new, layer, context["start"])
        sink_H = zeros(self, "sink_H", (H,)) if settings.sinks else None
        scale = settings.scale or A**-0.5
        y_BNHA = attend(q_BNHA, k_BMJA, v_BMJA, context["mask_B1NM"], sink_H, scale)
        y_BNX = partition.pin(y_BNHA, "heads_BNHA").reshape(B, N, H * A)
        y_BND = y_BNX @ weight(self, "w_out_XD", (H * A, D), x_BND.dtype)
        y_BND = biased(self, "b_out_D", y_BND, settings.bias == "all")
        return partition.pin(y_BND, "tokens_BND"), cache
