"""Losses as their papers define them, the selection bias, and the metrics beside them."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from layer_loss import sum_layer

from moejax.config import BalanceConfig, MoEConfig
from moejax.moe import balance, selection_bias
from moejax.moe.balance import RouterStats
from moejax.routing.contract import RouterInput, asked
from moejax.routing.routers import ROUTERS
from moejax.routing.token_choice import TokenChoiceRule, choose
from moejax.train.objective import losses, objective, scoped_loss, weights
from moejax.train.reports import Sums

property_test = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # a seed has no smaller example
)
seeds = st.integers(0, 2**32 - 1)


def sums(asked_LE, probability_LE, tokens, **more) -> RouterStats:
    """Router sums of whole layers, from the loads and the probabilities summed over tokens."""
    asked_LE, probability_LE = np.float32(asked_LE), np.float32(probability_LE)
    tokens_L = np.full(asked_LE.shape[:-1], tokens, np.float32)
    zeros_L = np.zeros_like(tokens_L)
    known = {"log_z_squared_B": zeros_L, "entropy_B": zeros_L, "weight_BE": probability_LE}
    known |= {"seated_BE": asked_LE, "bad_B": zeros_L}
    arrays = {"tokens_B": tokens_L, "asked_BE": asked_LE, "probability_BE": probability_LE}
    return RouterStats(**(known | arrays | more))


@functools.partial(jax.jit, static_argnames=("top_k", "seats"))
def one_layer(logits_GSE, real_GS, top_k, seats=True):
    """The sums of a top-k layer over each group, all or none of whose choices are seated."""
    inputs = RouterInput(logits_GSE=logits_GSE, real_GS=real_GS, top_k=top_k, capacity=1)
    choice = ROUTERS["top_k"].choose(inputs)
    seated_GSE = asked(choice, real_GS) * seats
    return balance.router_stats(inputs, choice, seated_GSE, ~real_GS, rows=len(real_GS))


# The loss of Switch Transformers and GShard.


@pytest.mark.parametrize("top_k", [1, 2, 4, 8])
def test_the_loss_is_one_at_perfect_balance_for_every_k(top_k):
    """Token i prefers experts i, i+1, ..., each by as much: all experts are loaded alike."""
    E = 8
    preference = -np.arange(E, dtype=np.float32)
    logits = np.stack([np.roll(preference, i) for i in range(E)])[None]
    stats = one_layer(logits, np.ones((1, E), bool), top_k)
    np.testing.assert_array_equal(stats.asked_BE, np.full((1, E), top_k))
    np.testing.assert_allclose(balance.balance_loss(stats), 1, rtol=1e-6)
    np.testing.assert_array_equal(balance.max_violation(stats.asked_BE), 0)


def test_the_loss_is_the_number_of_experts_at_collapse():
    logits = np.zeros((1, 6, 4), np.float32)
    logits[..., 2] = 50
    stats = one_layer(logits, np.ones((1, 6), bool), 1)
    np.testing.assert_allclose(balance.balance_loss(stats), 4, rtol=1e-5)
    np.testing.assert_allclose(balance.max_violation(stats.asked_BE), 3)
    assert balance.dead_experts(np.asarray(stats.asked_BE)) == 3


def test_a_golden_example():
    """Three tokens, two experts: f = (2/3, 1/3), P = (0.6, 0.4), so 2 (0.4 + 0.1333) = 1.0667."""
    p = np.float32([[[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]])
    stats = one_layer(np.log(p), np.ones((1, 3), bool), 1)
    np.testing.assert_allclose(balance.balance_loss(stats), 16 / 15, rtol=1e-6)
    np.testing.assert_allclose(stats.probability_BE, [[1.8, 1.2]], rtol=1e-6)
    np.testing.assert_allclose(stats.log_z_squared_B, 0, atol=1e-10)  # logits are log-probabilities
    np.testing.assert_allclose(stats.entropy_B, -(p * np.log(p)).sum(), rtol=1e-5)


def sorted_alike(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two distributions over five experts, both from the least to the most loaded."""
    rng = np.random.default_rng(seed)
    f_E, p_E = np.sort(rng.dirichlet(np.ones(5), size=2))
    return f_E, p_E


