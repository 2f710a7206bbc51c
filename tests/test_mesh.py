"""Meshes that cannot be: refused before anything is compiled, in words that say what would do."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from moejax.config import (
    Config,
    ConfigError,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
)
from moejax.runtime import device_fit, device_mesh, partition


def layout(**settings) -> Config:
    """The default config on this mesh."""
    return Config(mesh=MeshConfig(**settings))


def model(mesh: dict, moe: dict | None = None, **settings) -> Config:
    moe = MoEConfig(**(moe or {}))
    return Config(model=ModelConfig(moe=moe, **settings), mesh=MeshConfig(**mesh))


def fits(config: Config) -> None:
    """On the eight devices that there are."""
    device_fit.check_fits(config, device_mesh.make_mesh(config.mesh))


def two_slices() -> list:
    return [SimpleNamespace(platform="tpu", slice_index=i // 4) for i in range(8)]


REFUSED = {
    "no device": (lambda: layout(expert=0), "--mesh.expert must be greater than 0, not 0"),
    "no form": (
        lambda: layout(expert_parallel="a2a"),
        "--mesh.expert-parallel must be one of auto, all_to_all, ragged, all_gather, not 'a2a'",
    ),
    "no room": (
        lambda: layout(expert_parallel="ragged", receive_factor=0.0),
        "--mesh.receive-factor must be greater than 0, not 0.0",
    ),
    "a number for a truth": (lambda: layout(fsdp=1), "--mesh.fsdp must be bool, not 1"),
    "spread twice": (lambda: layout(fsdp=True, zero1=True), "take zero1 where all of them fit"),
    "parts of what XLA moves": (
        lambda: layout(chunks=2),
        "--mesh.chunks 2", "--mesh.expert-parallel all_to_all, ragged or all_gather, not auto",
    ),
    "room where there are slots": (
        lambda: layout(expert_parallel="all_to_all", receive_factor=1.5),
        "--mesh.receive-factor 1.5",
        "--mesh.expert-parallel ragged or all_gather", "--model.moe.capacity-factor limits",
    ),
    "heads": (
        lambda: layout(model=3),
        "--model.num-heads 4 is not divisible by --mesh.model 3",
        "make it a multiple of 3, or --mesh.model a divisor of 4",
    ),
    "key heads": (
        lambda: model({"model": 4}, num_kv_heads=2),
        "--model.num-kv-heads 2 is not divisible by --mesh.model 4",
        "multiple of 4",
    ),
    "dense layers' width": (
        lambda: model({"model": 4}, {"first_dense": 1}, dense_hidden_size=130),
        "--model.dense-hidden-size 130 is not divisible by --mesh.model 4",
        "multiple of 4",
    ),
    "experts' width": (
        lambda: model({"model": 4}, {"hidden_size": 130}),
        "--model.moe.hidden-size 130 is not divisible by --mesh.model 4",
        "multiple of 4",
    ),
    "shared experts' width": (
        lambda: model({"model": 4}, {"shared_experts": 1, "shared_hidden_size": 130}),
        "--model.moe.shared-hidden-size 130 is not divisible by --mesh.model 4",
        "multiple of 4",
    ),
    "experts": (
        lambda: layout(expert=3),
        "--model.moe.num-experts 8 is not divisible by --mesh.expert 3",
        "make it a multiple of 3, or --mesh.expert a divisor of 8",
    ),
    "groups of experts": (
        lambda: model({"expert": 6}, {"num_experts": 24, "expert_groups": 4}),
        "--model.moe.expert-groups 4 cannot stand on --mesh.expert 6 devices",
        "one number a multiple of the other",
    ),
    "slots without slots": (
        lambda: model({"expert_parallel": "all_to_all"}, {"dispatch": "grouped"}),
        "--mesh.expert-parallel all_to_all", "--model.moe.dispatch grouped",
        "take ragged or all_gather, or --model.moe.dispatch gather",
    ),
    "dropout of spread slots": (
        lambda: model({"expert_parallel": "all_to_all"}, {"expert_dropout": 0.1}),
        "--model.moe.expert-dropout 0.1", "--mesh.expert-parallel all_to_all", "take auto, or 0",
    ),
    "rows in slots": (
        lambda: model({"expert_parallel": "ragged"}, {"dispatch": "einsum"}),
        "--mesh.expert-parallel ragged", "--model.moe.dispatch einsum",
        "--model.moe.dispatch grouped, or --mesh.expert-parallel all_to_all",
    ),
    "rows that nobody chose": (
        lambda: model({"expert_parallel": "all_gather"}, {"router": "expert_choice"}),
        "--mesh.expert-parallel all_gather", "--model.moe.router expert_choice", "take all_to_all",
    ),
    "rows of mixtures": (
        lambda: model({"expert_parallel": "ragged"}, {"router": "soft"}),
        "--mesh.expert-parallel ragged", "--model.moe.router soft", "take all_to_all",
    ),
    "dropout of rows": (
        lambda: model({"expert_parallel": "ragged"}, {"expert_dropout": 0.1}),
        "--model.moe.expert-dropout 0.1", "--mesh.expert-parallel ragged", "take auto, or 0",
    ),
    "too few devices": (
        lambda: fits(layout(data=4, expert=4)),
        "--mesh.data 4 x --mesh.expert 4 x --mesh.model 1 needs 16 devices, but there are 8",
        "8x1, 4x2, 2x4, 1x8", "JAX_NUM_CPU_DEVICES",
    ),
    "devices left over": (
        lambda: fits(model({"expert": 3}, {"num_experts": 6})),
        "--mesh.data 2 x --mesh.expert 3 x --mesh.model 1 needs 6 devices, but there are 8",
        "8x1, 4x2, 2x4, 1x8",
    ),
    "a model axis that no mesh has": (
        lambda: fits(model({"model": 3}, {"hidden_size": 129}, num_heads=3, width=96)),
        "--mesh.model 3", "nothing, as 3 does not divide 8",
    ),
    "experts across slices": (
        lambda: device_mesh.make_mesh(MeshConfig(data=1, expert=8), two_slices()),
        "--mesh.data 1 is not divisible by the 2 slices",
        "make --mesh.data a multiple of 2",
    ),
    "part of a batch": (
        lambda: fits(Config(data=DataConfig(batch_size=12))),
        "--data.batch-size / --optim.accumulate = 12 sequences",
        "8 devices in routing groups of 1 sequence", "make it a multiple of 8",
    ),
    "part of a micro-batch": (
        lambda: fits(Config(optim=OptimConfig(accumulate=4))),
        "--data.batch-size / --optim.accumulate = 4 sequences", "make it a multiple of 8",
    ),
    "part of a group": (
        lambda: fits(model({"expert": 4}, {"group_size": 512})),
        "8 devices in routing groups of 4 sequences", "make it a multiple of 32",
    ),
    "part of a batch of evaluation": (
        lambda: fits(Config(data=DataConfig(eval_batch_size=20))),
        "--data.eval-batch-size = 20 sequences", "make it a multiple of 8",
    ),
    "half a group in a part": (
        lambda: fits(
            dataclasses.replace(
                layout(expert_parallel="all_to_all", chunks=2), data=DataConfig(batch_size=24)
            )
        ),
        "--mesh.chunks 2 does not divide the 3 routing groups of a device",
        "= 24 sequences over 8 devices", "make it a divisor of 3",
    ),
    "part of the width": (
        lambda: fits(model({"fsdp": True}, width=100, num_heads=2)),
        "--mesh.fsdp spreads --model.width 100 over 8 devices",
        "make it a multiple of 8, or leave --mesh.fsdp out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name_and_value_with_what_would_do(name):
    make, *words = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        make()
    for part in words:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        layout(data=2, expert=4),
        layout(expert=8, fsdp=True),
        layout(expert_parallel="all_to_all", expert=8, chunks=2),
        layout(expert_parallel="ragged", expert=4, model=2, chunks=2, receive_factor=1.5),
        model({"expert": 8}, {"expert_groups": 4}),  # a group has two devices
        model({"expert": 2}, {"expert_groups": 4}),  # a device has two groups
        model({"expert_parallel": "all_to_all", "expert": 4}, {"router": "soft"}),
        model({"expert_parallel": "ragged", "expert": 4}, {"dispatch": "grouped"}),
    ],
)
def test_what_can_be_is_not_refused(config):
    fits(config)
    shape = device_mesh.make_mesh(config.mesh).shape
    assert shape["data"] * config.mesh.expert * config.mesh.model == len(jax.devices())


def test_a_parameter_that_no_table_has_is_an_error_not_a_copy_on_every_device():
    mesh = device_mesh.make_mesh(MeshConfig())
    params = {"layers_0": {"moe": {"w_up_EDF": jnp.zeros((2, 8, 4, 4)), "scale_D": jnp.zeros(4)}}}
    specs = jax.tree.map(lambda s: s.spec, partition.tree_shardings(mesh, params))
    lying = {"w_up_EDF": P(None, "expert", None, "model"), "scale_D": P(None)}
    assert specs == {"layers_0": {"moe": lying}}
    mine = {"layers_0": {"moe": {"w_mine_EDF": jnp.zeros((2, 8, 4, 4))}}}
    for tree in (mine, optax.adam(1.0).init(mine), {"w_mine_EDF": jnp.zeros(())}):
        with pytest.raises(ValueError, match="'w_mine_EDF' lies on the mesh: add it to PARAMETERS"):
            partition.tree_shardings(mesh, tree)
    with pytest.raises(ValueError, match="an array without a name"):
        partition.tree_shardings(mesh, [jnp.zeros(())])


def test_what_repeats_the_names_of_parameters_lies_as_they_do():
    mesh = device_mesh.make_mesh(MeshConfig())
    params = {"moe": {"w_up_EDF": jnp.zeros((8, 4, 4)), "b_router_E": jnp.zeros(8)}}
    adam = partition.tree_shardings(mesh, optax.adam(1.0).init(params))[0]
    specs = jax.tree.map(lambda s: s.spec, (adam.count, adam.mu, adam.nu))
    alike = {"moe": {"w_up_EDF": P("expert", None, "model"), "b_router_E": P(None)}}
    assert specs == (P(), alike, alike)
