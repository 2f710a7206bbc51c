"""Routers told as stories: every number here can be checked on paper."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from scipy.optimize import linear_sum_assignment

from moejax.config import MoEConfig
from moejax.moe.dispatch import einsum
from moejax.moe.layer import MoELayer
from moejax.moe.travel import Travel
from moejax.routing import assignment
from moejax.routing.baselines import balance_by_frequency, mix
from moejax.routing.contract import Choice, RouterInput, asked
from moejax.routing.routers import ROUTERS, Router
from moejax.routing.seating import capacity, seat_choices


@functools.partial(jax.jit, static_argnames=("function", "rule", "top_k", "capacity", "training"))
def answer(arrays, *, function, rule, **known):
    return Router(function=function, rule=rule).choose(RouterInput(**arrays, **known))


def ask(name, logits_SE, top_k, *, settings=None, capacity=None, training=False, **more) -> Choice:
    """What the router ``name`` answers to one group; ``more`` are further inputs, without the G."""
    router = ROUTERS[name].override(name, settings or {})
    logits_GSE = jnp.asarray(logits_SE, jnp.float32)[None]
    G, S, _ = logits_GSE.shape
    more = {k: jnp.asarray(x)[None] if "_GS" in k else x for k, x in more.items()}
    return answer(
        {"logits_GSE": logits_GSE, "real_GS": np.ones((G, S), bool)} | more,
        function=router.function,
        rule=router.rule,
        top_k=top_k,
        capacity=capacity or S,
        training=training,
    )


@functools.partial(jax.jit, static_argnames=("capacity", "seating"))
def slots(choice, real_GS, *, capacity, seating="position"):
    """Who sits where, of three experts."""
    return seat_choices(choice, real_GS, 3, capacity, seating)


def logit(p):
    return np.log(p) - np.log1p(-np.asarray(p))


def assert_chosen(choice, experts_SK, weights_SK=None):
    np.testing.assert_array_equal(choice.expert_GSK[0], experts_SK)
    if weights_SK is not None:
        np.testing.assert_allclose(choice.weight_GSK[0], weights_SK, rtol=1e-5)


@pytest.fixture
def draw(monkeypatch):
    """Let a function of ``jax.random`` give these very numbers."""

    def fix(kind: str, numbers) -> None:
        monkeypatch.setattr(
            jax.random, kind, lambda key, shape: jnp.float32(numbers).reshape(shape)
        )

    # They would stay in what is compiled.
    answer.clear_cache()
    yield fix
    answer.clear_cache()


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
LOGITS = np.log(PROBABILITIES)


@pytest.mark.parametrize("name", ["top_k", "noisy_top_k", "gshard", "mixtral", "qwen3_moe"])
def test_top_two_weights_are_shares_of_the_two_chosen(name):
    """Without a key there is no noise and no coin: these five are one router."""
    choice = ask(name, LOGITS, 2)
    assert_chosen(choice, [[0, 1], [0, 1], [0, 2], [2, 0], [1, 0], [0, 1]])
    np.testing.assert_allclose(choice.weight_GSK[0, 0], [7 / 9, 2 / 9], rtol=1e-6)
    np.testing.assert_allclose(choice.weight_GSK[0, 4], [8 / 9, 1 / 9], rtol=1e-6)
    np.testing.assert_allclose(choice.weight_GSK.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(choice.probability_GSE[0], PROBABILITIES, rtol=1e-5)
    assert choice.smooth_load_GSE is None


def test_switch_weighs_with_the_probability_itself():
    choice = ask("switch", LOGITS, 1)
    assert_chosen(choice, [[0], [0], [0], [2], [1], [0]], PROBABILITIES.max(1)[:, None])


@pytest.mark.parametrize("name", ["deepseek_moe", "qwen2_moe", "olmoe", "jamba", "v_moe"])
def test_weights_of_models_that_do_not_renormalise_are_the_probabilities(name):
    choice = ask(name, LOGITS[:2], 2)
    assert_chosen(choice, [[0, 1], [0, 1]], [[0.7, 0.2], [0.6, 0.3]])


def test_dense_gives_every_expert_its_probability():
    choice = ask("dense", LOGITS[1:4], 3)
    assert_chosen(
        choice,
        [[0, 1, 2], [0, 2, 1], [2, 0, 1]],
        [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.7, 0.2, 0.1]],
    )


def test_noise_changes_the_winner_and_the_smooth_load_says_how_likely_that_was(draw):
    """One token with clean logits (2, 1, 0); noise of width 1 draws (-1.5, 0, 0.25).

    Noisy logits are (0.5, 1, 0.25): expert 1 wins, expert 0 is second. Weights are
    softmax(1, 0.5) = (0.6225, 0.3775). Were its own noise drawn again, a chosen expert would stay
    if it beat the third, 0.25: expert 0 with probability Phi(2 - 0.25) = Phi(1.75) = 0.9599,
    expert 1 with Phi(1 - 0.25) = Phi(0.75) = 0.7734. Expert 2 would have to beat the second, 0.5:
    Phi(0 - 0.5) = 0.3085.
    """
    draw("normal", [-1.5, 0, 0.25])
    width_1 = np.log(np.expm1(0.99))  # softplus gives 0.99, and 0.01 is always there
    noise = np.full((1, 3), width_1, np.float32)
    key = jax.random.key(0)
    choice = ask("noisy_top_k", [[2, 1, 0]], 2, noise_GSE=noise, key=key, training=True)
    assert_chosen(choice, [[1, 0]], [[0.62246, 0.37754]])
    np.testing.assert_allclose(choice.smooth_load_GSE[0, 0], [0.9599, 0.7734, 0.3085], atol=1e-4)


def test_the_width_of_the_noise_is_learned_for_each_expert(draw):
    """softplus(0) = 0.6931 and 0.01 more, times 10, lifts expert 2 from 0 to 7.03; expert 0, whose
    width is all but 0.01, falls from 2 to 1.9.
    """
    draw("normal", [-10, 0, 10])
    noise = np.float32([[-30, 0, 0]])
    key = jax.random.key(0)
    choice = ask("noisy_top_k", [[2, 1, 0]], 3, noise_GSE=noise, key=key, training=True)
    odds = np.exp([10 * (np.log(2) + 0.01), 1.9, 1])
    assert_chosen(choice, [[2, 0, 1]], odds[None] / odds.sum())
    np.testing.assert_array_equal(choice.smooth_load_GSE, 1)  # all three are chosen anyhow


def test_v_moe_adds_noise_as_wide_as_an_expert_s_share(draw):
    """Two experts: draws (0, 1) add (0, 0.5) to (1, 0.8); the weight is that of noisy logits,
    sigmoid(1.3 - 1) = 0.5744.
    """
    draw("normal", [0, 1])
    key = jax.random.key(0)
    assert_chosen(ask("v_moe", [[1, 0.8]], 1), [[0]], [[0.54983]])
    assert_chosen(ask("v_moe", [[1, 0.8]], 1, key=key, training=True), [[1]], [[0.57444]])


def test_gshard_keeps_a_second_expert_with_twice_its_weight(draw):
    """Second weights are 1/3, 1/3, 2/9 and 4/9: they stay where twice that exceeds the coin.

    2/3 > 0.6 stays, 2/3 < 0.7 goes, 4/9 < 0.5 goes, 8/9 > 0.8 stays. Who stays alone keeps a
    weight below 1: nothing is normalised again. A first choice stays whatever its coin.
    """
    coins = [[0.99, 0.6], [0.99, 0.7], [0.99, 0.5], [0.99, 0.8]]
    draw("uniform", coins)
    tokens = LOGITS[[1, 1, 0, 2]]
    choice = ask("gshard", tokens, 2, key=jax.random.key(0), training=True)
    assert_chosen(choice, [[0, 1], [0, -1], [0, -1], [0, 2]])
    np.testing.assert_allclose(choice.weight_GSK[0, :, 0], [2 / 3, 2 / 3, 7 / 9, 5 / 9], rtol=1e-5)
    # Who goes is in no count and takes no slot.
    np.testing.assert_array_equal(asked(choice, jnp.ones((1, 4), bool))[0].sum(0), [4, 1, 1])
    assert (slots(choice, np.ones((1, 4), bool), capacity=4)[0, 1:3, 1] == -1).all()


def test_gshard_s_coins_are_fair():
    """Of 4096 tokens whose second weight is 1/4, half keep it (0.5 +- 3 standard deviations)."""
    logits = np.tile(np.log([0.6, 0.2, 0.2]), (4096, 1))
    choice = ask("gshard", logits, 2, key=jax.random.key(1), training=True)
    assert abs((choice.expert_GSK[..., 1] >= 0).mean() - 0.5) < 0.024
    assert (choice.expert_GSK[..., 0] == 0).all()


def test_first_choices_are_seated_before_second_ones():
    choice = ask("top_k", LOGITS, 2)
    slot_GSK = slots(choice, REAL, capacity=2)
    # First choices: tokens 0 and 1 fill expert 0, token 2 is dropped; token 3 sits in expert 2,
    # token 4 in expert 1. Second choices: token 0 takes the last slot of expert 1, token 1 finds it
    # full; token 2 takes the last slot of expert 2; tokens 3 and 4 find expert 0 full. Padding has
    # none.
    expected = [[0, 1], [1, -1], [-1, 1], [0, -1], [0, -1], [-1, -1]]
    np.testing.assert_array_equal(slot_GSK[0], expected)


def test_v_moe_s_most_certain_tokens_are_seated_first():
    """Largest weights are 0.7, 0.6, 0.5, 0.7, 0.8: the tokens queue as 4, 0, 3, 1, 2."""
    choice = ask("v_moe", LOGITS, 2)
    slot_GSK = slots(choice, REAL, capacity=2, seating="priority")
    # First choices: 4 sits in expert 1, 0 in expert 0, 3 in expert 2, 1 in expert 0, which is full
    # when 2 comes. Second choices: 4 and 3 find expert 0 full; 0 takes the last slot of expert 1, 1
    # finds it full; 2 takes the last slot of expert 2. (The padding is the most certain of all.)
    expected = [[0, 1], [1, -1], [-1, 1], [0, -1], [0, -1], [-1, -1]]
    np.testing.assert_array_equal(slot_GSK[0], expected)


def test_priority_gives_a_later_token_the_slot_of_an_earlier_one():
    """Three tokens want expert 0, which has one slot: the second is most certain."""
    choice = ask("v_moe", np.log([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05], [0.7, 0.2, 0.1]]), 1)
    real = np.ones((1, 3), bool)
    by_position = slots(choice, real, capacity=1)
    by_priority = slots(choice, real, capacity=1, seating="priority")
    np.testing.assert_array_equal(by_position[0, :, 0], [0, -1, -1])
    np.testing.assert_array_equal(by_priority[0, :, 0], [-1, 0, -1])


def test_dispatch_and_combine_hold_one_number_for_each_seat():
    choice = ask("top_k", LOGITS, 2)
    form = functools.partial(einsum.tensors, num_experts=3, capacity=2, seating="position")
    dispatch_GSEC, combine_GSEC, seated_GSE = jax.tree.map(np.asarray, jax.jit(form)(choice, REAL))
    chex.assert_shape((dispatch_GSEC, combine_GSEC), (1, 6, 3, 2))
    seats = {(s, e, c) for _, s, e, c in np.argwhere(dispatch_GSEC)}
    assert seats == {(0, 0, 0), (0, 1, 1), (1, 0, 1), (2, 2, 1), (3, 2, 0), (4, 1, 0)}
    assert dispatch_GSEC.sum(1).max() == 1  # nobody shares a slot
    np.testing.assert_allclose(combine_GSEC[0, 0, 0, 0], 7 / 9, rtol=1e-6)
    np.testing.assert_allclose(combine_GSEC[0, 2, 2, 1], 4 / 9, rtol=1e-6)
    assert np.where(dispatch_GSEC, 0, combine_GSEC).max() == 0
    np.testing.assert_array_equal(seated_GSE, dispatch_GSEC.any(-1))


def test_deepseek_v2_looks_into_the_groups_with_the_best_expert():
    """Three groups of two experts, of which two are kept.

    Their best scores are 0.30, 0.20 and 0.25: the first and the last group stay. There the best two
    are experts 0 and 4, though expert 2 or 3 would be next. Their weights are the probabilities,
    or 16 times that, as in the released model.
    """
    logits = np.log([[0.30, 0.02, 0.20, 0.18, 0.25, 0.05]])
    groups = {"expert_groups": 3, "kept_expert_groups": 2}
    assert_chosen(ask("deepseek_v2", logits, 2, settings=groups), [[0, 4]], [[0.30, 0.25]])
    scaled = ask("deepseek_v2", logits, 2, settings=groups | {"weight_scale": 16.0})
    assert_chosen(scaled, [[0, 4]], [[4.8, 4.0]])
    one = ask("deepseek_v2", logits, 2, settings=groups | {"kept_expert_groups": 1})
    assert_chosen(one, [[0, 1]], [[0.30, 0.02]])
    assert_chosen(ask("deepseek_v2", logits, 3), [[0, 4, 2]])  # without groups


SIGMOIDS = [[0.60, 0.10, 0.50, 0.45, 0.55, 0.20]]


def test_deepseek_v3_looks_into_the_groups_with_the_best_two():
    """Sums of the best two are 0.70, 0.95 and 0.75: the group of the best expert goes.

    Experts 4 and 2 remain, with weights 0.55 and 0.50 over 1.05, times 2.5. The probabilities, for
    losses, are the scores over their sum, 2.4.
    """
    settings = {"expert_groups": 3, "kept_expert_groups": 2}
    choice = ask("deepseek_v3", logit(SIGMOIDS), 2, settings=settings)
    assert_chosen(choice, [[4, 2]], [[2.5 * 0.55 / 1.05, 2.5 * 0.50 / 1.05]])
    np.testing.assert_allclose(choice.probability_GSE[0], np.divide(SIGMOIDS, 2.4), rtol=1e-5)


def test_the_bias_changes_deepseek_v3_s_choice_and_not_its_weights():
    """A bias of 0.3 lifts expert 0 to 0.90 and its group to 1.00, above 0.75.

    Now experts 0 and 2 are chosen. Their weights are 0.60 and 0.50 over 1.10, times 2.5: the bias
    is not in them, nor in the probabilities.
    """
    settings = {"expert_groups": 3, "kept_expert_groups": 2}
    bias = jnp.float32([0.3, 0, 0, 0, 0, 0])
    choice = ask("deepseek_v3", logit(SIGMOIDS), 2, settings=settings, bias_E=bias)
    assert_chosen(choice, [[0, 2]], [[2.5 * 0.60 / 1.10, 2.5 * 0.50 / 1.10]])
    np.testing.assert_allclose(choice.probability_GSE[0], np.divide(SIGMOIDS, 2.4), rtol=1e-5)


def test_a_bias_on_logits_moves_a_sure_token_as_much_as_any_other():
    """Logits (8, 6, 0): both sigmoids are nearly 1, 0.9997 and 0.9975. A bias of 1 on expert 2
    lifts a score of 0.5 to 1.5, above both. On the logits it lifts 0 to 1, which is below both; a
    bias of 3 on expert 1 makes that 9. The weights are the sigmoids without any bias.
    """
    sigmoids = 1 / (1 + np.exp(-np.array([8.0, 6.0, 0.0])))
    on_logits, logits = {"bias_on": "logits"}, [[8, 6, 0]]
    bias = jnp.float32([0, 0, 1])
    assert_chosen(ask("minimax_m2", logits, 1, bias_E=bias), [[2]])
    assert_chosen(ask("minimax_m2", logits, 1, settings=on_logits, bias_E=bias), [[0]])
    choice = ask("minimax_m2", logits, 2, settings=on_logits, bias_E=jnp.float32([0, 3, 0]))
    assert_chosen(choice, [[1, 0]], [sigmoids[[1, 0]] / sigmoids[:2].sum()])
    np.testing.assert_array_equal(choice.unbiased_GSK[0], [[0, 1]])


def test_weights_sum_to_what_is_asked_for():
    """Sigmoids 0.60 and 0.55 over 1.15, times 3: they sum to 3, as any token's do."""
    choice = ask("flint", logit(SIGMOIDS), 2, settings={"weight_scale": 3.0})
    assert_chosen(choice, [[0, 4]], [[3 * 0.60 / 1.15, 3 * 0.55 / 1.15]])


