"""A plan's arithmetic and memory against what XLA says of the training step it compiled for TPUs.

The shapes are small, but a device's arrays large enough for its main memory: a v5e has 128 MB of
fast memory, where XLA would else put all of them, some twice. Needs the extra `tpu`.
"""

import importlib.util
from dataclasses import replace

import jax
import pytest

from moejax.config import (
    AttentionConfig,
    BalanceConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    load_config_file,
)
from moejax.lab.plan import compile_step as compiled
from moejax.lab.plan.device_parameters import local_parameters, parameter_shapes
from moejax.lab.plan.devices import paper_mesh
from moejax.lab.plan.memory import plan_memory
from moejax.lab.plan.step_flops import hidden_flops, muon_flops, part_flops, step_flops
from moejax.lab.plan.step_sizes import size_step
from moejax.lab.plan.traffic import EMBEDDINGS, list_moves
from moejax.models.batch_shapes import batch_shapes
from moejax.models.head_loss import chunk_size
from moejax.runtime import device_mesh, targets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("little_effort"),
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]

V = 8192
BASE = {"num_layers": 3, "width": 1024, "num_heads": 8, "qk_norm": False, "dtype": "bfloat16"}
MIXTRAL = ModelConfig(
    **BASE,
    num_kv_heads=2,
    remat="layer",
    moe=MoEConfig(
        router="mixtral",
        num_experts=8,
        top_k=2,
        hidden_size=2048,
        group_size=512,
        balance=BalanceConfig(loss_weight=0.02, convention="hf"),
    ),
)
DEEPSEEK = ModelConfig(
    **BASE,
    head_size=128,
    remat="layer",
    attention=AttentionConfig(kv_rank=256, query_rank=512, rope_head_size=64),
    dense_hidden_size=4096,
    moe=MoEConfig(
        router="deepseek_v3",
        num_experts=16,
        top_k=4,
        hidden_size=512,
        shared_experts=1,
        expert_groups=8,
        kept_expert_groups=4,
        first_dense=1,
        group_size=512,
        balance=BalanceConfig(loss_weight=1e-4, scope="sequence", bias_update="sign"),
    ),
)
DEVICES = 8
MESHES = {
    "expert 8": MeshConfig(expert=8),
    "2 x 4": MeshConfig(expert=4),
    "2 x 2 x 2": MeshConfig(expert=2, model=2, fsdp=True),
}
CASES = [
    ("short", "2 x 4"),
    ("mixtral", "2 x 2 x 2"),
    ("deepseek", "2 x 4"),
]


def config_of(shape: str, layout: MeshConfig) -> Config:
    """With 256 short sequences, or 8 of 1,024, for each device."""
    if shape == "short":
        config = load_config_file("configs/quickstart_short.py")
        rows, data = 256 * DEVICES, config.data
        data = replace(data, batch_size=rows, eval_batch_size=rows)
        return replace(config, data=data, mesh=layout)
    model = DEEPSEEK if shape.startswith("deepseek") else MIXTRAL
    model = replace(model, remat="none" if "all kept" in shape else "layer")
    data = DataConfig(sequence_length=1024, batch_size=8 * DEVICES, eval_batch_size=8 * DEVICES)
    return Config(model=model, data=data, mesh=layout)


@pytest.mark.parametrize(("shape", "mesh"), CASES)
def test_a_plan_agrees(shape, mesh):
    """Arithmetic within 5 %, what lies in memory between steps within 1 %, at the peak within 15 %;
    and slots travel as often as it says.
    """
    layout = MESHES[mesh]
    config = config_of(shape, layout)
    grid = device_mesh.make_mesh(layout, targets.describe_devices("v5e:2x4"))
    found = compiled.compile_step(config, grid, V, compiled.WITHOUT_LOOPS)

    # What a loop does is counted once, so of each kind of layers one counts.
    counted = compiled.with_layers(config, compiled.shallow_and_full(config.model)[0])
    params, paper = parameter_shapes(config, V), paper_mesh(layout, DEVICES, "v5e")
    with jax.set_mesh(grid):
        planned = step_flops(counted, V) + muon_flops(params, config.optim)
        planned -= hidden_flops(counted, V)
        step = size_step(config, V)
        chunk = chunk_size(step.T, step.vocabulary) / step.T  # the others are in a loop
        planned -= (1 - chunk) * part_flops(counted, V)["head"]
        moved = list_moves(config, step, local_parameters(config, params, paper))
    assert abs(planned / found.cost_analysis()["flops"] - 1) < 0.05

    held, there = plan_memory(config, V, paper), found.memory_analysis()
    batch = len(batch_shapes(config, 1)) * 4 * step.T
    state = there.argument_size_in_bytes - batch
    assert abs(sum(held.state.values()) / state - 1) < 0.01
    assert abs(held.peak / there.peak_memory_in_bytes - 1) < 0.15

    if layout.expert > 1:  # slots, by what `auto` takes on such a mesh
        slots = {move.what: move.count for move in moved if move.name == "all-to-all"}
        embeddings = slots.pop(EMBEDDINGS, 0)
        travels = targets.count_collectives(found.as_text())["all-to-all"]
        assert travels - embeddings == sum(slots.values()) / sum(config.model.routed_layers)
