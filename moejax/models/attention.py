"""Causal self-attention with rotary positions, grouped keys and values, and packed documents.

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; X: all heads side
by side.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.attend.by_form import attend_to_kept
from moejax.models.attend.to_cache import attend_to_cache
from moejax.models.context import Context
from moejax.models.heads import add_bias, join_heads, project, split_heads
from moejax.models.kv_cache import Cache, extend_cache
from moejax.models.norm import make_norm
from moejax.models.rotary import rotate
from moejax.moe.parameters import zeros


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
        config, settings = self.config, self.config.attention
        H, J, A = config.num_heads, config.key_value_heads, config.plain_head_size
        q_BNHA = self._turn("query_norm", self._project("query", x_BND, H * A), H, context)
        k_BMJA = self._turn("key_norm", self._project("key", x_BND, J * A), J, context)
        v_BMJA = split_heads(self._project("value", x_BND, J * A), J)
        sink_H = jnp.asarray(zeros(self, "sink_H", (H,))) if settings.sinks else None
        scale = settings.scale or A**-0.5
        rest = (context["seen"], sink_H, scale, settings.form)
        if cache:
            new = {"k_LBMJA": k_BMJA, "v_LBMJA": v_BMJA}
            cache, read = extend_cache(cache, new, layer, context["slots"])
            y_BNHA = attend_to_cache(q_BNHA, read, *rest)
        else:
            y_BNHA = attend_to_kept(q_BNHA, (k_BMJA, v_BMJA), *rest)
        y_BNHA = y_BNHA.astype(x_BND.dtype)  # the cache's may be another type
        bias = settings.bias == "all"
        return join_heads(self, y_BNHA, x_BND, bias, settings.output_gate), cache

    def _project(self, name: str, x_BND: jax.Array, width: int) -> jax.Array:
        """Queries, keys or values of all heads, ``x_BNX``."""
        x_BNX = project(self, f"w_{name}_DX", x_BND, width)
        x_BNX = add_bias(self, f"b_{name}_X", x_BNX, self.config.attention.bias != "none")
        return checkpoint_name(x_BNX, "queries_keys_values")  # before norms, whose gradients ask

    def _turn(self, name: str, x_BNX: jax.Array, count: int, context: Context) -> jax.Array:
        """Queries or keys as so many heads, ``x_BNHA``, at their positions; normalised before or
        after, where the model does that.
        """
        if self.config.attention.qk_norm_place == "before_rotation":
            return rotate(self._norm(name, x_BNX, count), context["cos"], context["sin"])
        x_BNHA = rotate(split_heads(x_BNX, count), context["cos"], context["sin"])
        return self._norm(name, x_BNHA.reshape(x_BNX.shape), count)

    def _norm(self, name: str, x_BNX: jax.Array, count: int) -> jax.Array:
        """Queries or keys as so many heads, ``x_BNHA``; normalised, where the model does that."""
        if not self.config.qk_norm:
            return split_heads(x_BNX, count)
        norm = make_norm(self.config, name)
        if self.config.attention.qk_norm_over == "head":
            return norm(split_heads(x_BNX, count))
        return split_heads(norm(x_BNX), count)
