"""The routed layer: how groups lie over sequences, what padding, drops and bad numbers do, and that
meshes change nothing. (Every router against the oracle: test_router_oracle.py.)
"""

import functools
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from layer_loss import layer_loss, run_oracle, sum_layer

from moejax.config import MeshConfig, MoEConfig
from moejax.moe import balance
from moejax.moe.layer import FeedForward, MoELayer
from moejax.runtime import device_mesh, partition

B, N, D, F, E, S = 2, 8, 6, 5, 4, 8


def small(**settings) -> MoEConfig:
    shape = {"num_experts": E, "hidden_size": F, "group_size": S, "dispatch": "einsum"}
    return MoEConfig(**shape | settings)


@functools.partial(jax.jit, static_argnums=0)
def init(layer, key, x, real):
    return layer.init(key, x, real, training=True)["params"]


@functools.partial(jax.jit, static_argnums=(0, 4))
def apply(layer, params, x, real, training=True):
    return layer.apply({"params": params}, x, real, training=training)


def make(config: MoEConfig, seed: int = 0):
    layer = MoELayer(config, "swiglu")
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, N, D)).astype(np.float32)
    real = rng.random((B, N)) > 0.25
    real[:, 0] = True
    params = init(layer, jax.random.key(seed), x, real)
    # A router with strong opinions, so that experts overflow.
    params = params | {"w_router_DE": params["w_router_DE"] * 2}
    return layer, params, x, real


@pytest.mark.parametrize("group", [4, 8, 16], ids=["half a sequence", "one", "two sequences"])
def test_groups_of_any_size_equal_the_oracle(group):
    """Drops go by the group, sums by the sequence."""
    layer, params, x, real = make(small(group_size=group, capacity_factor=0.75))
    direction = np.random.default_rng(1).normal(size=x.shape) / 10

    def loss(params, x):
        y, stats, _ = layer.apply({"params": params}, x, real, training=True)
        return layer_loss(y, stats, direction), (y, stats)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, (y, stats)), gradients = run(params, x)
    slots = oracle.capacity(group, 2, E, 0.75)
    truth = run_oracle(oracle.Layer("top_k", 2, slots), params, x, real, direction, group)
    truth.assert_equal(value, y, stats, gradients)
    assert stats.seated_BE.sum() < stats.asked_BE.sum() == 2 * real.sum()
    assert np.abs(gradients[0]["w_router_DE"]).max() > 1e-3  # the router learns


def test_a_token_whose_choices_are_all_dropped_comes_out_as_zero():
    layer, params, x, _ = make(small(router="switch", top_k=1, capacity_factor=0.1))
    params = params | {"w_router_DE": jnp.zeros((D, E))}
    y, stats, chosen = apply(layer, params, x, jnp.ones((B, N), bool))
    # All logits are equal, so all tokens ask for expert 0, which has one slot in each group.
    np.testing.assert_array_equal(stats.asked_BE[:, 0], [N, N])
    np.testing.assert_array_equal(stats.seated_BE[:, 0], [1, 1])
    np.testing.assert_array_equal(chosen, np.broadcast_to(np.arange(E) == 0, (B, N, E)))
    assert np.abs(y[:, 0]).max() > 0
    np.testing.assert_array_equal(y[:, 1:], 0)


def test_padding_takes_no_slot_and_is_in_no_count():
    layer, params, x, real = make(small(capacity_factor=1.0))
    y, stats, chosen = apply(layer, params, x, real)
    noise = 100 * np.random.default_rng(5).normal(size=x.shape).astype(np.float32)
    other = np.where(real[..., None], x, noise)
    y_other, stats_other, chosen_other = apply(layer, params, other, real)
    np.testing.assert_array_equal(y, y_other)
    np.testing.assert_array_equal(np.asarray(y)[~real], 0)
    chex.assert_trees_all_equal((stats, chosen), (stats_other, chosen_other))
    np.testing.assert_array_equal(stats.tokens_B, real.sum(1))
    np.testing.assert_array_equal(stats.asked_BE.sum(1), 2 * real.sum(1))
    np.testing.assert_array_equal(chosen.sum(-1), 2 * real)


