"""How the tokens of a text are drawn."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.checks import check, check_not_negative, check_positive, check_sizes

Draws = dict[str, Any]
"""How the token of each row is drawn: ``temperature_B``, ``top_k_B``, ``top_p_B``, ``seed_B``, and
``row_B``, the number of its prompt. Arrays, so that other values compile nothing."""


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
    """The same settings for prompts with these numbers; on the host still."""
    top_k = min(vocab_size, sampling.top_k or vocab_size)
    return {
        "temperature_B": np.full(len(row_B), sampling.temperature, np.float32),
        "top_k_B": np.full(len(row_B), top_k, np.int32),
        "top_p_B": np.full(len(row_B), sampling.top_p, np.float32),
        "seed_B": np.full(len(row_B), sampling.seed, np.int32),
        "row_B": row_B,
    }


def make_keys(draws: Draws, position_B: jax.Array) -> jax.Array:
    """A key for each row's token at its position, ``key_B``, whatever the other rows are."""

    def key(seed: jax.Array, row: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), position)

    return jax.vmap(key)(draws["seed_B"], draws["row_B"], position_B)


def draw(logits_BV: jax.Array, key_B: jax.Array, draws: Draws) -> jax.Array:
    """The next token of each row, ``token_B`` (int32), drawn with a key and settings of its own,
    whatever those of other rows are.

    The probabilities are softmax(logits / temperature); ``top_k`` keeps the most probable tokens,
    and ``top_p`` of these, with their sum as 1, the fewest that have so much of it (the nucleus of
    Holtzman et al. 2020, section 3.1). A temperature of 0 takes the best; of equal ones, the first.
    Sorting, and drawing at all, is left out where no row asks for it.
    """
    V = logits_BV.shape[-1]
    warm_B = draws["temperature_B"] > 0
    some_B = warm_B & ((draws["top_k_B"] < V) | (draws["top_p_B"] < 1))
    best_B = logits_BV.argmax(-1)

    def draw_warm() -> jax.Array:
        scaled_BV = logits_BV / jnp.where(warm_B, draws["temperature_B"], 1)[:, None]
        of_all_B = jax.vmap(jax.random.categorical)(key_B, scaled_BV)
        of_some_B = jax.lax.cond(
            some_B.any(), lambda: _draw_from_best(scaled_BV, key_B, draws), lambda: of_all_B
        )
        return jnp.where(some_B, of_some_B, of_all_B)

    token_B = jax.lax.cond(warm_B.any(), draw_warm, lambda: best_B)
    return jnp.where(warm_B, token_B, best_B).astype(jnp.int32)


def _draw_from_best(logits_BV: jax.Array, key_B: jax.Array, draws: Draws) -> jax.Array:
    """As ``draw``, of rows that have a temperature, which ``logits_BV`` is divided by."""
    top_k_B1, top_p_B1 = draws["top_k_B"][:, None], draws["top_p_B"][:, None]
    best_BV = jnp.argsort(-logits_BV)
    sorted_BV = jnp.take_along_axis(logits_BV, best_BV, -1)
    sorted_BV = jnp.where(jnp.arange(logits_BV.shape[-1]) < top_k_B1, sorted_BV, -jnp.inf)
    p_BV = jax.nn.softmax(sorted_BV)
    better_BV = jnp.cumsum(p_BV, -1) - p_BV  # 0 for the best, whatever the rounding
    sorted_BV = jnp.where(better_BV < top_p_B1, sorted_BV, -jnp.inf)
    place_B1 = jax.vmap(jax.random.categorical)(key_B, sorted_BV)[:, None]
    return jnp.take_along_axis(best_BV, place_B1, -1)[:, 0]
