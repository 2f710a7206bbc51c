"""Token copies sorted by expert: the plan that every grouped kernel follows."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


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
    """Sort choices by expert, in the order of the tokens; -1 (int32) chooses none."""
    T, K = expert_TK.shape
    expert_R = jnp.where(expert_TK < 0, num_experts, expert_TK).reshape(-1)
    # One sort of one operand: expert and choice share a number.
    bits = max(1, (T * K - 1).bit_length())
    if num_experts >= 1 << (32 - bits):
        raise ValueError(f"{T} tokens of {K} choices are too many for one sort: split the batch.")
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
    return sum(
        jnp.where(row_TK[:, k, None] >= 0, take(x_RD, jnp.maximum(row_TK[:, k], 0)), 0).astype(
            jnp.float32
        )
        for k in range(row_TK.shape[1])
    )


@jax.custom_vjp
def copy_tokens(x_TD: jax.Array, token_R: jax.Array, row_TK: jax.Array) -> jax.Array:
    """The token in each row, ``x_RD``. ``sum_copies`` is its transpose, in rows that have a choice.

    Not ``gather.fill``, which replaces empty slots: on TPUs that takes memory for all rows again.
    """
    return take(x_TD, token_R)


@jax.custom_vjp
def sum_copies(y_RD: jax.Array, token_R: jax.Array, row_TK: jax.Array) -> jax.Array:
    """Each token's rows added up, ``y_TD``. ``copy_tokens`` is its transpose."""
    return sum_choices(y_RD, row_TK).astype(y_RD.dtype)


copy_tokens.defvjp(
    lambda x, token_R, row_TK: (copy_tokens(x, token_R, row_TK), (token_R, row_TK)),
    lambda saved, d: (sum_copies(d, *saved), None, None),
)
sum_copies.defvjp(
    lambda y, token_R, row_TK: (sum_copies(y, token_R, row_TK), (token_R, row_TK)),
    lambda saved, d: (copy_tokens(d, *saved), None, None),
)


def round_up(number: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return number + -number % unit