def test_evaluation_has_its_own_capacity():
    layer, params, x, real = make(small(capacity_factor=0.5, eval_capacity_factor=2.0))
    seated = [apply(layer, params, x, real, training)[1].seated_BE for training in (True, False)]
    assert seated[0].sum() < seated[1].sum() == 2 * real.sum()


def test_shared_experts_see_every_token():
    config = small(capacity_factor=0.1, shared_experts=2)
    layer, params, x, real = make(config)
    y, _, _ = apply(layer, params, x, real)
    routed = MoELayer(replace(config, shared_experts=0), "swiglu")
    own = {name: value for name, value in params.items() if name != "shared"}
    y_routed, _, _ = apply(routed, own, x, real)
    shared = FeedForward(2 * F, "swiglu").apply({"params": params["shared"]}, x)
    assert params["shared"]["w_up_DF"].shape == (D, 2 * F)
    np.testing.assert_allclose(y[real], (y_routed + shared)[real], atol=1e-6)


def test_experts_without_computation_give_the_token_or_nothing_and_have_room_for_all():
    """Four experts, one identity, one null; logits that send every token to the last two."""
    config = small(router="olmoe", identity_experts=1, null_experts=1, capacity_factor=0.1)
    layer, params, x, _ = make(config)
    x = np.concatenate([np.ones((B, N, 1), np.float32), x[..., 1:]], axis=-1)
    params = params | {"w_router_DE": jnp.zeros((D, E + 2)).at[0].set([0, 0, 0, 0, 5, 4])}
    y, stats, _ = apply(layer, params, x, jnp.ones((B, N), bool))
    weight = np.exp(5) / (np.exp(5) + np.exp(4) + 4)
    np.testing.assert_allclose(y, weight * x, rtol=1e-5)
    np.testing.assert_array_equal(stats.asked_BE, [[0, 0, 0, 0, N, N]] * B)
    np.testing.assert_array_equal(stats.seated_BE, stats.asked_BE)


@pytest.mark.parametrize("activation", ["geglu", "gelu", "relu"])
def test_identical_experts_are_one_dense_layer(activation):
    """With no drops and weights that sum to 1, who chose whom cannot matter."""
    layer = MoELayer(small(capacity_factor=2.0), activation)
    x = jax.random.normal(jax.random.key(3), (B, N, D))
    params = init(layer, jax.random.key(0), x, jnp.ones((B, N), bool))
    params = {
        name: value if "router" in name else jnp.broadcast_to(value[:1], value.shape)
        for name, value in params.items()
    }
    y, _, _ = apply(layer, params, x, jnp.ones((B, N), bool))
    dense = {name.replace("E", ""): value[0] for name, value in params.items() if "E" in name}
    dense.pop("w_router_D", None)
    want = FeedForward(F, activation).apply({"params": dense}, x)
    np.testing.assert_allclose(y, want, atol=1e-5)


def test_the_router_is_float32_whatever_the_activations_are():
    """bfloat16 activations choose as float32 arithmetic on the same rounded inputs does."""
    layer, params, x, real = make(small())
    rounded = jnp.asarray(x, jnp.bfloat16)
    y, stats, chosen = apply(layer, params, rounded, real)
    _, stats32, chosen32 = apply(layer, params, rounded.astype(jnp.float32), real)
    assert y.dtype == jnp.bfloat16
    chex.assert_trees_all_equal((stats, chosen), (stats32, chosen32))