@property_test
@given(pair=st.builds(sorted_alike, seeds), tokens=st.integers(1, 1000), top_k=st.integers(1, 4))
def test_no_load_costs_less_than_an_even_one_while_probability_follows_load(pair, tokens, top_k):
    """Chebyshev's sum inequality: E sum f P >= sum f sum P = 1, and the reverse if they oppose."""
    f_E, p_E = pair
    alike, opposed = (
        balance.balance_loss(sums(tokens * top_k * f_E, tokens * p, tokens))
        for p in (p_E, p_E[::-1])
    )
    assert opposed <= 1 + 1e-5 and alike >= 1 - 1e-5
    even = np.full(5, 0.2)
    for f, p in ((f_E, even), (even, p_E)):
        loss = balance.balance_loss(sums(tokens * top_k * f, tokens * p, tokens))
        np.testing.assert_allclose(loss, 1, rtol=1e-5)


def test_the_loss_grows_on_either_side_of_balance():
    """f = P = 1/2 +- t: the loss is 2 ((1/2 + t)^2 + (1/2 - t)^2) = 1 + 4 t^2."""
    for t in (-0.5, -0.3, -0.1, 0, 0.1, 0.3, 0.5):
        share = np.array([0.5 + t, 0.5 - t])
        loss = balance.balance_loss(sums(100 * share, 100 * share, 100))
        np.testing.assert_allclose(loss, 1 + 4 * t**2, rtol=1e-6)


def test_gradients_pass_through_the_probabilities_alone():
    def loss(asked_BE, probability_BE):
        stats = sums([[3, 1]], [[2, 2]], 4)
        stats = dataclasses.replace(stats, asked_BE=asked_BE, probability_BE=probability_BE)
        return balance.balance_loss(stats).sum()

    grad = jax.grad(loss, argnums=(0, 1))(jnp.array([[3.0, 1.0]]), jnp.array([[2.5, 1.5]]))
    np.testing.assert_array_equal(grad[0], 0)
    np.testing.assert_allclose(grad[1], [[2 * 0.75 / 4, 2 * 0.25 / 4]])  # E f_e / tokens


def test_hugging_face_s_loss_is_k_at_balance():
    stats = sums([[4, 4, 4, 4]] * 3, [[2, 2, 2, 2]] * 3, 8)  # 8 tokens, two experts each
    np.testing.assert_allclose(balance.balance_loss(stats), [1, 1, 1])
    np.testing.assert_allclose(balance.pooled_balance_loss(stats), [2])


def test_layers_that_fail_in_opposite_ways_cancel_in_hugging_face_s_loss():
    """Each layer sends all tokens to one expert of two, but not to the same one."""
    stats = sums([[8, 0], [0, 8]], [[8, 0], [0, 8]], 8)
    np.testing.assert_allclose(balance.balance_loss(stats), [2, 2])
    np.testing.assert_allclose(balance.pooled_balance_loss(stats), [1])
    alike = sums([[8, 0], [8, 0]], [[8, 0], [8, 0]], 8)
    np.testing.assert_allclose(balance.pooled_balance_loss(alike), [2])


# The other losses.


def test_the_z_loss_is_the_mean_squared_log_sum_exp():
    """exp(logits) sum to e and to e^3: (1 + 9) / 2 = 5; the padding's would be e^7."""
    p = np.log(np.float32([[[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]]]))
    logits = p + np.float32([[[1], [3], [7]]])
    stats = one_layer(logits, np.array([[True, True, False]]), 1)
    np.testing.assert_allclose(balance.z_loss(stats), 5, rtol=1e-6)


def test_importance_is_the_squared_coefficient_of_variation_of_the_weights():
    """Weights (1, 2, 3, 6) have mean 3 and variance (4 + 1 + 0 + 9) / 4 = 3.5: 3.5 / 9."""
    stats = sums([[3, 3, 3, 3]], [[3, 3, 3, 3]], 12, weight_BE=np.float32([[1, 2, 3, 6]]))
    np.testing.assert_allclose(balance.importance_loss(stats), 3.5 / 9, rtol=1e-6)


def test_the_load_loss_takes_the_smooth_load_where_there_is_one():
    smooth = np.float32([[2, 2, 2, 4]])  # mean 2.5, variance 0.75
    stats = sums([[1, 2, 3, 6]], [[3, 3, 3, 3]], 12)
    np.testing.assert_allclose(balance.load_loss(stats), 3.5 / 9, rtol=1e-6)
    stats = dataclasses.replace(stats, smooth_load_BE=smooth)
    np.testing.assert_allclose(balance.load_loss(stats), 0.75 / 6.25, rtol=1e-6)