@pytest.mark.parametrize(("name", "scale"), [("glm4_moe", 2.5), ("minimax_m2", 1.0)])
def test_relatives_of_deepseek_v3_have_their_own_scale(name, scale):
    weights = [[scale * 0.60 / 1.15, scale * 0.55 / 1.15]]
    assert_chosen(ask(name, logit(SIGMOIDS), 2), [[0, 4]], weights)


def test_a_group_of_one_expert_is_judged_by_that_expert():
    settings = {"expert_groups": 3, "kept_expert_groups": 2}
    choice = ask("deepseek_v3", logit([[0.5, 0.4, 0.6]]), 2, settings=settings)
    assert_chosen(choice, [[2, 0]])


@pytest.mark.parametrize("name", ["gpt_oss", "granite"])
def test_weights_can_be_a_softmax_over_the_chosen_logits(name):
    """exp(logits) are 8, 4, 2, 1: of the chosen 8 and 4, the shares are 2/3 and 1/3."""
    assert_chosen(ask(name, np.log([[1, 4, 2, 8]]), 2), [[3, 1]], [[2 / 3, 1 / 3]])


def test_ernie_chooses_by_probability_and_bias():
    """(0.5, 0.3, 0.2) with bias (-0.3, 0, 0.15) is (0.2, 0.3, 0.35): experts 2 and 1, which share
    the weight as 0.2 to 0.3.
    """
    bias = jnp.float32([-0.3, 0, 0.15])
    assert_chosen(
        ask("ernie4_5", np.log([[0.5, 0.3, 0.2]]), 2, bias_E=bias), [[2, 1]], [[0.4, 0.6]]
    )


