"""What balancing remembers from step to step, in the state and on disk; and a table by frequency
that a run counts for.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import make_parts

from moejax.config import Config, ConfigError, DistributedConfig, MeshConfig, ModelConfig, changed
from moejax.config.idle import differences_that_matter
from moejax.hf.configs import write_config
from moejax.inference.opening import open_model
from moejax.models.counts import cost
from moejax.runs.checkpoint import Checkpoints
from moejax.runtime import device_mesh
from moejax.runtime.processes import Processes
from moejax.train.balance_memory import begin_memory
from moejax.train.count_tokens import count_tokens
from moejax.train.optimizer import make_optimizer
from moejax.train.training import train

RELUS = {
    "model.moe.router": "remoe",
    "model.moe.balance": {
        "loss_weight": 0.0,
        "sparsity_loss_weight": 1e-3,
        "sparsity_factor": 1.2,
        "experts_per_token": 1.0,
    },
}


def test_the_coefficient_of_sparsity_moves_is_used_and_is_kept(tiny, batch, tmp_path):
    config = changed(tiny, RELUS)
    begin, step = make_parts(config, make_optimizer(config.optim))
    state, step = jax.jit(begin)(), jax.jit(step)
    after, report = step(state, batch)
    router = report.batch.sums.router
    assert float(report.sparsity_weight) == np.float32(1e-3) == float(state.memory.sparsity_weight)
    zeros = 1 - np.sum(router.open_BE) / (np.sum(router.tokens_B) * 4)
    assert zeros < 0.75  # as at the start of any training: more than one of four lets through
    np.testing.assert_allclose(after.memory.sparsity_weight, 1.2e-3, rtol=1e-6)
    heavy = replace(state.memory, sparsity_weight=jnp.float32(100.0))
    other, _ = step(replace(state, memory=heavy), batch)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(other.params, after.params, atol=1e-5)
    with Processes(DistributedConfig()) as processes:
        checkpoints = Checkpoints(tmp_path, 1, processes, "loss")
        checkpoints.save(1, after, {})
        checkpoints.wait()
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
        )
        _, restored, _ = checkpoints.restore(like)
        checkpoints.close()
    chex.assert_trees_all_equal(restored, after)
    broken = replace(after, params=jax.tree.map(lambda p: p * jnp.nan, after.params))
    same, _ = step(broken, batch)  # a step that is skipped moves nothing
    chex.assert_trees_all_equal(same.memory, after.memory)


def test_control_goes_on_from_the_bias_that_a_model_came_with():
    """What the experts of a released model were used to is where the sum begins."""
    balance = changed(ModelConfig(), {"moe.balance.bias_update": "pid"}).moe.balance
    memory = begin_memory(jnp.float32([[0.5, -0.5]]), balance)
    np.testing.assert_array_equal(memory.sum_LE, [[0.5, -0.5]])
    np.testing.assert_array_equal(memory.last_LE, [[0, 0]])
    assert memory.sparsity_weight is None


@dataclass(frozen=True)
class Task:
    """Has one batch."""

    config: Config
    vocab_size: int = 9

    def train_batches(self, rows):
        class Batches(list):
            def close(self):
                pass

        assert self.config.data.seed == 0 and len(rows) == self.config.data.batch_size
        inputs = np.array([[3, 1, 0, 0], [3, 0, 0, 0]])
        return Batches([{"inputs": inputs, "segments": inputs > 0}])


def test_tokens_are_counted_without_padding_and_behind_the_last_is_nothing(tiny):
    """3 occurs twice, 1 once; the zeros are padding. The seed of the run does not matter."""
    config = changed(tiny, {"data.seed": 5})
    assert count_tokens(config, Task(config)) == (0, 1, 0, 2)


def test_counts_that_a_run_has_found_are_no_other_settings(tiny):
    table = changed(tiny, {"model.moe.router": "hash_balanced"})
    one, other = (changed(table, {"model.moe.token_counts": c}) for c in ((1, 2), (2, 1)))
    assert differences_that_matter(one, table) == {} == differences_that_matter(table, one)
    assert differences_that_matter(one, other) == {"model.moe.token_counts": ((1, 2), (2, 1))}


def test_flops_are_those_of_the_experts_that_balancing_holds_on_average():
    """Of at most four experts two on average, as where all tokens have two."""
    held = changed(ModelConfig(), {name.removeprefix("model."): v for name, v in RELUS.items()})
    four = changed(held, {"moe.top_k": 4, "moe.balance.experts_per_token": 2.0})
    two = changed(held, {"moe.top_k": 2, "moe.balance.experts_per_token": None})
    assert cost(four, 257, 128) == cost(two, 257, 128)
    loose = changed(four, {"moe.balance.sparsity_factor": 1.0})
    assert cost(loose, 257, 128).flops_per_token > cost(two, 257, 128).flops_per_token


def test_no_released_family_holds_a_table_of_ours():
    model = changed(ModelConfig(vocab_size=11), {"moe.router": "hash_balanced"})
    with pytest.raises(ConfigError, match="--model.moe.router hash_balanced"):
        write_config(model)


@pytest.mark.slow
def test_a_run_counts_for_its_table_once_and_keeps_the_counts(tiny, tmp_path):
    """Also where only the first layer has the table: what opens the run has it, too."""
    for name in ("a.txt", "held_out"):
        (tmp_path / name).write_text(Path(__file__).read_text())
    changes = {
        "model.moe": {"router": "hash_balanced", "hash_layers": 1},
        "model.moe.balance.bias_update": "sign",
        "data": {
            "source": "files",
            "files": str(tmp_path / "*.txt"),
            "validation_files": str(tmp_path / "held_out"),
        },
        "run": {"directory": str(tmp_path / "run"), "steps": 6, "checkpoint_every": 3},
    }
    config = changed(tiny, changes)
    train(config, name="tiny", command="test")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    counts = written["model"]["moe"]["token_counts"]
    assert counts[ord("e")] > counts[ord("x")] > 0 == counts[ord("\x7f")]
    train(changed(config, {"run.steps": 9}), name="tiny", command="test")
    mesh = device_mesh.make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = open_model(tmp_path / "run", mesh=mesh, layout=MeshConfig())
    assert model.config.moe.token_counts == tuple(counts)
    assert (tmp_path / "run" / "sample.txt").read_text()
