"""Replicas of experts at inference: the same outputs, with the load spread."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import ConfigError, MeshConfig, ModelConfig
from moejax.inference.replicate import replicate
from moejax.models.decoder import DecoderLM
from moejax.moe.parallel.placement import Placement, place
from moejax.moe.parallel.replicas import choose_places, list_places
from moejax.routing.contract import TokenChoice
from moejax.runtime import device_mesh, partition


def test_the_places_of_each_expert():
    plan = Placement(np.array([[2, 0, 1, 2]]), np.ones((1, 2)))
    np.testing.assert_array_equal(list_places(plan), [[[1, -1], [2, -1], [0, 3]]])


def test_tokens_take_replicas_in_turn_and_capacity_is_that_of_the_expert():
    """Expert 1 has places 1 and 3, and room for three of the four tokens that want it."""
    expert_GSK = jnp.array([[[1], [1], [0], [1], [1]]])
    choice = TokenChoice(expert_GSK, jnp.ones((1, 5, 1)), jnp.ones((1, 5, 2)) / 2)
    place_ER = jnp.array([[0, -1], [1, 3]])
    sent, seated_GSE = choose_places(choice, place_ER, jnp.ones((1, 5), bool), 3, "position")
    np.testing.assert_array_equal(sent.expert_GSK[0, :, 0], [1, 3, 0, 3, -1])
    np.testing.assert_array_equal(seated_GSE[0], [[0, 1], [0, 1], [1, 0], [0, 1], [0, 0]])


@functools.cache
def programs(config: ModelConfig):
    """What draws the parameters, and the forward pass, on one device."""
    plain = DecoderLM(config, 257)
    init = jax.jit(lambda batch: plain.init(jax.random.key(0), batch, False)["params"])
    return init, jax.jit(plain.apply, static_argnums=2)


@pytest.mark.parametrize(
    "capacity_factor",
    [pytest.param(None, id="dropless", marks=pytest.mark.slow), pytest.param(0.8, id="with drops")],
)
@pytest.mark.parametrize("form", ["auto", "all_to_all", "ragged", "all_gather"])
def test_replicas_change_no_output(tiny, batch, form, capacity_factor):
    """Four experts in eight places on four devices, where measured load puts them."""
    moe = dataclasses.replace(
        tiny.model.moe,
        every=2,
        first_dense=1,
        router="deepseek_v3",
        expert_groups=None,
        shared_experts=1,
        eval_capacity_factor=capacity_factor,
    )
    config = dataclasses.replace(tiny.model, num_layers=5, moe=moe)
    init, run = programs(config)
    params = init(batch)
    bias_LE = jnp.linspace(-0.2, 0.2, 8).reshape(2, 4)
    want, routed = run({"params": params}, batch, False, bias_LE)
    plan = place(np.asarray(routed.stats.asked_BE.sum(1)), devices=4, places=8)
    many, place_LER = replicate(config, params, plan)
    layout = MeshConfig(data=2, expert=4, expert_parallel=form)
    grid = device_mesh.make_mesh(layout)
    with jax.set_mesh(grid):
        many = jax.device_put(many, partition.tree_shardings(grid, many))
        bank = many["layers_1"]["block_1"]["moe"]["w_up_EDF"]
        assert bank.addressable_shards[0].data.shape[-3] == 2  # places of a device
        spread = jax.device_put(batch, partition.activation_sharding(grid, "batch_BN"))
        model = DecoderLM(config, 257, layout)
        run = jax.jit(model.apply, static_argnums=2)
        got = run({"params": many}, spread, False, bias_LE, jnp.asarray(place_LER))
    chex.assert_trees_all_close(got, (want, routed), atol=1e-5)
    dropped = routed.stats.seated_BE.sum() < routed.stats.asked_BE.sum()
    assert dropped == (capacity_factor is not None)


def test_a_plan_of_another_number_of_layers_is_refused(tiny):
    plan = place(np.ones((3, 4)), devices=2, places=4)
    with pytest.raises(ConfigError, match="of 3 layers of 4 experts, but the model has 2 routed"):
        replicate(tiny.model, {}, plan)


def test_replicas_are_not_for_training(tiny, batch):
    with pytest.raises(ValueError, match="for inference"):
        place_LER = jnp.zeros((2, 4, 1), jnp.int32)
        init = functools.partial(DecoderLM(tiny.model, 257).init, jax.random.key(0))
        jax.eval_shape(lambda: init(batch, True, None, place_LER))