def test_a_token_takes_experts_until_they_gather_enough():
    """Probabilities (0.5, 0.3, 0.2): the first has 0.4; for 0.6 it takes a second, for 0.9 all.
    At most K. Even ones of 0.25 each: two have 0.5, which is what 0.4 wants.
    """
    logits = np.log([[0.5, 0.3, 0.2]])
    assert_chosen(ask("dynamic_top_p", logits, 3), [[0, -1, -1]], [[0.5, 0, 0]])
    some = {"top_p": 0.6}
    assert_chosen(ask("dynamic_top_p", logits, 3, settings=some), [[0, 1, -1]], [[0.5, 0.3, 0]])
    every = {"top_p": 0.9}
    assert_chosen(ask("dynamic_top_p", logits, 3, settings=every), [[0, 1, 2]], [[0.5, 0.3, 0.2]])
    assert_chosen(ask("dynamic_top_p", logits, 2, settings=every), [[0, 1]], [[0.5, 0.3]])
    assert_chosen(ask("dynamic_top_p", np.zeros((1, 4)), 4), [[0, 1, -1, -1]])
    shared = some | {"renormalise": True}
    assert_chosen(
        ask("dynamic_top_p", logits, 3, settings=shared), [[0, 1, -1]], [[5 / 8, 3 / 8, 0]]
    )
    # Chosen by 0.2 + 0.4 first; by what they would choose without the bias, one has enough.
    bias = jnp.float32([0, 0, 0.4])
    choice = ask("dynamic_top_p", logits, 3, bias_E=bias)
    assert_chosen(choice, [[2, 0, -1]], [[0.2, 0.5, 0]])
    np.testing.assert_array_equal(choice.unbiased_GSK[0], [[0, -1, -1]])


