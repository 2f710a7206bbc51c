"""The routed layer against the float64 oracle: outputs, drops, sums, losses and every gradient."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from moejax import balance
from moejax import mesh as meshes
from moejax.config import MeshConfig, MoEConfig
from moejax.layer import FeedForward, MoELayer

B, N, D, F, E, S = 2, 8, 6, 5, 4, 8

CASES = {
    "switch, with drops": (MoEConfig(router="switch", top_k=1, capacity_factor=0.75), False),
    "switch, no drops": (MoEConfig(router="switch", top_k=1, capacity_factor=4.0), False),
    "top 2, with drops": (MoEConfig(top_k=2, capacity_factor=0.75), True),
    "top 2, no drops": (MoEConfig(top_k=2, capacity_factor=2.0), True),
    "top 3, groups of half a sequence": (MoEConfig(top_k=3, group_size=4), True),
    "top 2, groups of two sequences": (MoEConfig(top_k=2, group_size=16), True),
}


def small(config: MoEConfig) -> MoEConfig:
    group = S if config.group_size == MoEConfig().group_size else config.group_size
    fields = vars(config) | {"num_experts": E, "hidden_size": F, "group_size": group}
    return MoEConfig(**fields)


@functools.partial(jax.jit, static_argnums=0)
def init(layer, key, x, real):
    return layer.init(key, x, real, True)["params"]


@functools.partial(jax.jit, static_argnums=(0, 4))
def apply(layer, params, x, real, training=True):
    return layer.apply({"params": params}, x, real, training)


def make(config: MoEConfig, seed: int = 0):
    layer = MoELayer(config, "swiglu")
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, N, D))
    real = rng.random((B, N)) > 0.25
    real[:, 0] = True
    params = init(layer, jax.random.key(seed), jnp.float32(x), real)
    # A router with strong opinions, so that experts overflow.
    params = params | {"w_router_DE": params["w_router_DE"] * 2}
    return layer, params, x, real


@pytest.mark.parametrize("case", CASES)
def test_layer_equals_the_oracle(case):
    config, renormalise = CASES[case]
    config = small(config)
    layer, params, x, real = make(config)
    direction = np.random.default_rng(1).normal(size=x.shape)
    tokens = real.sum()

    def loss(params, x):
        y, stats = apply(layer, params, x, real, True)
        stats = balance.sum_groups(jax.tree.map(lambda s: s[None], stats))
        aux = balance.balance_loss(stats.asked_GE, stats.tokens_G, stats.probability_GE)
        z = balance.z_loss(stats.log_z_squared_G, stats.tokens_G)
        value = (y * jnp.float32(direction)).sum() + aux.sum() + 0.1 * z.sum()
        return value, (y, stats, aux, z)

    got = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, jnp.float32(x))
    (_, (y, stats, aux, z)), (grad_params, grad_x) = got

    exact = {k: np.asarray(v, np.float64) for k, v in params.items()} | {"x": x}
    run = functools.partial(
        oracle.routed_layer,
        real=real.reshape(-1, config.group_size),
        top_k=config.top_k,
        renormalise=renormalise,
        factor=config.capacity_factor,
    )

    def groups(x):
        return x.reshape(-1, config.group_size, D)

    want_y, choices, sums = run(exact, groups(x))
    np.testing.assert_allclose(y, want_y.reshape(x.shape), atol=1e-5)
    np.testing.assert_array_equal(stats.asked_GE[0], sums["asked"].sum(0))
    assert stats.seated_GE.sum() == choices[1].sum()
    if "with drops" in case:
        assert choices[1].sum() < sums["asked"].sum()
    if "no drops" in case:
        assert choices[1].sum() == sums["asked"].sum() == tokens * config.top_k
    want_aux = oracle.balance_loss(sums["asked"], sums["probability"], tokens, config.top_k)
    np.testing.assert_allclose(aux[0], want_aux, atol=1e-5)
    np.testing.assert_allclose(z[0], sums["z"].sum() / tokens, rtol=1e-5)

    def exact_loss(values):
        y, _, moved = run(values, groups(values["x"]), choices=choices)
        aux = oracle.balance_loss(sums["asked"], moved["probability"], tokens, config.top_k)
        return (y * groups(direction)).sum() + aux + 0.1 * moved["z"].sum() / tokens

    want = oracle.gradient(exact_loss, exact)
    for name in params:
        np.testing.assert_allclose(grad_params[name], want[name], atol=1e-5, err_msg=name)
    np.testing.assert_allclose(grad_x, want["x"], atol=1e-5)
    assert np.abs(grad_params["w_router_DE"]).max() > 1e-3  # the router learns


def test_a_token_whose_choices_are_all_dropped_comes_out_as_zero():
    config = small(MoEConfig(router="switch", top_k=1, capacity_factor=0.1))
    layer, params, x, _ = make(config)
    params = params | {"w_router_DE": jnp.zeros((D, E)).at[:, 0].set(0.0)}
    y, stats = apply(layer, params, jnp.float32(x), jnp.ones((B, N), bool), True)
    # All logits are equal, so all tokens ask for expert 0, which has one slot in each group.
    np.testing.assert_array_equal(stats.asked_GE[:, 0], [N, N])
    np.testing.assert_array_equal(stats.seated_GE[:, 0], [1, 1])
    assert np.abs(y[:, 0]).max() > 0
    np.testing.assert_array_equal(y[:, 1:], 0)


def test_padding_takes_no_slot_and_is_in_no_count():
    config = small(MoEConfig(top_k=2, capacity_factor=1.0))
    layer, params, x, real = make(config)
    run = jax.jit(lambda x: apply(layer, params, x, real, True))
    y, stats = run(jnp.float32(x))
    other = np.where(real[..., None], x, 100 * np.random.default_rng(5).normal(size=x.shape))
    y_other, stats_other = run(jnp.float32(other))
    np.testing.assert_array_equal(np.asarray(y)[real], np.asarray(y_other)[real])
    np.testing.assert_array_equal(np.asarray(y)[~real], 0)
    chex.assert_trees_all_equal(stats, stats_other)
    assert stats.tokens_G.sum() == real.sum()
    assert stats.asked_GE.sum() == 2 * real.sum()


def test_evaluation_has_its_own_capacity():
    config = small(MoEConfig(top_k=2, capacity_factor=0.5, eval_capacity_factor=2.0))
    layer, params, x, real = make(config)
    seated = [
        apply(layer, params, jnp.float32(x), real, training)[1].seated_GE.sum()
        for training in (True, False)
    ]
    assert seated[0] < seated[1] == 2 * real.sum()


def test_shared_experts_see_every_token():
    config = MoEConfig(**vars(small(MoEConfig(capacity_factor=0.1))) | {"shared_experts": 2})
    layer, params, x, real = make(config)
    y, _ = apply(layer, params, jnp.float32(x), real, True)
    routed = MoELayer(MoEConfig(**vars(config) | {"shared_experts": 0}), "swiglu")
    own = {name: value for name, value in params.items() if name != "shared"}
    y_routed, _ = apply(routed, own, jnp.float32(x), real)
    shared = FeedForward(2 * F, "swiglu").apply({"params": params["shared"]}, jnp.float32(x))
    assert params["shared"]["w_up_DF"].shape == (D, 2 * F)
    np.testing.assert_allclose(y, y_routed + shared, atol=1e-6)


@pytest.mark.parametrize("activation", ["geglu", "gelu", "relu"])
def test_identical_experts_are_one_dense_layer(activation):
    """With no drops and weights that sum to 1, who chose whom cannot matter."""
    config = small(MoEConfig(top_k=2, capacity_factor=2.0))
    layer = MoELayer(config, activation)
    x = jax.random.normal(jax.random.key(3), (B, N, D))
    params = init(layer, jax.random.key(0), x, jnp.ones((B, N), bool))
    params = {
        name: value if "router" in name else jnp.broadcast_to(value[:1], value.shape)
        for name, value in params.items()
    }
    y, _ = apply(layer, params, x, jnp.ones((B, N), bool), True)
    dense = {name.replace("E", ""): value[0] for name, value in params.items() if "E" in name}
    dense.pop("w_router_D", None)
    want = FeedForward(F, activation).apply({"params": dense}, x)
    np.testing.assert_allclose(y, want, atol=1e-5)


def test_the_router_is_float32_whatever_the_activations_are():
    """bfloat16 activations choose as float32 arithmetic on the same rounded inputs does."""
    layer, params, x, real = make(small(MoEConfig(top_k=2)))
    rounded = jnp.asarray(x, jnp.bfloat16)
    y, stats = apply(layer, params, rounded, real, True)
    _, stats32 = apply(layer, params, rounded.astype(jnp.float32), real, True)
    assert y.dtype == jnp.bfloat16
    chex.assert_trees_all_equal(stats, stats32)


@pytest.mark.parametrize(("data", "expert"), [(8, 1), (2, 4), (4, 2)])
def test_every_mesh_gives_what_one_device_gives(data, expert):
    config = small(MoEConfig(top_k=2, capacity_factor=1.0))
    layer = MoELayer(config, "swiglu")
    x = jax.random.normal(jax.random.key(0), (8, N, D))
    real = jnp.arange(N)[None] < jnp.arange(1, 9)[:, None]
    params = init(layer, jax.random.key(1), x, real)

    def loss(params, x):
        y, stats = apply(layer, params, x, real, True)
        return jnp.square(y).sum(), (y, stats)

    run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    alone = jax.jit(run)(params, x)
    mesh = meshes.make_mesh(MeshConfig(data=data, expert=expert))
    with jax.set_mesh(mesh):
        shardings = meshes.tree_shardings(mesh, params)
        if expert > 1:
            assert shardings["w_up_EDF"].shard_shape((E, D, F)) == (E // expert, D, F)
        placed = jax.device_put(params, shardings)
        spread = jax.jit(run)(placed, x)
    chex.assert_trees_all_close(alone, spread, atol=1e-5)
