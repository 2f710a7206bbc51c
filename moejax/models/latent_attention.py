"""Multi-head latent attention (DeepSeek-V2, 2024, section 2.1).

Letters: A: width of a head; M: positions that are looked at; R: width of a latent vector; U: width
of a head's values; X: all heads side by side.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.attend.by_form import attend_to_kept
from moejax.models.attend.over_context import OF_TOKENS
from moejax.models.attend.to_cache import attend_to_cache
from moejax.models.context import Context
from moejax.models.heads import join_heads, project, split_heads
from moejax.models.kv_cache import Cache, Read, extend_cache
from moejax.models.norm import RMSNorm
from moejax.models.rotary import rotate
from moejax.moe.adapted import as_array
from moejax.moe.parameters import weight

keep = partial(checkpoint_name, name="queries_keys_values")
EPSILON = 1e-6
"""Of the norms of latent vectors, whatever that of the others is: as in DeepSeek's code."""


class LatentAttention(nn.Module):
    """As ``Attention``, but keys and values of all heads are made from one latent vector of R
    numbers and one rotated key a position (Eq. 9-19), and only these are kept in the cache.

    With a cache, heads meet the latent vectors themselves: what would make keys and values of them
    is multiplied into queries and outputs instead (section 2.1.2, end).
    """

    config: ModelConfig
    layout: MeshConfig = MeshConfig()

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, context: Context, cache: Cache, layer: jax.Array | int
    ) -> tuple[jax.Array, Cache]:
        config, settings = self.config, self.config.attention
        H, R, U = config.num_heads, settings.kv_rank, config.value_head_size
        assert R is not None  # else it is not latent attention
        plain, turned = config.plain_head_size, config.rotary_size
        dtype, scale = x_BND.dtype, settings.scale or config.query_head_size**-0.5

        q_BNHA = split_heads(self._query(x_BND), H)
        plain_BNHA, turned_BNHA = q_BNHA[..., :plain], q_BNHA[..., plain:]
        turned_BNHA = rotate(turned_BNHA, context["cos"], context["sin"])

        both_BNX = keep(project(self, "w_latent_DX", x_BND, R + turned))
        c_BMR = RMSNorm(EPSILON, name="latent_norm")(both_BNX[..., :R])
        key_BM1A = rotate(both_BNX[..., None, R:], context["cos"], context["sin"])
        up_RX = as_array(weight(self, "w_latent_up_RX", (R, H * (plain + U)), dtype), dtype)
        up_RHX = up_RX.reshape(R, H, plain + U)
        key_RHA, value_RHU = up_RHX[..., :plain], up_RHX[..., plain:]

        rest = (context["seen"], None, scale, settings.form)
        if cache:
            new = {"c_LBMR": c_BMR, "key_LBM1A": key_BM1A}
            cache, read = extend_cache(cache, new, layer, context["slots"])
            q_BNHR = jnp.einsum("BNHA,RHA->BNHR", plain_BNHA, key_RHA)
            q_BNHX = jnp.concatenate([q_BNHR, turned_BNHA], -1)
            y_BNHR = attend_to_cache(q_BNHX, partial(_read_heads, read), *rest)
            y_BNHR = y_BNHR.astype(dtype)
            y_BNHU = jnp.einsum("BNHR,RHU->BNHU", y_BNHR, value_RHU)
        else:
            q_BNHA = jnp.concatenate([plain_BNHA, turned_BNHA], -1)
            kept, made_of = (c_BMR, key_BM1A), (key_RHA, value_RHU)
            lie = (OF_TOKENS, P(None, "model"))
            y_BNHU = attend_to_kept(
                q_BNHA, kept, *rest, weights=made_of, make_heads=_make_heads, lie=lie
            )
        return join_heads(self, y_BNHU, x_BND, False, settings.output_gate), cache

    def _query(self, x_BND: jax.Array) -> jax.Array:
        """The queries of all heads, ``q_BNX``, through a latent vector of their own or not."""
        config, rank = self.config, self.config.attention.query_rank
        X = config.num_heads * config.query_head_size
        if rank is None:
            return keep(project(self, "w_query_DX", x_BND, X))
        c_BNR = keep(project(self, "w_query_down_DR", x_BND, rank))
        c_BNR = RMSNorm(EPSILON, name="query_norm")(c_BNR)
        return keep(project(self, "w_query_up_RX", c_BNR, X))


def _make_heads(
    kept: tuple[jax.Array, jax.Array], made_of: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Keys and values of all heads, from latent vectors and the key that heads share."""
    (c_BMR, key_BM1A), (key_RHA, value_RHU) = kept, made_of
    k_BMHA = keep(jnp.einsum("BMR,RHA->BMHA", c_BMR, key_RHA))
    key_BMHA = jnp.broadcast_to(key_BM1A, (*k_BMHA.shape[:3], key_BM1A.shape[-1]))
    v_BMHU = keep(jnp.einsum("BMR,RHU->BMHU", c_BMR, value_RHU))
    return jnp.concatenate([k_BMHA, key_BMHA], -1), v_BMHU


def _read_heads(read: Read, first: Any, count: int) -> list[jax.Array]:
    """Keys and values of the one head that all share: latent vectors with the rotated key, or
    without.
    """
    c_BMR, key_BM1A = read(first, count)
    c_BM1R = c_BMR[:, :, None]
    return [jnp.concatenate([c_BM1R, key_BM1A], -1), c_BM1R]