def test_an_expert_takes_every_token_whose_score_is_above_its_threshold():
    """Thresholds 0.5, 0.3 and 0.7 of scores (0.6, 0.4, 0.6): experts 0 and 1 are above, by as much;
    of (0.4, 0.2, 0.9) expert 2 alone, of (0.5, 0.1, 0.1) none. With K = 1 the first has one.
    """
    scores, bias = [[0.6, 0.4, 0.6], [0.4, 0.2, 0.9], [0.45, 0.1, 0.1]], [-0.5, -0.29, -0.7]
    choice = ask("expert_threshold", logit(scores), 2, bias_E=jnp.float32(bias))
    assert_chosen(choice, [[1, 0], [2, -1], [-1, -1]], [[0.4, 0.6], [0.9, 0], [0, 0]])
    one = ask("expert_threshold", logit(scores), 1, bias_E=jnp.float32(bias))
    assert_chosen(one, [[1], [2], [-1]])
    # No threshold yet: the K best.
    assert_chosen(ask("expert_threshold", logit(scores[:1]), 2, bias_E=jnp.zeros(3)), [[0, 2]])


def test_remoe_weighs_with_what_a_relu_lets_through():
    """Of logits (2, -1, 0.5) two are positive, and are the weights; of (-1, -2, 0) none."""
    choice = ask("remoe", [[2, -1, 0.5], [-1, -2, 0]], 3)
    assert_chosen(choice, [[0, 2, -1], [-1, -1, -1]], [[2, 0.5, 0], [0, 0, 0]])
    np.testing.assert_allclose(choice.probability_GSE[0], [[0.8, 0, 0.2], [0, 0, 0]])
    assert_chosen(ask("remoe", [[2, 1, 0.5]], 2), [[0, 1]], [[2, 1]])


def test_a_hash_says_who_and_the_router_how_much():
    """The hash of 0 is 0: experts 0 and 1. softplus(log(e^4 - 1)) is 4 and softplus(log(e - 1)) 1,
    whose roots are 2 and 1; expert 2, which the token would like best, is not asked.
    """
    logits = [[np.log(np.expm1(4)), np.log(np.expm1(1)), 9]]
    choice = ask("hash_weighted", logits, 2, token_GS=np.int32([0]))
    assert_chosen(choice, [[0, 1]], [[2 / 3, 1 / 3]])
    own = {"renormalise": False, "weight_scale": 0.5}
    choice = ask("hash_weighted", logits, 2, settings=own, token_GS=np.int32([0]))
    assert_chosen(choice, [[0, 1]], [[1, 0.5]])


