"""Routing told as a story: six tokens, three experts, and two slots an expert."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import ConfigError, MoEConfig
from moejax.dispatch.einsum import dispatch_combine
from moejax.routing import token_choice
from moejax.routing.seating import capacity, seat

# Six tokens in one group, three experts. Each row holds the probabilities of one token; all but the
# last are real, the last is padding.
PROBABILITIES = np.array(
    [
        [0.7, 0.2, 0.1],  # wants 0, then 1
        [0.6, 0.3, 0.1],  # wants 0, then 1
        [0.5, 0.1, 0.4],  # wants 0, then 2
        [0.2, 0.1, 0.7],  # wants 2, then 0
        [0.1, 0.8, 0.1],  # wants 1, then 0 (a tie with 2: the lower index wins)
        [0.9, 0.05, 0.05],  # padding
    ],
    np.float32,
)
REAL = np.array([[True, True, True, True, True, False]])
LOGITS = np.log(PROBABILITIES)[None]


def test_top_two_weights_are_shares_of_the_two_chosen():
    choice = token_choice.choose(LOGITS, token_choice.preset("top_k", 2))
    expected = [[0, 1], [0, 1], [0, 2], [2, 0], [1, 0], [0, 1]]
    np.testing.assert_array_equal(choice.expert_GSK[0], expected)
    np.testing.assert_allclose(choice.weight_GSK[0, 0], [7 / 9, 2 / 9], rtol=1e-6)
    np.testing.assert_allclose(choice.weight_GSK[0, 4], [8 / 9, 1 / 9], rtol=1e-6)
    np.testing.assert_allclose(choice.weight_GSK.sum(-1), 1, rtol=1e-6)


def test_switch_weighs_with_the_probability_itself():
    choice = token_choice.choose(LOGITS, token_choice.preset("switch", 1))
    np.testing.assert_array_equal(choice.expert_GSK[0, :, 0], [0, 0, 0, 2, 1, 0])
    np.testing.assert_allclose(choice.weight_GSK[0, :, 0], PROBABILITIES.max(1), rtol=1e-6)


def test_first_choices_are_seated_before_second_ones():
    choice = token_choice.choose(LOGITS, token_choice.preset("top_k", 2))
    slot_GSK = seat(choice.expert_GSK, REAL, num_experts=3, capacity=2)
    # First choices: tokens 0 and 1 fill expert 0, token 2 is dropped; token 3 sits in expert 2,
    # token 4 in expert 1. Second choices: token 0 takes the last slot of expert 1, token 1 finds it
    # full; token 2 takes the last slot of expert 2; tokens 3 and 4 find expert 0 full. Padding has
    # none.
    expected = [[0, 1], [1, -1], [-1, 1], [0, -1], [0, -1], [-1, -1]]
    np.testing.assert_array_equal(slot_GSK[0], expected)


def test_dispatch_and_combine_hold_one_number_for_each_seat():
    choice = token_choice.choose(LOGITS, token_choice.preset("top_k", 2))
    slot_GSK = seat(choice.expert_GSK, REAL, num_experts=3, capacity=2)
    dispatch_GSEC, combine_GSEC = dispatch_combine(choice, slot_GSK, 3, 2)
    chex.assert_shape((dispatch_GSEC, combine_GSEC), (1, 6, 3, 2))
    seats = {(s, e, c) for _, s, e, c in np.argwhere(dispatch_GSEC)}
    assert seats == {(0, 0, 0), (0, 1, 1), (1, 0, 1), (2, 2, 1), (3, 2, 0), (4, 1, 0)}
    assert np.asarray(dispatch_GSEC).sum(1).max() == 1  # nobody shares a slot
    np.testing.assert_allclose(combine_GSEC[0, 0, 0, 0], 7 / 9, rtol=1e-6)
    np.testing.assert_allclose(combine_GSEC[0, 2, 2, 1], 4 / 9, rtol=1e-6)
    assert float(jnp.where(dispatch_GSEC, 0, combine_GSEC).max()) == 0


def test_equal_logits_go_to_the_lowest_experts():
    choice = token_choice.choose(jnp.zeros((1, 1, 5)), token_choice.preset("top_k", 3))
    np.testing.assert_array_equal(choice.expert_GSK[0, 0], [0, 1, 2])


def test_a_token_never_chooses_an_expert_twice_even_at_infinite_confidence():
    logits = jnp.array([[[1e9, 0.0, 0.0, -1e9]]])
    choice = token_choice.choose(logits, token_choice.preset("top_k", 4))
    assert sorted(np.asarray(choice.expert_GSK[0, 0])) == [0, 1, 2, 3]
    chex.assert_tree_all_finite(choice)


def test_gradients_reach_the_logits_through_the_weights():
    def first_weight(logits):
        return token_choice.choose(logits, token_choice.preset("top_k", 2)).weight_GSK[0, 0, 0]

    grad = jax.grad(first_weight)(jnp.asarray(LOGITS))[0, 0]
    # w = p0 / (p0 + p1), so dw/dlogit0 = w (1 - w) = -dw/dlogit1, and the third does not matter.
    np.testing.assert_allclose(grad, [14 / 81, -14 / 81, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "factor", "slots"),
    [
        (64, 2, 8, 1.25, 20),
        (10, 1, 1, 1.1, 10),  # never more than the group
        (100, 1, 10, 1.1, 11),  # not 12, though 1.1 * 10 is 11.000000000000002
        (8, 1, 64, 0.5, 1),  # never none
        (10, 2, 4, 1.0, 5),
    ],
)
def test_capacity(tokens, top_k, experts, factor, slots):
    assert capacity(tokens, top_k, experts, factor) == slots


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 9}, "--model.moe.num-experts, 8"),
        ({"capacity_factor": 0.0}, "--model.moe.capacity-factor must be greater than 0"),
        ({"capacity_factor": float("nan")}, "--model.moe.capacity-factor"),
        ({"router": "switch"}, "--model.moe.top-k is 2: set it to 1"),
        ({"num_experts": 0}, "--model.moe.num-experts"),
    ],
)
def test_impossible_settings_are_refused_with_the_way_out(settings, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        MoEConfig(**settings)