@property_test
@given(seed=seeds, scale=st.floats(0.01, 1e6))
def test_the_coefficient_of_variation_is_zero_where_all_are_equal_and_only_there(seed, scale):
    rng = np.random.default_rng(seed)
    weight_E = np.float32(scale * (0.1 + rng.random(6)))
    stats = sums(np.ones((2, 6)), np.ones((2, 6)), 1)
    weight_BE = np.stack([weight_E, np.full(6, np.float32(scale))])
    stats = dataclasses.replace(stats, weight_BE=weight_BE, smooth_load_BE=weight_BE)
    want = np.var(np.float64(weight_E)) / np.mean(np.float64(weight_E)) ** 2
    for loss in (balance.importance_loss(stats), balance.load_loss(stats)):
        np.testing.assert_allclose(loss[0], want, rtol=1e-3)
        np.testing.assert_allclose(loss[1], 0, atol=1e-10)


def test_the_device_loss_balances_groups_of_experts():
    """Four experts on two devices; eight choices fall as (6, 2 | 0, 0), P = (.5, .2 | .2, .1).

    f = 4 / 8 of that, (3, 1 | 0, 0), with means 2 and 0; sums of P are 0.7 and 0.3: 1.4. Experts
    that are uneven inside a device cost nothing.
    """
    stats = sums([[6, 2, 0, 0]], [[2, 0.8, 0.8, 0.4]], 4)
    np.testing.assert_allclose(balance.device_loss(stats, 2), 1.4, rtol=1e-6)
    inside = sums([[4, 0, 0, 4]], [[2, 0, 0, 2]], 4)
    np.testing.assert_allclose(balance.device_loss(inside, 2), 1, rtol=1e-6)
    np.testing.assert_allclose(
        balance.device_loss(stats, 4), balance.balance_loss(stats), rtol=1e-6
    )


def test_the_communication_loss_balances_what_groups_receive():
    """Four tokens go to one device of two each: all to the first, or two to each.

    f = 2 / (1 * 4) of (4, 0) is (2, 0), times sums of P 0.7 and 0.3: 1.4. Of (2, 2) it is (1, 1),
    and the loss 0.7 + 0.3 = 1. If each token may go to both and does, f = 2 / (2 * 4) (4, 4).
    """
    stats = sums([[3, 1, 0, 0]], [[2, 0.8, 0.8, 0.4]], 4, sent_BQ=np.float32([[4, 0]]))
    np.testing.assert_allclose(balance.communication_loss(stats, 1), 1.4, rtol=1e-6)
    even = dataclasses.replace(stats, sent_BQ=np.float32([[2, 2]]))
    np.testing.assert_allclose(balance.communication_loss(even, 1), 1, rtol=1e-6)
    both = dataclasses.replace(stats, sent_BQ=np.float32([[4, 4]]))
    np.testing.assert_allclose(balance.communication_loss(both, 2), 1, rtol=1e-6)


def test_a_token_is_sent_to_a_group_once_however_many_experts_it_has_there():
    """Experts (0, 1) are one group and (2, 3) the other: tokens go to {0}, {0, 1}, {1}, nowhere."""
    logits = np.float32([[[3, 2, 0, 0], [3, 0, 2, 0], [0, 0, 3, 2], [3, 2, 0, 0]]])
    real = np.array([[True, True, True, False]])
    inputs = RouterInput(logits_GSE=logits, real_GS=real, top_k=2, capacity=1)
    sent_BQ = balance.sent_to_groups(ROUTERS["top_k"].choose(inputs), real, 2, rows=1)
    np.testing.assert_array_equal(sent_BQ, [[2, 2]])


# What is minimised.


