"""Causal self-attention with rotary positions, grouped keys and values, and packed documents."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax import mesh
from moejax.config import MeshConfig, ModelConfig
from moejax.layer import weight


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, in float32 (Zhang & Sennrich 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = self.param("scale_D", nn.initializers.ones, x.shape[-1:], jnp.float32)
        x32 = x.astype(jnp.float32)
        mean_square = jnp.square(x32).mean(-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + self.epsilon) * scale_D).astype(x.dtype)


def rotary(positions_BN: jax.Array, head_size: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and signed sines ``[B, N, 1, 2, A/2]`` (float32) of the rotary embedding (Su et al.
    2021).
    """
    frequency = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angle = positions_BN[..., None, None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([cos, cos], -2), jnp.concatenate([-sin, sin], -2)


def rotate(x_BNHA: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn each pair (x_i, x_{i + A/2}) of a head by its position's angle."""
    pairs = x_BNHA.astype(jnp.float32).reshape(*x_BNHA.shape[:-1], 2, -1)
    turned = pairs * cos + jnp.flip(pairs, -2) * sin
    return turned.astype(x_BNHA.dtype).reshape(x_BNHA.shape)


def document_mask(segments_BN: jax.Array) -> jax.Array:
    """``mask_B1NN``: a position sees itself and what came before it in its own document."""
    N = segments_BN.shape[1]
    same_BNN = segments_BN[:, :, None] == segments_BN[:, None, :]
    return (same_BNN & jnp.tri(N, dtype=bool))[:, None]


@jax.custom_vjp
def attend(
    q_BNHA: jax.Array, k_BNJA: jax.Array, v_BNJA: jax.Array, mask_B1NN: jax.Array
) -> jax.Array:
    """Softmax attention of H query heads over J key/value heads, H a multiple of J.

    Scores and probabilities are float32. Its gradient is written out because XLA's own sums over
    whole rows of the probabilities; that sum is also the product of the output and its gradient
    (Dao et al. 2022, Eq. 4 of appendix B), which is N / A times shorter.
    """
    return _attend_forward(q_BNHA, k_BNJA, v_BNJA, mask_B1NN)[0]


def _attend_forward(q_BNHA, k_BNJA, v_BNJA, mask_B1NN):
    q_BNJIA = q_BNHA.reshape(*k_BNJA.shape[:3], -1, k_BNJA.shape[3])
    score_BJINM = jnp.einsum(
        "BNJIA,BMJA->BJINM", q_BNJIA, k_BNJA, preferred_element_type=jnp.float32
    )
    score_BJINM = jnp.where(mask_B1NN[:, None], score_BJINM * q_BNHA.shape[-1] ** -0.5, -1e30)
    p_BJINM = jax.nn.softmax(score_BJINM).astype(v_BNJA.dtype)
    y_BNHA = jnp.einsum("BJINM,BMJA->BNJIA", p_BJINM, v_BNJA).reshape(q_BNHA.shape)
    return y_BNHA, (q_BNJIA, k_BNJA, v_BNJA, p_BJINM, y_BNHA)


def _attend_backward(saved, dy_BNHA):
    q_BNJIA, k_BNJA, v_BNJA, p_BJINM, y_BNHA = saved
    dy_BNJIA = dy_BNHA.reshape(q_BNJIA.shape)
    product_BNHA = (dy_BNHA * y_BNHA).astype(jnp.float32)
    delta_BNJI = product_BNHA.sum(-1).reshape(q_BNJIA.shape[:4])
    dv_BNJA = jnp.einsum("BJINM,BNJIA->BMJA", p_BJINM, dy_BNJIA)
    dp_BJINM = jnp.einsum("BNJIA,BMJA->BJINM", dy_BNJIA, v_BNJA, preferred_element_type=jnp.float32)
    dp_BJINM -= delta_BNJI.transpose(0, 2, 3, 1)[..., None]
    scale = q_BNJIA.shape[-1] ** -0.5
    ds_BJINM = (p_BJINM * dp_BJINM * scale).astype(v_BNJA.dtype)
    dq_BNHA = jnp.einsum("BJINM,BMJA->BNJIA", ds_BJINM, k_BNJA).reshape(dy_BNHA.shape)
    dk_BNJA = jnp.einsum("BJINM,BNJIA->BMJA", ds_BJINM, q_BNJIA)
    return dq_BNHA, dk_BNJA, dv_BNJA, None


attend.defvjp(_attend_forward, _attend_backward)


class Attention(nn.Module):
    """``(x_BND, mask_B1NN, cos, sin) -> y_BND``, with J key/value heads for H query heads."""

    config: ModelConfig
    layout: MeshConfig = MeshConfig()

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, mask_B1NN: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> jax.Array:
        config, (B, N, D) = self.config, x_BND.shape
        H, J, A = config.num_heads, config.key_value_heads, config.attention_head_size

        def heads(name: str, count: int) -> jax.Array:
            w_DX = weight(self, name, (D, count * A), x_BND.dtype)
            return mesh.pin((x_BND @ w_DX).reshape(B, N, count, A), "heads_BNHA")

        q_BNHA, k_BNJA = heads("w_query_DX", H), heads("w_key_DX", J)
        v_BNJA = heads("w_value_DX", J)
        if config.qk_norm:
            q_BNHA = RMSNorm(config.norm_epsilon, name="query_norm")(q_BNHA)
            k_BNJA = RMSNorm(config.norm_epsilon, name="key_norm")(k_BNJA)
        y_BNHA = attend(rotate(q_BNHA, cos, sin), rotate(k_BNJA, cos, sin), v_BNJA, mask_B1NN)
        w_XD = weight(self, "w_out_XD", (H * A, D), x_BND.dtype)
        y_BNHA = mesh.pin(y_BNHA, "heads_BNHA")
        return mesh.pin(y_BNHA.reshape(B, N, H * A) @ w_XD, "tokens_BND")
