"""Text from a language model."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from moejax.config import Config
from moejax.mesh import named


def sample(
    model: nn.Module,
    params: dict,
    bias_LE: jax.Array | None,
    prompt: np.ndarray,
    config: Config,
    *,
    tokens: int,
    temperature: float,
    boundary: int,
    seed: int = 0,
) -> np.ndarray:
    """Continue ``prompt`` (int32 [n], n >= 1) by at most ``tokens`` tokens, ending before
    ``boundary``.

    Every token sees the last N (``data.sequence_length``) before it, recomputed each time: simple,
    and quick enough for a sample. Returns the new tokens, int32. ``temperature`` 0 takes the most
    probable.
    """
    N = config.data.sequence_length
    context_N = np.zeros(N, np.int32)
    prompt = prompt[-N:]
    context_N[: len(prompt)] = prompt
    # Whole routing groups on every device: the other rows are padding.
    rows = config.sequences_per_group * config.mesh.chunks * jax.device_count()
    run = _sampler(model, rows, tokens, temperature, everywhere(params))
    new = np.asarray(run(params, bias_LE, context_N, len(prompt), seed))
    ends = np.flatnonzero(new == boundary)
    return new[: ends[0]] if len(ends) else new


def everywhere(tree: object) -> NamedSharding | None:
    """A copy on every device of the mesh that ``tree`` lies on; None if it lies on none."""
    sharding = jax.tree.leaves(tree)[0].sharding
    return named(sharding.mesh, "everywhere") if isinstance(sharding, NamedSharding) else None


@functools.cache
def _sampler(
    model: nn.Module, rows: int, tokens: int, temperature: float, out: NamedSharding | None
):
    def run(
        params: dict, bias_LE: jax.Array | None, context_N: jax.Array, length: int, seed: int
    ) -> jax.Array:
        N = context_N.shape[0]
        place_N = jnp.arange(N)

        def step(carry: tuple, key: jax.Array) -> tuple:
            context_N, length = carry
            real_N = (place_N < length).astype(jnp.int32)

            def row(x_N: jax.Array) -> jax.Array:
                return jnp.zeros((rows, N), jnp.int32).at[0].set(x_N)

            batch = {
                "inputs": row(context_N),
                "segments": row(real_N),
                "positions": row(place_N * real_N),
            }
            logits_BNV, _ = model.apply({"params": params}, batch, False, bias_LE)
            logits_V = logits_BNV[0, length - 1]
            if temperature == 0:
                token = jnp.argmax(logits_V).astype(jnp.int32)
            else:
                token = jax.random.categorical(key, logits_V / temperature).astype(jnp.int32)
            full = length == N
            context_N = jnp.where(full, jnp.roll(context_N, -1), context_N)
            length = jnp.where(full, N, length + 1)
            return (context_N.at[length - 1].set(token), length), token

        keys = jax.random.split(jax.random.key(seed), tokens)
        return jax.lax.scan(step, (context_N, length), keys)[1]

    return jax.jit(run, out_shardings=out)