def test_each_loss_is_there_when_it_has_a_weight():
    names = ("importance_loss", "load_loss", "device_loss", "communication_loss")
    given = {f"{name}_weight": 0.1 * (i + 1) for i, name in enumerate(names)}
    moe = MoEConfig(
        router="noisy_top_k",
        expert_groups=2,
        balance=BalanceConfig(loss_weight=0.5, z_loss_weight=0.25, **given),
    )
    stats = sums([[4, 4, 4, 4]], [[2, 2, 2, 2]], 8, sent_BQ=np.float32([[8, 8]]))
    assert set(losses(stats, moe)) == {"balance_loss", "z_loss", *names}
    want = {"balance_loss": 0.5, "z_loss": 0.25} | {n: given[f"{n}_weight"] for n in names}
    assert weights(moe) == want
    for name, loss in losses(stats, moe).items():
        even = name in ("balance_loss", "device_loss", "communication_loss")
        assert float(loss[0]) == pytest.approx(1.0 if even else 0.0), name
    hf = MoEConfig(balance=BalanceConfig(convention="hf", loss_weight=0.5))
    assert set(losses(stats, hf)) == {"balance_loss", "z_loss", "pooled_balance_loss"}
    assert weights(hf) == {"pooled_balance_loss": 0.5}
    assert weights(MoEConfig(balance=BalanceConfig(scope="sequence"))) == {}


def test_the_scope_says_who_must_be_balanced():
    """Four sequences of four tokens, one expert each. Alone each is at its worst, 2; in pairs, as
    two devices hold them, one pair is even and the other not; the whole batch is 5/8 to 3/8.
    """
    to_0, to_1 = [4, 0], [0, 4]
    stats = sums([[to_0, to_1, to_0, [1, 3]]], [[to_0, to_1, to_0, [1, 3]]], 4)

    def scope(name, devices=2):
        total, scopes = scoped_loss(stats, MoEConfig(balance=BalanceConfig(scope=name)), devices)
        return float(total[0]), float(scopes)

    # 1 + 4 t^2, with t = 1/2, 1/2, 1/2, 1/4; then t = 0 and 1/8.
    assert scope("sequence") == pytest.approx((2 + 2 + 2 + 1.25, 4))
    assert scope("device") == pytest.approx((1 + 1.0625, 2))
    assert scope("device", devices=1) == pytest.approx((1 + 4 / 16**2, 1))
    empty = dataclasses.replace(stats, tokens_B=np.float32([[4, 4, 0, 0]]))
    total, scopes = scoped_loss(empty, MoEConfig(balance=BalanceConfig(scope="sequence")), 2)
    assert (float(total[0]), float(scopes)) == (4, 2)  # who has no tokens is not in the mean


def test_the_gradients_of_the_parts_of_a_batch_add_up_to_that_of_the_batch():
    """Also of losses that are no sums: squared coefficients of variation, products of means."""
    given = {"loss_weight": 0.3, "z_loss_weight": 0.2, "importance_loss_weight": 0.1}
    moe = MoEConfig(balance=BalanceConfig(**given))
    logits = jax.random.normal(jax.random.key(1), (4, 8, 4))
    real = jax.random.uniform(jax.random.key(2), (4, 8)) > 0.3

    def all_sums(logits, part=slice(None)):
        stats = one_layer(logits[part], real[part], 2)
        router = sum_layer(stats)
        zero = jnp.zeros(())
        return Sums(zero, zero, zero, zero, zero, router, scoped_loss_L=None, scopes=None)

    def whole_loss(logits):
        found = losses(all_sums(logits).router, moe)
        return sum(w * found[name].sum() for name, w in weights(moe).items())

    @jax.jit
    def gradients(logits):
        whole = all_sums(logits)
        parts = [
            jax.grad(lambda x, p=p: objective(all_sums(x, p), whole, moe))(logits)
            for p in (slice(0, 1), slice(1, 4))
        ]
        return jax.grad(whole_loss)(logits), sum(parts)

    want, got = gradients(logits)
    assert abs(want).max() > 1e-3
    np.testing.assert_allclose(got, want, atol=1e-7)


def test_no_tokens_give_no_nan():
    stats = one_layer(np.ones((1, 4, 3), np.float32), np.zeros((1, 4), bool), 2)
    stats = dataclasses.replace(stats, sent_BQ=np.zeros((1, 3), np.float32))
    for loss in (
        balance.balance_loss(stats),
        balance.z_loss(stats),
        balance.importance_loss(stats),
        balance.load_loss(stats),
        balance.device_loss(stats, 3),
        balance.communication_loss(stats, 2),
    ):
        np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(balance.max_violation(stats.asked_BE), 0)


# The selection bias.


