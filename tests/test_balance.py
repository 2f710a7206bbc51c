"""The load-balancing loss, as its papers define it, and the metrics beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import balance
from moejax.routing.token_choice import choose, preset


@functools.partial(jax.jit, static_argnames="top_k")
def one_layer(logits, real, top_k, seated=None):
    choice = choose(logits, preset("top_k", top_k))
    seated = jnp.ones(choice.expert_GSK.shape, bool) if seated is None else seated
    stats = balance.router_stats(logits, choice.probability_GSE, choice.expert_GSK, seated, real)
    return balance.sum_groups(jax.tree.map(lambda s: s[None], stats))


@pytest.mark.parametrize("top_k", [1, 2, 4, 8])
def test_the_loss_is_one_at_perfect_balance_for_every_k(top_k):
    """Token i prefers experts i, i+1, ..., each by as much: all experts are loaded alike."""
    E = 8
    preference = -jnp.arange(E, dtype=jnp.float32)
    logits = jnp.stack([jnp.roll(preference, i) for i in range(E)])[None]
    stats = one_layer(logits, jnp.ones((1, E), bool), top_k)
    np.testing.assert_array_equal(stats.asked_GE, top_k)
    loss = balance.balance_loss(stats.asked_GE, stats.tokens_G, stats.probability_GE)
    np.testing.assert_allclose(loss, 1, rtol=1e-6)
    assert balance.max_violation(stats.asked_GE)[0] == 0


def test_the_loss_is_the_number_of_experts_at_collapse():
    logits = jnp.zeros((1, 6, 4)).at[..., 2].set(50.0)
    stats = one_layer(logits, jnp.ones((1, 6), bool), 1)
    loss = balance.balance_loss(stats.asked_GE, stats.tokens_G, stats.probability_GE)
    np.testing.assert_allclose(loss, 4, rtol=1e-5)
    np.testing.assert_allclose(balance.max_violation(stats.asked_GE), 3)
    assert balance.dead_experts(stats.asked_GE) == 3


def test_a_golden_example():
    """Three tokens, two experts: f = (2/3, 1/3), P = (0.6, 0.4), so 2 (0.4 + 0.1333) = 1.0667."""
    p = jnp.array([[[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]])
    stats = one_layer(jnp.log(p), jnp.ones((1, 3), bool), 1)
    loss = balance.balance_loss(stats.asked_GE, stats.tokens_G, stats.probability_GE)
    np.testing.assert_allclose(loss, 2 * (2 / 3 * 0.6 + 1 / 3 * 0.4), rtol=1e-6)
    np.testing.assert_allclose(stats.log_z_squared_G, 0, atol=1e-10)  # logits are log-probabilities
    entropy = -(np.asarray(p) * np.log(p)).sum()
    np.testing.assert_allclose(stats.entropy_G, entropy, rtol=1e-5)


def test_load_is_counted_before_capacity():
    logits = jax.random.normal(jax.random.key(0), (2, 16, 4))
    real = jnp.ones((2, 16), bool)
    none = jnp.zeros((2, 16, 2), bool)
    free, full = one_layer(logits, real, 2), one_layer(logits, real, 2, seated=none)
    np.testing.assert_array_equal(free.asked_GE, full.asked_GE)
    assert full.asked_GE.sum() == 64
    assert full.seated_GE.sum() == 0
    assert balance.dropped_fraction(full.asked_GE, full.seated_GE) == 1
    assert balance.dropped_fraction(free.asked_GE, free.seated_GE) == 0


def test_gradients_pass_through_the_probabilities_alone():
    asked, tokens = jnp.array([[3.0, 1.0]]), jnp.array([4.0])
    grad = jax.grad(lambda asked, p: balance.balance_loss(asked, tokens, p).sum(), argnums=(0, 1))(
        asked, jnp.array([[2.0, 2.0]])
    )
    np.testing.assert_array_equal(grad[0], 0)
    np.testing.assert_allclose(grad[1], [[2 * 0.75 / 4, 2 * 0.25 / 4]])  # E f_e / tokens


def test_the_losses_of_the_parts_add_up_to_that_of_the_batch():
    logits = jax.random.normal(jax.random.key(1), (4, 8, 4))
    real = jax.random.uniform(jax.random.key(2), (4, 8)) > 0.3
    whole = one_layer(logits, real, 2)
    parts = [one_layer(logits[i : i + 2], real[i : i + 2], 2) for i in (0, 2)]
    sums = [balance.balance_loss(whole.asked_GE, whole.tokens_G, p.probability_GE) for p in parts]
    want = balance.balance_loss(whole.asked_GE, whole.tokens_G, whole.probability_GE)
    np.testing.assert_allclose(sum(sums), want, rtol=1e-6)
    z = [balance.z_loss(p.log_z_squared_G, whole.tokens_G) for p in parts]
    np.testing.assert_allclose(
        sum(z), balance.z_loss(whole.log_z_squared_G, whole.tokens_G), rtol=1e-6
    )


def test_no_tokens_give_no_nan():
    stats = one_layer(jnp.ones((1, 4, 3)), jnp.zeros((1, 4), bool), 2)
    loss = balance.balance_loss(stats.asked_GE, stats.tokens_G, stats.probability_GE)
    np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(balance.max_violation(stats.asked_GE), 0)
    assert balance.dropped_fraction(stats.asked_GE, stats.seated_GE) in (0, 1)
