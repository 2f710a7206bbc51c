"""How the tokens of a text are drawn."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.checks import check, check_not_negative, check_positive, check_sizes

Draws = dict[str, jax.Array]
"""How tokens are drawn: ``temperature``, ``top_k``, ``top_p``, ``seed``, and ``row_B``, the number
of each row's prompt. Arrays, so that other values compile nothing."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How much text, and how its tokens are drawn."""

    tokens: int = 200
    """Tokens to generate, at most, for each prompt."""
    temperature: float = 0.7
    """The logits are divided by it; 0 takes the most probable token each time."""
    top_k: int | None = None
    """Draw from this many of the most probable tokens; by default from all."""
    top_p: float = 1.0
    """Draw from the most probable tokens that have this much probability together (nucleus
    sampling, Holtzman et al. 2020), after --top-k; 1 takes all."""
    seed: int = 0
    """Seed of the draws."""
    stop: tuple[str, ...] = ()
    """End the text before this string; may be given several times."""

    def __post_init__(self) -> None:
        check_sizes("", self, "tokens")
        check_positive("", self, "top_k")
        check_not_negative("", self, "temperature")
        check(0 < self.top_p <= 1, f"--top-p must lie in (0, 1], not {self.top_p}.")
        check(0 <= self.seed < 2**31, f"--seed must lie in [0, 2**31), not {self.seed}.")
        check(all(self.stop), "--stop must not be empty: leave it out to stop nowhere.")


def make_draws(sampling: Sampling, vocab_size: int, row_B: np.ndarray) -> Draws:
    """The settings as arrays, for prompts with these numbers; on the host still."""
    draws: Any = {
        "temperature": np.float32(sampling.temperature),
        "top_k": np.int32(min(vocab_size, sampling.top_k or vocab_size)),
        "top_p": np.float32(sampling.top_p),
        "seed": np.int32(sampling.seed),
        "row_B": row_B,
    }
    return draws


def make_keys(draws: Draws, position_B: jax.Array) -> jax.Array:
    """A key for each row's token at its position, ``key_B``, whatever the other rows are."""
    seed = jax.random.key(draws["seed"])

    def key(row: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(seed, row), position)

    return jax.vmap(key)(draws["row_B"], position_B)


def draw(logits_BV: jax.Array, key_B: jax.Array, draws: Draws) -> jax.Array:
    """The next token of each row, ``token_B`` (int32), drawn with a key of its own.

    The probabilities are softmax(logits / temperature); ``top_k`` keeps the most probable tokens,
    and ``top_p`` of these, with their sum as 1, the fewest that have so much of it (the nucleus of
    Holtzman et al. 2020, section 3.1). A temperature of 0 takes the best; of equal ones, the first.
    """
    V = logits_BV.shape[-1]
    top_k, top_p, temperature = draws["top_k"], draws["top_p"], draws["temperature"]
    logits_BV /= jnp.where(temperature > 0, temperature, 1)
    categorical = jax.vmap(jax.random.categorical)

    def draw_from_all() -> jax.Array:
        return categorical(key_B, logits_BV)

    def draw_from_best() -> jax.Array:
        best_BV = jnp.argsort(-logits_BV)
        sorted_BV = jnp.take_along_axis(logits_BV, best_BV, -1)
        sorted_BV = jnp.where(jnp.arange(V) < top_k, sorted_BV, -jnp.inf)
        p_BV = jax.nn.softmax(sorted_BV)
        better_BV = jnp.cumsum(p_BV, -1) - p_BV  # 0 for the best, whatever the rounding
        sorted_BV = jnp.where(better_BV < top_p, sorted_BV, -jnp.inf)
        place_B1 = categorical(key_B, sorted_BV)[:, None]
        return jnp.take_along_axis(best_BV, place_B1, -1)[:, 0]

    token_B = jax.lax.cond((top_k < V) | (top_p < 1), draw_from_best, draw_from_all)
    return jnp.where(temperature > 0, token_B, logits_BV.argmax(-1)).astype(jnp.int32)