def test_the_sign_update_moves_by_its_rate_whatever_the_lack():
    """The mean load is 3: experts with 6 and 4 go down, with 2 and 0 up; the even layer stays."""
    bias = jnp.float32([[0.5, 0, 0, 0], [0.1, 0, 0, 0]])
    load = jnp.float32([[6, 2, 4, 0], [3, 3, 3, 3]])
    got = selection_bias.step(bias, load, "sign", 0.01)
    np.testing.assert_allclose(got, [[0.49, 0.01, -0.01, 0.01], [0.1, 0, 0, 0]], atol=1e-7)


def test_the_proportional_update_moves_by_the_lack_over_the_mean():
    """(3 - 6, 3 - 2, 3 - 4, 3 - 0) / 3 times the rate; twice the batch moves it no further."""
    bias, load = jnp.zeros((1, 4)), jnp.float32([[6, 2, 4, 0]])
    want = [[-0.03, 0.01, -0.01, 0.03]]
    for times in (1, 2):
        got = selection_bias.step(bias, times * load, "proportional", 0.03)
        np.testing.assert_allclose(got, want, atol=1e-7)


def control_step_by_step(loads, gains, bias_LE):
    sum_LE, last_LE, found = bias_LE, jnp.zeros_like(bias_LE), []
    for load in loads:
        lack_LE = selection_bias.relative_lack(jnp.float32(load))
        bias_LE, sum_LE = selection_bias.control(sum_LE, last_LE, lack_LE, gains)
        last_LE = lack_LE
        found.append(np.asarray(bias_LE[0]))
    return found


def test_a_controlled_bias_answers_to_the_lack_its_sum_and_its_change():
    """Loads (3, 1), (2, 2), (4, 0) lack (-1, 1) / 2, 0 and (-1, 1). Rate 0.1, twice the lack, once
    its change: 0.05 + 0.1 (1 + 0.5) = 0.2; 0.05 - 0.1 * 0.5 = 0; the sum would be 0.15, but ends at
    0.08: 0.08 + 0.1 (2 + 1) = 0.38.
    """
    gains = selection_bias.Gains(rate=0.1, proportional=2, difference=1, limit=0.08)
    got = control_step_by_step([[[3, 1]], [[2, 2]], [[4, 0]]], gains, jnp.zeros((1, 2)))
    np.testing.assert_allclose(got, [[-0.2, 0.2], [0, 0], [-0.38, 0.38]], atol=1e-6)


def test_a_sum_does_not_wind_up():
    """After any number of steps without a token, expert 0 is at its limit, 0.3; one step with all
    takes it back by the rate, and so it does from a bias of 0.9 beyond the limit.
    """
    gains = selection_bias.Gains(rate=0.1, proportional=0, difference=0, limit=0.3)
    loads = [[[0, 4]]] * 50 + [[[4, 0]]]
    got = control_step_by_step(loads, gains, jnp.zeros((1, 2)))
    np.testing.assert_allclose(got[-2:], [[0.3, -0.3], [0.2, -0.2]], atol=1e-6)
    got = control_step_by_step([[[0, 4]], [[4, 0]]], gains, jnp.float32([[0.9, 0]]))
    np.testing.assert_allclose(got, [[0.9, -0.1], [0.8, 0]], atol=1e-6)


def test_a_controlled_bias_evens_out_the_load():
    """As soon as its sum alone, and it stays even; with too much of what is not the sum the load
    swings from step to step.
    """
    logits, real = skewed(0), np.ones((2, 1024), bool)
    rule, last = TokenChoiceRule(score="sigmoid"), {}
    for p, d in ((0, 0), (1, 0.5), (8, 1)):
        gains = selection_bias.Gains(rate=0.01, proportional=p, difference=d, limit=1)
        bias_LE = sum_LE = last_LE = jnp.zeros((1, 8))
        violations = []
        for _ in range(80):
            load_E, _ = load_and_margins(logits, real, bias_LE[0], rule, 2)
            violations.append(float(balance.max_violation(load_E)))
            lack_LE = selection_bias.relative_lack(load_E[None])
            bias_LE, sum_LE = selection_bias.control(sum_LE, last_LE, lack_LE, gains)
            last_LE = lack_LE
        assert violations[0] > 1
        last[p] = max(violations[-10:])
    assert max(last[0], last[1]) < 0.1 and last[8] > 0.3