@pytest.mark.parametrize("router", ["top_k", "expert_choice", "soft"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_token_that_is_not_finite_is_padding_to_the_others(router, bad):
    """In outputs, sums and gradients, those of the router and of shared experts, too."""
    config = small(router=router, capacity_factor=0.75, shared_experts=1, shared_gate=True)
    layer = MoELayer(config, "swiglu")
    x = np.random.default_rng(0).normal(size=(B, N, D)).astype(np.float32)
    real = np.ones((B, N), bool)
    params = init(layer, jax.random.key(0), x, real)
    params = {k: 2 * v if "router" in k else v for k, v in params.items()}

    def loss(params, x, real):
        y, stats, chosen = layer.apply({"params": params}, x, real, training=True)
        y = y.at[0, 3].set(0)
        loss = jnp.square(y).sum() + jnp.square(stats.probability_BE).sum()
        return loss, (y, stats, chosen)

    run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    sick, without = x.copy(), real.copy()
    sick[0, 3, 2], without[0, 3] = bad, False
    gradients, (y, stats, chosen) = run(params, sick, real)
    want = run(params, x, without)
    np.testing.assert_array_equal(stats.bad_B, [1, 0])
    chex.assert_trees_all_equal(replace(stats, bad_B=want[1][1].bad_B), want[1][1])
    np.testing.assert_array_equal(chosen, want[1][2])
    np.testing.assert_allclose(y, want[1][0], atol=1e-6)
    chex.assert_trees_all_close(gradients, want[0], atol=1e-5)


# Meshes.

ROUTES = {
    "top_k, with drops": small(capacity_factor=0.75),
    "deepseek_v3, groups and bias": small(
        router="deepseek_v3", expert_groups=2, kept_expert_groups=1, capacity_factor=1.0
    ),
    "expert_choice": small(router="expert_choice", capacity_factor=1.0),
    "soft": small(router="soft", capacity_factor=1.0),
    "base": small(router="base", top_k=1),
    "drops, by index": small(capacity_factor=0.6, dispatch="gather"),
    "drops, by sorted rows": small(capacity_factor=0.6, dispatch="grouped"),
}
SIZE = 8, N, D


def on_a_mesh(layer, params, mesh):
    """Outputs, sums and gradients, computed on ``mesh`` from tokens that lie spread on it."""
    x = jax.random.normal(jax.random.key(0), SIZE)
    real = jnp.arange(N)[None] < jnp.arange(1, 9)[:, None]
    bias_E = jnp.linspace(-0.2, 0.2, E) if layer.config.built_router.selection_bias else None

    def loss(params, x):
        y, stats, chosen = layer.apply({"params": params}, x, real, training=True, bias_E=bias_E)
        sums = sum_layer(stats)
        aux = balance.balance_loss(sums) + balance.importance_loss(sums)
        return jnp.square(y).sum() + aux.sum(), (y, stats, chosen)

    with jax.set_mesh(mesh):
        placed = jax.device_put(params, partition.tree_shardings(mesh, params))
        x = jax.device_put(x, partition.activation_sharding(mesh, "batch_BN"))
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(placed, x)


def one_device():
    return device_mesh.make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("name", ROUTES)
def test_every_mesh_gives_what_one_device_gives(name):
    layer = MoELayer(ROUTES[name], "swiglu")
    params = init(layer, jax.random.key(1), jnp.zeros(SIZE), jnp.ones(SIZE[:2], bool))
    params = {k: 2 * v if "router" in k else v for k, v in params.items()}
    alone = on_a_mesh(layer, params, one_device())
    _, stats, _ = alone[0][1]
    if "drops" in name:
        assert stats.seated_BE.sum() < stats.asked_BE.sum()
    router = [v for k, v in alone[1][0].items() if "router" in k]
    assert all(np.abs(gradient).max() > 1e-3 for gradient in router)
    for data, expert in ((2, 4), (8, 1)):
        mesh = device_mesh.make_mesh(MeshConfig(data=data, expert=expert))
        part = partition.tree_shardings(mesh, params)["w_up_EDF"].shard_shape((E, D, F))
        assert part == (E // expert, D, F)
        chex.assert_trees_all_close(alone, on_a_mesh(layer, params, mesh), atol=1e-5)
