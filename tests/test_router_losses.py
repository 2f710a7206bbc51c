"""Losses on what a router is: by hand, and of a layer against the float64 truth with gradients."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from moejax.config import BalanceConfig, MoEConfig
from moejax.moe import router_losses
from moejax.moe.balance import RouterStats, sum_sequences
from moejax.moe.layer import MoELayer
from moejax.moe.layer_stats import layer_stats
from moejax.routing.contract import RouterInput
from moejax.train.objective import losses, weights


def test_vectors_of_length_1_at_right_angles_cost_nothing():
    """(1, 0) and (0.6, 0.8) have length 1 and the product 0.6, which is in two places."""
    loss = router_losses.orthogonality(jnp.float32([[1, 0.6], [0, 0.8]]))
    np.testing.assert_allclose(loss, 1.2, rtol=1e-6)
    assert router_losses.orthogonality(jnp.eye(3)) == 0


def test_experts_that_answer_to_others_cost_as_much_as_they_do_more_than_to_themselves():
    """Vectors (1, 0) and (0, 1) make 1 and 2 in the first expert, 3 and 1 in the second: each
    should make most of its own, which is 1. Over it are 3 and 2, by 2 and 1, each of which counts
    for the vector and for the expert: 6 / 4. With alpha 2 only 3 is over it, by 1: 2 / 4.
    """
    w_EDF = jnp.float32([[[1], [2]], [[3], [1]]])
    for alpha, want in ((1.0, 1.5), (2.0, 0.5)):
        np.testing.assert_allclose(router_losses.coupling(jnp.eye(2), w_EDF, alpha), want)


def test_noise_leaves_each_vector_nearest_to_itself():
    """The next of (2, 0) is (0, 2), sqrt(8) away: half of it over the length 2 is 0.7071."""
    reach = router_losses._half_way(jnp.float32([[2, 0], [0, 2], [-9, 0]]))
    np.testing.assert_allclose(reach[:2, 0], 0.70711, rtol=1e-4)
    np.testing.assert_array_equal(router_losses._half_way(jnp.ones((1, 4))), 0)
    w_EDF, keys = jnp.float32([[[1], [2]], [[3], [1]]]), jax.random.split(jax.random.key(0))
    # Products of one number are noised by at most 0.7071 of themselves.
    found = [float(router_losses.coupling(jnp.eye(2), w_EDF, 1.0, key)) for key in keys]
    assert found[0] != found[1] and max(found) < 2 * (3 + 2) * 1.7072 / 4


NAMES = ("orthogonality_loss", "coupling_loss", "variance_loss", "entropy_loss")
WEIGHTS = dict(zip(NAMES, (0.7, 0.5, 3.0, 0.4), strict=True))


def truth(params, x, real, alpha):
    """SimBal (Omi et al. 2025): ||R^T R - I||_1. ERC (Lv et al. 2025), by loops over pairs, no
    noise. Variance (Guo et al. 2025): of each expert's probability over tokens, negative. Entropy
    (Huang et al. 2024, the dynamic loss): -sum_i P_i log P_i.
    """
    r, w = params["w_router_DE"], params["w_gate_EDF"]
    n = len(w)
    own = np.abs(r.T @ r - np.eye(r.shape[1])).sum()
    m = [[np.sqrt(((r[:, i] @ w[j]) ** 2).sum()) for j in range(n)] for i in range(n)]
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    over = [max(m[i][j] - alpha * m[i][i], 0) + max(m[j][i] - alpha * m[i][i], 0) for i, j in pairs]
    p = np.array([oracle.softmax(token @ r) for token in x[real]])
    entropy = -(p * np.log(p)).sum(1).mean()
    return dict(zip(NAMES, (own, sum(over) / n**2, -p.var(0).mean(), entropy), strict=True))


def test_a_layer_s_losses_and_their_gradients_are_those_of_the_papers():
    """With padding, and an expert without computation, which has a vector and no matrix."""
    rng = np.random.default_rng(0)
    given = {f"{name}_weight": w for name, w in WEIGHTS.items()}
    balance = BalanceConfig(loss_weight=0.0, coupling_alpha=0.9, **given)
    moe = MoEConfig(num_experts=4, hidden_size=3, group_size=4, null_experts=1, balance=balance)
    x = np.float32(rng.normal(size=(2, 8, 6)))
    real = rng.random((2, 8)) > 0.25
    layer = MoELayer(moe, "swiglu")

    def losses_of(params, training):
        stats = layer.apply({"params": params}, x, real, training=training)[1]
        return losses(sum_sequences(jax.tree.map(lambda s: s[None], stats)), moe)

    def loss(params):
        found = losses_of(params, True)
        return sum(w * found[name].sum() for name, w in weights(moe).items()), found

    params = {"w_router_DE": rng.normal(size=(6, 5)), "w_down_EFD": rng.normal(size=(4, 3, 6))}
    params |= {name: rng.normal(size=(4, 6, 3)) for name in ("w_gate_EDF", "w_up_EDF")}
    params = {name: np.float64(np.float32(p)) for name, p in params.items()}
    single = {name: np.float32(p) for name, p in params.items()}
    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(single)
    want = truth(params, x, real, 0.9)
    assert set(weights(moe)) == set(NAMES)
    for name in NAMES:
        np.testing.assert_allclose(found[name], [want[name]], rtol=1e-5)

    def exact(params):
        return sum(WEIGHTS[n] * loss for n, loss in truth(params, x, real, 0.9).items())

    for name in ("w_router_DE", "w_gate_EDF"):
        direction = rng.normal(size=params[name].shape)
        slope = oracle.slope(exact, params, name, direction)
        np.testing.assert_allclose((gradients[name] * direction).sum(), slope, rtol=1e-4)
    in_evaluation = jax.eval_shape(lambda params: losses_of(params, False), single)
    assert not set(NAMES) & set(in_evaluation)


def test_relus_of_busy_experts_are_closed_harder():
    """Two tokens with scores (2, 0) and (1, 3): means 1.5 and 1.5. Loads 2 and 1, where K = 1 wants
    one each: f = 2 / (1 * 2) * (2, 1) = (2, 1), and the loss 2 * 1.5 + 1 * 1.5.
    """
    balance = BalanceConfig(sparsity_loss_weight=0.1)
    moe = MoEConfig(router="remoe", num_experts=2, top_k=2, balance=balance)
    logits = np.float32([[[2, -1], [1, 3], [9, 9]]])
    real = np.array([[True, True, False]])

    @jax.jit
    def sums():
        inputs = RouterInput(logits_GSE=logits, real_GS=real, top_k=2, capacity=3, training=True)
        choice = moe.built_router.choose(inputs)
        return layer_stats(moe, inputs, choice, jnp.zeros((1, 3, 2)), ~real, 1, {})

    stats = sums()
    np.testing.assert_allclose(stats.asked_BE, [[2, 1]])
    np.testing.assert_allclose(router_losses.sparsity_loss(stats, top_k=1), [4.5], rtol=1e-6)
    np.testing.assert_allclose(stats.open_BE, [[2, 1]])
    slope = jax.grad(lambda s: router_losses.sparsity_loss(replace(stats, score_BE=s), 1).sum())
    np.testing.assert_allclose(slope(stats.score_BE), [[1.0, 0.5]])


@pytest.mark.parametrize(
    ("per_token", "want"),
    [(1.0, 0.12), (1.5, 0.1), (2.0, 0.1 / 1.2)],
)
def test_the_coefficient_of_sparsity_follows_the_share_of_zeros(per_token, want):
    """Of two layers with two tokens and two experts, 3 and 3 of 4 scores are above 0: a quarter is
    0. For one expert a token a half should be: the coefficient grows; for two none: it shrinks.
    """
    assert 1.5 / 2 == 1 - 0.25
    names = [field.name for field in fields(RouterStats)]
    known = {"open_BE": jnp.float32([[2, 1], [1, 2]]), "tokens_B": jnp.float32([2, 2])}
    stats = RouterStats(**dict.fromkeys(names) | known)
    got = router_losses.move_sparsity_weight(jnp.float32(0.1), stats, per_token, 1.2)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    nobody = replace(stats, open_BE=0 * stats.open_BE, tokens_B=0 * stats.tokens_B)
    stays = router_losses.move_sparsity_weight(jnp.float32(0.1), nobody, per_token, 1.2)
    np.testing.assert_allclose(stays, 0.1, rtol=1e-6)