def test_a_centred_bias_has_mean_zero_and_the_same_differences():
    got = selection_bias.centre(jnp.float32([[3, 1, 2, 0], [0, 0, 0, 4]]))
    np.testing.assert_allclose(got, [[1.5, -0.5, 0.5, -1.5], [-1, -1, -1, 3]])


@functools.partial(jax.jit, static_argnames=("rule", "top_k"))
def load_and_margins(logits_GSE, real_GS, bias_E, rule, top_k):
    inputs = RouterInput(
        logits_GSE=logits_GSE, real_GS=real_GS, top_k=top_k, capacity=1, bias_E=bias_E
    )
    load_E = asked(choose(inputs, rule), real_GS).sum((0, 1))
    return load_E, selection_bias.margin_histogram(inputs, rule)


def skewed(seed: int, spread: float = 1.0) -> np.ndarray:
    """Logits of 2048 tokens that like the last of eight experts best."""
    logits = np.random.default_rng(seed).normal(size=(2, 1024, 8))
    return np.float32(logits + spread * np.linspace(-2, 2, 8))


@pytest.mark.parametrize("update", ["sign", "proportional"])
def test_the_bias_evens_out_the_load_step_by_step(update):
    logits, real = skewed(0), np.ones((2, 1024), bool)
    bias_E = jnp.zeros(8)
    violations = []
    for _ in range(120):
        load_E, _ = load_and_margins(logits, real, bias_E, TokenChoiceRule(score="sigmoid"), 2)
        violations.append(float(balance.max_violation(load_E)))
        bias_E = selection_bias.step(bias_E, load_E, update, 0.01)
    assert violations[0] > 1 and violations[-1] < 0.1


def test_the_margin_is_the_bias_that_a_token_would_need():
    """One token scores (0.9, 0.5, 0.2) and chooses one. Its cutoff is the second score, 0.5.

    Margins are -0.4, 0 and 0.3; without bias, bins divide [-1, 1].
    """
    score = np.float32([[[0.9, 0.5, 0.2]]])
    logits = np.log(score) - np.log1p(-score)
    rule = TokenChoiceRule(score="sigmoid")
    _, margin_EM = load_and_margins(logits, np.ones((1, 1), bool), jnp.zeros(3), rule, 1)
    assert margin_EM.shape == (3, selection_bias.BINS)
    np.testing.assert_array_equal(margin_EM.sum(-1), 1)
    low_E = -1 + 2 * np.argmax(margin_EM, axis=-1) / selection_bias.BINS
    np.testing.assert_allclose(low_E + 1 / selection_bias.BINS, [-0.4, 0, 0.3], atol=0.0015)


def test_the_quantile_of_a_histogram_by_hand():
    """Two experts, one choice: half of the tokens must lie below the solved bias.

    Of eight tokens, expert 0 has four in bin 256 and four in bin 768 of [-1, 1]: the quantile 1/2
    is the upper edge of bin 256. Expert 1 has all in bin 512: its middle. Less their mean.
    """
    margin = np.zeros((1, 2, selection_bias.BINS), np.float32)
    margin[0, 0, 256] = margin[0, 0, 768] = 4
    margin[0, 1, 512] = 8
    want = np.array([-1 + 2 * 257 / 1024, -1 + 2 * 512.5 / 1024])
    got = selection_bias.quantile(jnp.zeros((1, 2)), jnp.asarray(margin), 1)
    np.testing.assert_allclose(got, [want - want.mean()], atol=1e-6)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@settings(property_test, max_examples=10)
@given(seed=seeds)
def test_with_the_solved_bias_each_expert_would_clear_its_share_of_cutoffs(score, seed):
    """K / E of the tokens, to within those in one bin, all cutoffs being what they were."""
    rng = np.random.default_rng(seed)
    logits, real = skewed(seed), rng.random((2, 1024)) > 0.2
    bias_E = np.float32(rng.normal(size=8) / 4)
    _, margin_EM = load_and_margins(logits, real, bias_E, TokenChoiceRule(score=score), 2)
    np.testing.assert_array_equal(margin_EM.sum(-1), real.sum())
    z = np.float64(logits)
    s = 1 / (1 + np.exp(-z)) if score == "sigmoid" else np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    cutoff = np.sort(s + bias_E, axis=-1)[..., [-3]]
    solved_E = selection_bias.quantile(bias_E[None], margin_EM[None], 2)[0]
    margins = (cutoff - s)[real]
    exact_E = np.quantile(margins, 2 / 8, axis=0)
    bin_width = (np.ptp(bias_E) + 2) / selection_bias.BINS
    shift = (exact_E - solved_E).mean()  # a constant that no choice depends on
    np.testing.assert_allclose(solved_E + shift, exact_E, atol=2 * bin_width)
    np.testing.assert_allclose(solved_E.mean(), 0, atol=1e-6)


