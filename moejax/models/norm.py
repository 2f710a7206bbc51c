"""The norm that all models use."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.config.model import ModelConfig


def make_norm(config: ModelConfig, name: str) -> "RMSNorm":
    """The norm of a model under this name, as a submodule of the one that calls."""
    return RMSNorm(config.norm_epsilon, config.zero_centred_norm, name=name)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, in float32 (Zhang & Sennrich 2019). With
    ``zero_centred`` it multiplies by 1 plus the parameter (Gemma, Qwen3-Next).
    """

    epsilon: float
    zero_centred: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        begin = nn.initializers.zeros if self.zero_centred else nn.initializers.ones
        scale_D = self.param("scale_D", begin, x.shape[-1:], jnp.float32)
        scale_D = jnp.asarray(scale_D)  # it may lie in a stack
        if self.zero_centred:
            scale_D = 1 + scale_D.astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        mean_square = jnp.square(x32).mean(-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + self.epsilon) * scale_D).astype(x.dtype)