def test_a_token_that_finds_no_room_goes_to_the_next_best_expert_that_has():
    """All want expert 0, which has one slot: the second scores it highest. With one candidate the
    others have none; with two, the first goes to expert 1, which the third scores lower. Nobody is
    told so in training.
    """
    logits = np.log([[0.5, 0.4, 0.1], [0.6, 0.3, 0.1], [0.45, 0.2, 0.35]])
    few = {"capacity": 1, "settings": {"eval_candidates": 1}}
    assert_chosen(ask("switch", logits, 1, **few), [[-1], [0], [-1]], [[0], [0.6], [0]])
    two = {"capacity": 1, "settings": {"eval_candidates": 2}}
    assert_chosen(ask("switch", logits, 1, **two), [[1], [0], [2]], [[0.4], [0.6], [0.35]])
    assert_chosen(ask("switch", logits, 1, training=True, **two), [[0], [0], [0]])
    assert_chosen(ask("switch", logits, 1, settings=two["settings"]), [[0], [0], [0]])


def test_who_stays_below_a_threshold_takes_nobody_s_room():
    """Expert 0 has one slot and the threshold 0.5: 0.45 does not want it, whoever else does."""
    few = {"capacity": 1, "settings": {"eval_candidates": 2}}
    bias, scores = jnp.float32([-0.5, -0.3]), logit([[0.45, 0.6], [0.55, 0.2]])
    choice = ask("expert_threshold", scores, 1, bias_E=bias, **few)
    assert_chosen(choice, [[1], [0]], [[0.6], [0.55]])
    choice = ask("expert_threshold", logit([[0.6, 0.2], [0.55, 0.2]]), 1, bias_E=bias, **few)
    assert_chosen(choice, [[0], [-1]])


@pytest.mark.parametrize("name", ["top_k", "minimax_m2"])
def test_capacity_aware_choices_are_those_of_a_loop(name):
    """With a bias, padding, and weights that are divided by the sum over those that had room."""
    rng = np.random.default_rng(0)
    logits, bias = np.float32(rng.normal(size=(16, 6))), np.float32(0.3 * rng.normal(size=6))
    real = rng.random((1, 16)) > 0.2
    given = {"settings": {"eval_candidates": 4}, "capacity": 3, "bias_E": bias}
    choice = ask(name, logits, 2, real_GS=real[0], **given)
    rows = [oracle.softmax(row) if name == "top_k" else oracle.sigmoid(row) for row in logits]
    score = np.array(rows)
    want = oracle.capacity_aware(score, score + bias, real[0], 2, 4, 3)
    np.testing.assert_array_equal(np.where(real[0][:, None], choice.expert_GSK[0], -1), want)
    there = real[0] & (want[:, 0] >= 0)
    np.testing.assert_allclose(choice.weight_GSK[0].sum(-1)[there], 1, rtol=1e-5)
    assert (want == -1).any() and np.bincount(want[want >= 0]).max() == 3
    plain = ask(name, logits, 2, bias_E=bias, capacity=3)
    assert (plain.expert_GSK[0] != want)[real[0]].any()


def test_llama4_weighs_what_an_expert_gets():
    """Expert 0 is f(x) = silu(x) x. With a logit of 0 the weight is 0.5, and the token 1.

    f(0.5) = 0.5 * 0.3112 = 0.1556; a weight on the output would give 0.5 f(1) = 0.3655.
    """
    choice = ask("llama4", [[0.0, -1.0]], 1)
    assert_chosen(choice, [[0]], [[0.5]])
    ones = {name: jnp.ones((2, 1, 1)) for name in ("w_gate_EDF", "w_up_EDF", "w_down_EFD")}
    run = functools.partial(einsum.route, travel=Travel(activation="swiglu", capacity=1))
    got, seated = jax.jit(run)(ones, jnp.ones((1, 1, 1)), choice, np.ones((1, 1), bool))
    np.testing.assert_allclose(got, [[[0.15561]]], rtol=1e-4)
    np.testing.assert_array_equal(seated, [[[1, 0]]])


# Three tokens, three experts, one slot each.
CONTESTED = np.log([[0.50, 0.45, 0.05], [0.40, 0.30, 0.30], [0.30, 0.30, 0.40]])