@settings(property_test, max_examples=10)
@given(seed=seeds)
def test_quantile_balancing_settles_where_the_load_is_even(seed):
    """One step moves the cutoffs, too; on the same batch it takes a few to settle."""
    logits, real = skewed(seed), np.ones((2, 1024), bool)
    bias_E, rule = jnp.zeros(8), TokenChoiceRule(score="sigmoid")
    violations = []
    for _ in range(8):
        load_E, margin_EM = load_and_margins(logits, real, bias_E, rule, 2)
        violations.append(float(balance.max_violation(load_E)))
        bias_E = selection_bias.quantile(bias_E[None], margin_EM[None], 2)[0]
    assert violations[0] > 1
    assert violations[1] < 0.5 * violations[0]
    assert violations[-1] < 0.06


def test_histograms_of_parts_add_up_and_padding_is_in_none():
    logits, rule = skewed(3), TokenChoiceRule()
    real = np.random.default_rng(3).random((2, 1024)) > 0.5
    bias = jnp.zeros(8)
    margins = [
        load_and_margins(logits, real & half, bias, rule, 2)[1]
        for half in (True, np.array([[True], [False]]), np.array([[False], [True]]))
    ]
    np.testing.assert_array_equal(margins[0], margins[1] + margins[2])
    np.testing.assert_array_equal(margins[0].sum(-1), real.sum())


# Metrics.


def test_load_is_counted_before_capacity():
    logits = jax.random.normal(jax.random.key(0), (2, 16, 4))
    real = np.ones((2, 16), bool)
    free, full = (
        jax.tree.map(np.asarray, one_layer(logits, real, 2, seats)) for seats in (True, False)
    )
    np.testing.assert_array_equal(free.asked_BE, full.asked_BE)
    assert full.asked_BE.sum() == 64 and full.seated_BE.sum() == 0
    assert balance.dropped_fraction(full.asked_BE, full.seated_BE) == 1
    assert balance.dropped_fraction(free.asked_BE, free.seated_BE) == 0


def test_metrics_by_hand():
    """Loads (6, 2, 4, 0) have mean 3 and maximum 6: a violation of 1, and one dead expert."""
    load = np.float32([[6, 2, 4, 0], [3, 3, 3, 3], [0, 0, 0, 0]])
    np.testing.assert_allclose(balance.max_violation(load), [1, 0, 0])
    assert balance.dead_experts(load) == 5
    seated = np.float32([[3, 2, 3, 0], [3, 3, 3, 3], [0, 0, 0, 0]])
    assert balance.dropped_fraction(load, seated) == pytest.approx(4 / 24)
    assert balance.dropped_fraction(0 * load, 0 * load) in (0, 1)


def test_saturation_is_the_share_of_choices_that_were_made_before():
    """Two tokens, two experts each of four. The first keeps one of its two, the second both."""
    now, before = np.zeros((2, 1, 1, 2, 4), bool)
    now[0, 0, 0, [0, 1]] = now[0, 0, 1, [2, 3]] = True
    before[0, 0, 0, [0, 2]] = before[0, 0, 1, [2, 3]] = True
    np.testing.assert_allclose(balance.saturation(now, before), [3 / 4])
    np.testing.assert_allclose(balance.saturation(now, now), [1])
    np.testing.assert_allclose(balance.saturation(now, ~now), [0])


def test_stats_of_two_layers_keep_their_layers():
    stats = one_layer(jnp.ones((4, 3, 5)), np.ones((4, 3), bool), 2)
    total = balance.sum_sequences(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), stats))
    chex.assert_shape(total.asked_BE, (2, 5))
    np.testing.assert_array_equal(total.asked_BE[:, 0], [12, 24])
