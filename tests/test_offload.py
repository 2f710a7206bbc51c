"""What waits in the host's memory between steps, or between the two passes of one."""

import dataclasses
import importlib.util

import chex
import jax
import pytest
from steps import make_parts

from moejax.config import Config, ConfigError, changed
from moejax.lab.plan import compile_step as compiled
from moejax.lab.plan.devices import paper_mesh
from moejax.lab.plan.memory import plan_memory
from moejax.runtime import device_fit, device_mesh, targets
from moejax.train.offload import lay_state
from moejax.train.optimizer import make_optimizer

NEEDS_LIBTPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@pytest.mark.parametrize(("path", "value"), [("optim.offload", True), ("model.remat", "offload")])
def test_a_cpu_has_no_other_memory(tiny, path, value):
    config = changed(tiny, {path: value})
    mesh = device_mesh.make_mesh(config.mesh, jax.devices()[:1])
    with pytest.raises(ConfigError, match=f"--{path} {value} lets numbers wait"):
        device_fit.check_fits(config, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_that_wait_in_pinned_memory_take_the_same_step(tiny, batch, optimizer):
    """A CPU can pin memory, too, though it gains nothing."""
    results = []
    for offload in (False, True):
        settings = {"optimizer": optimizer, "offload": offload, "moments": "bfloat16"}
        config = changed(tiny, {"optim": settings})
        begin, step = make_parts(config, make_optimizer(config.optim))
        mesh = device_mesh.make_mesh(config.mesh, jax.devices()[:1])
        with jax.set_mesh(mesh):
            lies = lay_state(config, jax.eval_shape(begin), mesh)
            state = jax.jit(begin, out_shardings=lies)()
            step = jax.jit(step, out_shardings=(lies, None), donate_argnums=0)
            for _ in range(2):
                state, _ = step(state, batch)
        kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state.optimizer) if x.ndim}
        assert ("pinned_host" in kinds) == offload and len(kinds) == 1
        results.append(jax.device_get(dataclasses.replace(state)))
    chex.assert_trees_all_close(results[1], results[0], atol=1e-6)


def wide(**settings: object) -> Config:
    """A dense model whose arrays are too large for the fast memory of a chip."""
    model = {"num_layers": 8, "width": 512, "dense_hidden_size": 512, "dtype": "bfloat16"}
    data = {"sequence_length": 256, "batch_size": 256, "eval_batch_size": 256}
    base = changed(Config(), {"model": model | {"remat": "layer"}, "data": data})
    return changed(base, {"model.moe.every": 0} | settings)


def compile_for_tpu(config: Config) -> tuple:
    """The compiler's account of a step on one chip, and the plan's."""
    grid = device_mesh.make_mesh(config.mesh, targets.describe_devices("v5e:1x1"))
    found = compiled.compile_step(config, grid, 1024).memory_analysis()
    return found, plan_memory(config, 1024, paper_mesh(config.mesh, 1, "v5e"))


@pytest.mark.slow
@NEEDS_LIBTPU
def test_on_a_tpu_inputs_of_layers_wait_on_the_host(little_effort):
    """All of them, to the byte; the peak on the chip falls by three quarters of that."""
    before, _ = compile_for_tpu(wide())
    found, planned = compile_for_tpu(wide(**{"model.remat": "offload"}))
    (saved,) = planned.host.values()
    assert found.host_temp_size_in_bytes == saved == 8 * 256 * 256 * 512 * 2
    assert before.peak_memory_in_bytes - found.peak_memory_in_bytes > 0.7 * saved


@pytest.mark.slow
@NEEDS_LIBTPU
def test_on_a_tpu_moments_wait_on_the_host(little_effort):
    small = {"model.num_layers": 1, "data": {"batch_size": 8, "eval_batch_size": 8}}
    found, planned = compile_for_tpu(wide(**small, **{"optim.offload": True}))
    moments, state = sum(planned.host.values()), sum(planned.state.values())
    assert abs(found.host_argument_size_in_bytes / moments - 1) < 0.01
    batch = 5 * 4 * 8 * 256
    assert abs((found.argument_size_in_bytes - batch) / state - 1) < 0.01
