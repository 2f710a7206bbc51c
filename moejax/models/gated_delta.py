"""Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024) as a layer in attention's place: its cost grows
with the length of a text, not with the square of it.

Letters: A: width of a query or key; J: key heads; U: width of a value; W: positions that the short
convolution looks at; X: all heads side by side.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.models.context import Context
from moejax.models.delta_rule import DeltaInput, in_chunks, step_by_step
from moejax.models.heads import join_heads, project, split_heads
from moejax.models.kv_cache import Cache
from moejax.models.norm import RMSNorm
from moejax.models.short_convolution import convolve, convolve_on
from moejax.moe.parameters import matrix

STEPS = (0.001, 0.1)
"""Bounds of the step at the beginning, which multiplies the rate of the decay."""
RATES = (1.0, 16.0)
"""Bounds of the rate at the beginning."""


class GatedDelta(nn.Module):
    """``(x_BND, context, cache, layer) -> (y_BND, cache)``, as ``Attention``; the cache has a
    memory for each value head, and the inputs that the convolutions go on from.

    Queries, keys and values go through a short convolution and SiLU; queries and keys are made
    unit vectors; what is read from the memory is normed in each head and gated (section 3.4). The
    memory and its arithmetic are float32.
    """

    config: ModelConfig
    layout: MeshConfig = MeshConfig()

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, context: Context, cache: Cache, layer: jax.Array | int
    ) -> tuple[jax.Array, Cache]:
        sizes, real_BN1 = self.config.delta_sizes, context["real_BN"][..., None]
        J, H, A, U = sizes.key_heads, sizes.value_heads, sizes.key_size, sizes.value_size
        mixed = {}
        for name, width in (("query", J * A), ("key", J * A), ("value", H * U)):
            mixed[name], cache = self._convolve(name, x_BND, width, context, cache, layer)
        gate_BNHU = split_heads(project(self, "w_gate_DX", x_BND, H * U), H)
        beta_BNH = jax.nn.sigmoid(project(self, "w_beta_DH", x_BND, H).astype(jnp.float32))
        log_decay_BNH = self._decay(x_BND, H)
        given = DeltaInput(
            q_BNJA=unit(split_heads(mixed["query"], J)) * A**-0.5,
            k_BNJA=unit(split_heads(mixed["key"], J)),
            v_BNHU=split_heads(mixed["value"], H),
            log_decay_BNH=jnp.where(real_BN1, log_decay_BNH, 0),
            beta_BNH=jnp.where(real_BN1, beta_BNH, 0),
            fresh_BN=context["fresh_BN"],
        )
        if cache:
            form = step_by_step if x_BND.shape[1] == 1 else in_chunks
            slots, kept = context["slots"], cache["state_LBHAU"]
            y_BNHU, state_BHAU = form(given, slots.recall(kept, layer))
            cache = cache | {"state_LBHAU": slots.remember(kept, state_BHAU, layer)}
        else:
            y_BNHU, _ = in_chunks(given)
        y_BNHU = RMSNorm(self.config.norm_epsilon, name="head_norm")(y_BNHU.astype(x_BND.dtype))
        y_BNHU = (y_BNHU * jax.nn.silu(gate_BNHU.astype(jnp.float32))).astype(x_BND.dtype)
        return join_heads(self, y_BNHU, x_BND, bias=False, gate=False), cache

    def _convolve(
        self,
        name: str,
        x_BND: jax.Array,
        width: int,
        context: Context,
        cache: Cache,
        layer: jax.Array | int,
    ) -> tuple[jax.Array, Cache]:
        """Queries, keys or values of all heads (float32), after their convolution."""
        x_BNX = project(self, f"w_{name}_DX", x_BND, width)
        shape = (self.config.delta_sizes.convolution, width)
        w_WX = jnp.asarray(matrix(self, f"mix_{name}_WX", shape))
        if not cache:
            return jax.nn.silu(convolve(x_BNX, w_WX, context["fresh_BN"])), cache
        kept, slots, real_BN = f"last_{name}_LBWX", context["slots"], context["real_BN"]
        last_BWX = slots.recall(cache[kept], layer)
        y_BNX, last_BWX = convolve_on(x_BNX, w_WX, context["fresh_BN"], real_BN, last_BWX)
        return jax.nn.silu(y_BNX), cache | {kept: slots.remember(cache[kept], last_BWX, layer)}

    def _decay(self, x_BND: jax.Array, H: int) -> jax.Array:
        """``log_decay_BNH``: minus a rate of each head, times a step that the position chooses. As
        in the authors' code, rates and steps begin as those of Mamba-2 (Dao & Gu 2024).
        """
        rate_H = jnp.exp(jnp.asarray(self.param("log_rate_H", draw_log_rates, (H,))))
        bias_H = jnp.asarray(self.param("step_bias_H", draw_step_biases, (H,)))
        step_BNH = project(self, "w_step_DH", x_BND, H).astype(jnp.float32) + bias_H
        return -rate_H * jax.nn.softplus(step_BNH)


def unit(x: jax.Array) -> jax.Array:
    """``x`` over its Euclidean norm; a little is added, as in the authors' code."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


def draw_log_rates(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Logarithms of rates that are uniform between ``RATES``."""
    low, high = RATES
    return jnp.log(jax.random.uniform(key, shape, minval=low, maxval=high))


def draw_step_biases(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What softplus makes steps of whose logarithms are uniform between ``STEPS``."""
    low, high = map(math.log, STEPS)
    step = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
    return step + jnp.log(-jnp.expm1(-step))