def test_experts_choose_and_a_token_may_get_two_or_none():
    """By columns, the largest are 0.50 and 0.45, both token 0, and 0.40, token 2."""
    choice = ask("expert_choice", CONTESTED, 1, capacity=1)
    np.testing.assert_array_equal(choice.token_GEC[0], [[0], [0], [2]])
    np.testing.assert_allclose(choice.weight_GEC[0], [[0.50], [0.45], [0.40]], rtol=1e-5)
    np.testing.assert_array_equal(
        asked(choice, jnp.ones((1, 3), bool))[0], [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    )


def test_experts_choose_in_order_and_leave_slots_empty_where_tokens_run_out():
    """Two slots each, but the last token is padding, and ties go to the earlier token."""
    real = np.array([True, True, False])
    choice = ask("expert_choice", CONTESTED, 2, capacity=3, real_GS=real)
    np.testing.assert_array_equal(choice.token_GEC[0], [[0, 1, -1], [0, 1, -1], [1, 0, -1]])
    tied = ask("expert_choice", np.zeros((3, 3)), 2, capacity=2)
    np.testing.assert_array_equal(tied.token_GEC[0], [[0, 1]] * 3)


def test_under_a_cap_experts_settle_for_the_best_matching():
    """With one expert a token, the six matchings are worth, for tokens (0, 1, 2):

    (0, 1, 2): 0.50 + 0.30 + 0.40 = 1.20    (1, 0, 2): 0.45 + 0.40 + 0.40 = 1.25, the best
    (0, 2, 1): 0.50 + 0.30 + 0.30 = 1.10    (1, 2, 0): 0.45 + 0.30 + 0.30 = 1.05
    (2, 0, 1): 0.05 + 0.40 + 0.30 = 0.75    (2, 1, 0): 0.05 + 0.30 + 0.30 = 0.65
    """
    cap = {"max_experts_per_token": 1}
    choice = ask("expert_choice", CONTESTED, 1, capacity=1, settings=cap)
    np.testing.assert_array_equal(choice.token_GEC[0], [[1], [0], [2]])
    np.testing.assert_allclose(choice.weight_GEC[0], [[0.40], [0.45], [0.40]], rtol=1e-5)
    loose = ask("expert_choice", CONTESTED, 1, capacity=1, settings={"max_experts_per_token": 2})
    np.testing.assert_array_equal(loose.token_GEC[0], [[0], [0], [2]])


def test_soft_slots_are_mixtures():
    """Two tokens, two experts with a slot each; exp(logits) are (3, 1) and (1, 4).

    By columns, slot 0 is 3/4 token 0 and 1/4 token 1, slot 1 is 1/5 and 4/5. By rows, token 0 gets
    3/4 of slot 0 and 1/4 of slot 1, token 1 gets 1/5 and 4/5.
    """
    logits_SEC = np.log(np.float32([[[3], [1]], [[1], [4]]]))
    choice = ask("soft", logits_SEC[..., 0], 1, logits_GSEC=logits_SEC, capacity=1)
    columns, rows = [[3 / 4, 1 / 5], [1 / 4, 4 / 5]], [[3 / 4, 1 / 4], [1 / 5, 4 / 5]]
    np.testing.assert_allclose(choice.dispatch_GSEC[0, ..., 0], columns, rtol=1e-5)
    np.testing.assert_allclose(choice.combine_GSEC[0, ..., 0], rows, rtol=1e-5)
    np.testing.assert_allclose(choice.probability_GSE[0], rows, rtol=1e-5)


def test_padding_is_in_no_soft_slot():
    logits_SEC = np.log(np.float32([[[3], [1]], [[1], [4]]]))
    real = np.array([True, False])
    choice = ask("soft", logits_SEC[..., 0], 1, logits_GSEC=logits_SEC, capacity=1, real_GS=real)
    np.testing.assert_allclose(choice.dispatch_GSEC[0, ..., 0], [[1, 1], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(choice.combine_GSEC[0, ..., 0], [[3 / 4, 1 / 4], [0, 0]], rtol=1e-5)
    nobody = np.array([False, False])
    empty = ask("soft", logits_SEC[..., 0], 1, logits_GSEC=logits_SEC, capacity=1, real_GS=nobody)
    np.testing.assert_array_equal(empty.dispatch_GSEC, 0)


def test_base_finds_the_assignment_that_greed_misses():
    """Four tokens, two experts with two places. The six ways, by who goes to expert 0:

    01: 10 + 8 + 2 + 5 = 25    02: 10 + 1 + 7 + 5 = 23    03: 10 + 1 + 2 + 3 = 16
    12: 9 + 8 + 7 + 5 = 29     13: 9 + 8 + 2 + 3 = 22     23: 9 + 1 + 7 + 3 = 20

    Greed takes the 10 and the 8 first, and ends at 25.
    """
    scores = np.float32([[10, 9], [8, 1], [7, 2], [3, 5]])
    assert_chosen(ask("base", scores, 1, training=True), [[1], [0], [0], [1]])


def test_base_weighs_with_a_sigmoid_and_is_greedy_in_evaluation():
    """Greedy: token 0 to its 1.0, then token 1 to what is left, 0.1: 1.1. Optimal: 0.9 + 0.8."""
    scores = [[1.0, 0.9], [0.8, 0.1]]
    trained = ask("base", scores, 1, training=True)
    assert_chosen(trained, [[1], [0]], 1 / (1 + np.exp([[-0.9], [-0.8]])))
    evaluated = ask("base", scores, 1, training=False)
    assert_chosen(evaluated, [[0], [0]], 1 / (1 + np.exp([[-1.0], [-0.8]])))


@functools.partial(jax.jit, static_argnames="rounds")
def share_out(scores_GSE, real_GS, rounds=1000):
    rule = assignment.BaseRule(rounds=rounds)
    return assignment.balanced_assignment(scores_GSE, real_GS, rule)


def assert_nearly_optimal(scores_GSE, real_GS):
    """Compare the sums of the scores of real tokens to those of the Hungarian method."""
    expert_GS = np.asarray(share_out(np.float32(scores_GSE), real_GS))
    S, E = scores_GSE.shape[1:]
    places = -(-S // E)
    for score_SE, expert_S, real_S in zip(scores_GSE, expert_GS, real_GS, strict=True):
        assert np.bincount(expert_S, minlength=E).max() <= places
        price = np.repeat(score_SE[real_S], places, axis=1)
        best = price[linear_sum_assignment(price, maximize=True)].sum()
        reached = score_SE[np.arange(S), expert_S][real_S].sum()
        precision = assignment.BaseRule().precision * np.ptp(score_SE[real_S])
        assert best - S * precision <= reached <= best + 1e-9


ASSIGNMENTS = {  # five groups of eight tokens each
    "even": lambda rng: (rng.normal(size=(5, 8, 4)), np.ones((5, 8), bool)),
    "ties": lambda rng: (rng.integers(0, 3, (5, 8, 4)), np.ones((5, 8), bool)),
    "S not divisible by E": lambda rng: (rng.normal(size=(5, 8, 3)), np.ones((5, 8), bool)),
    "padding": lambda rng: (rng.normal(size=(5, 8, 4)), rng.random((5, 8)) > 0.3),
}


@pytest.mark.parametrize("kind", ASSIGNMENTS)
def test_base_is_as_good_as_the_hungarian_method(kind):
    assert_nearly_optimal(*ASSIGNMENTS[kind](np.random.default_rng(0)))


def test_base_measures_its_precision_by_real_tokens():
    """Padding has no score: it must not widen the range of scores that precision is a share of.

    All scores are near 1000: counting the padding's as 0 would lose three digits.
    """
    scores = np.float32(1000 + np.random.default_rng(0).normal(size=(6, 64, 4)))
    assert_nearly_optimal(np.float64(scores), np.tile(np.arange(64) < 60, (6, 1)))


def test_base_seats_everyone_when_the_rounds_run_out():
    scores = np.float32(np.random.default_rng(0).normal(size=(1, 8, 4)))
    expert_GS = share_out(scores, np.ones((1, 8), bool), rounds=1)
    np.testing.assert_array_equal(np.bincount(expert_GS[0], minlength=4), 2)


@jax.jit
def plan(logits_GSE, real_GS):
    return jnp.exp(assignment.balanced_log_plan(logits_GSE, real_GS, iterations=8))


def test_sinkhorn_sends_the_less_decided_token_to_the_other_expert():
    """exp(logits) are (8, 1) and (2, 1): both tokens prefer expert 0.

    The plan with all sums 1 is ((t, 1 - t), (1 - t, t)) and scaling rows and columns keeps the
    cross ratio (8 * 1) / (1 * 2) = 4 = (t / (1 - t))^2, so t = 2/3: token 1 goes to expert 1. Its
    weight is the softmax of its logits, 1/3. In evaluation both go to expert 0.
    """
    logits = np.log(np.float32([[8, 1], [2, 1]]))
    balanced = plan(logits[None], np.ones((1, 2), bool))
    np.testing.assert_allclose(balanced[0], [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], atol=1e-5)
    assert_chosen(ask("sinkhorn", logits, 1, training=True), [[0], [1]], [[8 / 9], [1 / 3]])
    assert_chosen(ask("sinkhorn", logits, 1), [[0], [0]], [[8 / 9], [2 / 3]])


def test_padding_has_no_share_of_the_sinkhorn_plan():
    logits = np.log(np.float32([[8, 1], [1, 50], [2, 1]]))
    real = np.array([[True, False, True]])
    balanced = plan(logits[None], real)
    np.testing.assert_allclose(balanced[0, ::2], [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], atol=1e-5)


def murmur(bits: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * factor % 2**32
    return bits ^ (bits >> 16)


def test_hash_sends_a_token_id_to_the_same_experts_wherever_it_stands():
    """The finaliser of MurmurHash3 maps 0 to 0 and 1 to 0x514E28B7, which is 7 modulo 8."""
    assert murmur(1) == 0x514E28B7
    ids = [0, 1, 2, 1, 2**31 - 1, 0]
    choice = ask("hash", np.zeros((6, 8)), 2, token_GS=np.int32(ids))
    first = [murmur(i) % 8 for i in ids]
    assert first[:2] == [0, 7]
    assert_chosen(choice, [[e, (e + 1) % 8] for e in first], np.full((6, 2), 0.5))
    np.testing.assert_allclose(choice.probability_GSE, 1 / 8)


def test_a_table_gives_the_most_frequent_ids_to_who_has_least():
    """Counts 5, 3, 2, 2 of one expert each: 5 for expert 0, 3 for 1, 2 for 2, and the last 2 for 2,
    who has 2. Of two each: 5 for 0 and 1; 3 for 2 and 0; 2 for 2 (3) and 1 (5); 2 for 2 (5) and 1
    (7). What does not occur has no row.
    """
    counts = (5, 3, 2, 2, 0)
    one, two = (balance_by_frequency(counts, 3, top_k) for top_k in (1, 2))
    assert one.tolist() == [[0], [1], [2], [2], [-1]]
    assert two.tolist() == [[0, 1], [2, 0], [2, 1], [2, 1], [-1, -1]]


def test_a_table_evens_out_a_load_that_a_hash_does_not():
    """A thousand ids as frequent as words are (one over the rank), two of eight experts each: the
    fullest expert has less than a thousandth more than its share; by hash, a fifth.
    """
    counts = tuple(int(1e6 / rank) for rank in range(1, 1001))
    table_IK = balance_by_frequency(counts, 8, 2)
    hashed_IK = [[(murmur(i) + k) % 8 for k in range(2)] for i in range(1000)]
    loads = [np.bincount(np.ravel(t), np.repeat(counts, 2)) for t in (table_IK, hashed_IK)]
    assert (table_IK[:, 0] != table_IK[:, 1]).all()
    table, hashed = (load.max() / load.mean() - 1 for load in loads)
    assert table < 0.001 and hashed > 0.2


def test_layers_above_those_with_a_table_choose_by_score_and_bias():
    """softplus(log(e^a^2 - 1)) is a^2, so that the scores are 3, 2, 1; a bias of 2.5 makes the last
    one 3.5. The table has id 0 with expert 1; id 9 is not in it, and its hash is 0 modulo 3.
    """
    logits, own = np.log(np.expm1([[9, 4, 1], [9, 4, 1]])), {"token_counts": (0, 2, 1)}
    assert murmur(9) % 3 == 0
    given = {"settings": own | {"hash_layers": 1}, "token_GS": np.int32([2, 9])}
    given["bias_E"] = jnp.float32([0, 0, 2.5])
    by_table = ask("hash_balanced", logits, 1, by_id=jnp.array(True), **given)
    assert_chosen(by_table, [[1], [0]], [[1], [1]])
    by_score = ask("hash_balanced", logits, 2, by_id=jnp.array(False), **given)
    assert_chosen(by_score, [[2, 0], [2, 0]], [[1 / 4, 3 / 4]] * 2)
    np.testing.assert_array_equal(by_score.unbiased_GSK[0], [[0, 1]] * 2)


def test_the_hash_spreads_ids_evenly():
    """4096 ids in a row over 8 experts: 512 +- 4 standard deviations (of 21.2) each."""
    load = np.bincount(np.asarray(mix(jnp.arange(4096, dtype=jnp.uint32)) % 8))
    assert abs(load - 512).max() < 85


def test_random_draws_by_the_key_alone():
    logits = np.random.default_rng(0).normal(size=(1024, 4))
    draws = [
        ask("random", values, 2, key=key, training=key is not None)
        for values, key in [
            (logits, jax.random.key(1)),
            (-logits, jax.random.key(1)),
            (logits, jax.random.key(2)),
            (logits, None),
            (-logits, None),
        ]
    ]
    chosen = [np.asarray(choice.expert_GSK) for choice in draws]
    np.testing.assert_array_equal(chosen[0], chosen[1])  # same key, same draw, whatever the logits
    assert (chosen[0] != chosen[2]).any()
    np.testing.assert_array_equal(chosen[3], chosen[4])  # evaluation repeats itself
    for experts in chosen:
        assert (experts[..., 0] != experts[..., 1]).all()
        assert abs(np.bincount(experts.ravel()) - 512).max() < 64  # 4 standard deviations of 16
    np.testing.assert_array_equal(draws[0].weight_GSK, 0.5)


def test_identity_experts_give_the_token_back_and_null_experts_nothing():
    """Two experts, one identity, one null; exp(logits) of the token (1, 0) are (1, 2, 6, 2).

    Its choices are the identity, with weight 6/8, and, a tie going to the lower index, expert 1
    with 2/8. The token (0, 1) has (1, 1, 2, 4): the null expert with 4/6, the identity with 2/6.
    One slot an expert is enough: those without computation have room for all.
    """
    moe = MoEConfig(
        num_experts=2, identity_experts=1, null_experts=1, hidden_size=1, group_size=4,
        capacity_factor=0.5, balance=MoEConfig().balance,
    )  # fmt: skip
    layer = MoELayer(moe, "relu")
    params = {
        "w_router_DE": np.log(np.float32([[1, 2, 6, 2], [1, 1, 2, 4]])),
        "w_up_EDF": np.float32([[[1], [1]], [[3], [3]]]),
        "w_down_EFD": np.float32([[[1, 1]], [[1, 1]]]),
    }
    x = np.float32([[[1, 0], [0, 1], [0, 1], [1, 0]]])
    real = np.ones((1, 4), bool)
    y, stats, chosen = jax.jit(functools.partial(layer.apply, training=True))(
        {"params": params}, x, real
    )
    # Expert 1 gives relu(3) (1, 1) to the one token that it has room for, times 1/4.
    want = [[6 / 8 + 3 / 4, 3 / 4], [0, 2 / 6], [0, 2 / 6], [6 / 8, 0]]
    np.testing.assert_allclose(y[0], want, rtol=1e-5)
    np.testing.assert_array_equal(stats.asked_BE, [[0, 2, 4, 2]])
    np.testing.assert_array_equal(stats.seated_BE, [[0, 1, 4, 2]])
    np.testing.assert_array_equal(chosen[0, 0], [False, True, True, False])


def parameters(moe: MoEConfig) -> dict[str, tuple[int, ...]]:
    """The router's parameters that a layer declares, and their shapes."""
    layer = MoELayer(moe, "relu")
    shapes = jax.eval_shape(
        lambda: layer.init(
            jax.random.key(0),
            jnp.ones((1, 4, 3)),
            jnp.ones((1, 4), bool),
            training=False,
            token_BN=jnp.zeros((1, 4), jnp.int32),
        )  # fmt: skip
    )
    found = nn.meta.unbox(shapes["params"])
    return {name: x.shape for name, x in found.items() if name not in ("w_up_EDF", "w_down_EFD")}


@pytest.mark.parametrize(
    ("router", "top_k", "want"),
    [
        ("top_k", 2, {"w_router_DE": (3, 5)}),
        ("noisy_top_k", 2, {"w_router_DE": (3, 5), "w_noise_DE": (3, 5)}),
        ("gpt_oss", 2, {"w_router_DE": (3, 5), "b_router_E": (5,)}),
        # 4 tokens * 2 / 5 experts * 1.25, so two slots.
        ("soft", 2, {"w_router_DEC": (3, 5, 2), "router_scale": ()}),
        ("hash", 2, {}),
        ("random", 2, {}),
    ],
)
def test_a_router_declares_the_parameters_that_it_uses(router, top_k, want):
    moe = MoEConfig(num_experts=5, top_k=top_k, hidden_size=2, group_size=4, router=router)
    assert parameters(moe) == want


def test_equal_logits_go_to_the_lowest_experts():
    assert_chosen(ask("top_k", np.zeros((1, 5)), 3), [[0, 1, 2]])


def test_a_token_never_chooses_an_expert_twice_even_at_infinite_confidence():
    choice = ask("top_k", [[1e9, 0.0, 0.0, -1e9]], 4)
    assert sorted(np.asarray(choice.expert_GSK[0, 0])) == [0, 1, 2, 3]
    chex.assert_tree_all_finite(choice)


def test_gradients_reach_the_logits_through_the_weights():
    grad = jax.grad(lambda logits: ask("top_k", logits, 2).weight_GSK[0, 0, 0])(LOGITS[:1])[0]
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
