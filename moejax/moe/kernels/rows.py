"""Token copies sorted by expert: the plan that every grouped kernel follows."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moejax.config.errors import ConfigError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """R = T * K copies of tokens, those of expert 0 first; copies without an expert come last."""

    choice_R: jax.Array
    """Which choice (token * K + k) stands in each row (int32)."""
    row_TK: jax.Array
    """In which row each choice stands (int32); -1 for choices without an expert."""
    size_E: jax.Array
    """Rows of each expert (int32)."""

    @property
    def start_E(self) -> jax.Array:
        """The first row of each expert."""
        return jnp.cumsum(self.size_E) - self.size_E


def sort_rows(expert_TK: jax.Array, num_experts: int) -> Rows:
    """Sort choices by expert, in the order of the tokens; -1 (int32) chooses none. Raises
    ``ConfigError`` if expert and choice do not fit into 32 bits together.
    """
    T, K = expert_TK.shape
    expert_R = jnp.where(expert_TK < 0, num_experts, expert_TK).reshape(-1)
    # One sort of one operand: expert and choice share a number.
    bits = max(1, (T * K - 1).bit_length())
    if num_experts >= 1 << (32 - bits):
        raise ConfigError(
            f"{T:,} tokens of {K} choices among {num_experts:,} experts are too many to sort on one"
            f" device: make the batch smaller, or --optim.accumulate larger, or take"
            f" --model.moe.dispatch gather."
        )
    index_R = jnp.arange(T * K, dtype=jnp.uint32)
    key_R = jnp.sort((expert_R.astype(jnp.uint32) << bits) | index_R)
    choice_R = (key_R & jnp.uint32((1 << bits) - 1)).astype(jnp.int32)
    row_R = (
        jnp.zeros(T * K, jnp.int32).at[choice_R].set(index_R.astype(jnp.int32), unique_indices=True)
    )
    size_E = (expert_R[:, None] == jnp.arange(num_experts)).sum(0, dtype=jnp.int32)
    return Rows(choice_R, jnp.where(expert_TK < 0, -1, row_R.reshape(T, K)), size_E)


def take(x: jax.Array, index: jax.Array) -> jax.Array:
    """``x[index]``, for indices known to be in range."""
    return x.at[index].get(mode="promise_in_bounds")


def sum_choices(x_RD: jax.Array, row_TK: jax.Array) -> jax.Array:
    """Add up the rows of each token: ``y_TD`` (float32). Choices without an expert add nothing.

    K gathers, unrolled: faster than one gather and a sum, and than a scatter-add.
    """
    copies = (
        jnp.where(row_TK[:, k, None] >= 0, take(x_RD, jnp.maximum(row_TK[:, k], 0)), 0)
        for k in range(row_TK.shape[1])
    )
    return jnp.asarray(sum(copy_TD.astype(jnp.float32) for copy_TD in copies))


Copy = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""``(x_TD, index_R, row_TK) -> x_RD``, or its transpose ``(y_RD, index_R, row_TK) -> y_TD``."""


def pair_with_sum(copy: Copy) -> tuple[Copy, Copy]:
    """A way to copy tokens into rows, and the sum of each token's rows: each the other's transpose
    in rows that have a choice, and its gradient.

    Both are gathers, and so are their gradients: a scatter-add would be slow, and without a fixed
    order on GPUs.
    """
    copy_rows, sum_rows = jax.custom_vjp(copy), jax.custom_vjp(_sum_rows)
    copy_rows.defvjp(
        lambda x_TD, *where: (copy_rows(x_TD, *where), where),
        lambda where, dx_RD: (sum_rows(dx_RD, *where), None, None),
    )
    sum_rows.defvjp(
        lambda y_RD, *where: (sum_rows(y_RD, *where), where),
        lambda where, dy_TD: (copy_rows(dy_TD, *where), None, None),
    )
    return copy_rows, sum_rows


def _sum_rows(y_RD: jax.Array, index_R: jax.Array, row_TK: jax.Array) -> jax.Array:
    return sum_choices(y_RD, row_TK).astype(y_RD.dtype)


def _copy_rows(x_TD: jax.Array, token_R: jax.Array, row_TK: jax.Array) -> jax.Array:
    return take(x_TD, token_R)


copy_tokens, sum_copies = pair_with_sum(_copy_rows)
"""The token in each row, whether it has a choice or not. To put zeros into rows without, as
``gather.fill_slots`` does, takes memory for all rows again on TPUs.
"""


def round_up(number: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return number + -number % unit
