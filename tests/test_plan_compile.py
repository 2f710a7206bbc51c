"""Training steps compiled for TPUs that are not here. Needs the extra `tpu`."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from moejax.config import ConfigError, MeshConfig, changed, load_config_file
from moejax.lab.plan.compile_step import compile_step
from moejax.runtime import device_mesh, targets

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]


def plan_compile(config: str, target: str, *flags: str) -> tuple[int, dict]:
    """Exit code and figures of `moejax plan compile`; its compiler wants a process of its own."""
    command = [
        sys.executable,
        "-m",
        "moejax",
        "plan",
        "compile",
        "--config",
        f"configs/{config}.py",
    ]
    command += ["--target", target, "--json", *flags]
    pipes = {"capture_output": True, "text": True, "timeout": 1500}
    done = subprocess.run(command, cwd=ROOT, **pipes)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_quickstart_fits_a_chip_of_a_free_colab(little_effort):
    code, found = plan_compile("quickstart", "v5e:1x1")
    assert code == 0 and found["fits"]
    assert found["peak_gigabytes"] < 0.01 * found["memory_gigabytes"]
    assert 1 < found["flops_ratio"] < 1.15
    assert not found["collectives"] and found["overlapping"] == 0


def test_the_quickstart_on_eight_chips_moves_slots_by_all_to_all(little_effort):
    _, found = plan_compile("quickstart", "v5e:2x4", "--mesh.expert", "4")
    unit = found["repeated"][0]["collectives"]
    assert unit["all-to-all"] == 4 and "all-gather" not in unit
    assert found["flops_ratio"] < 1.15


def test_rows_are_sent_by_the_chips_own_ragged_exchange(little_effort):
    flags = ["--mesh.expert", "4", "--mesh.expert-parallel", "ragged"]
    code, found = plan_compile("quickstart", "v5e:2x2", *flags, "--model.num-layers", "1")
    assert code == 0 and found["collectives"]["ragged-all-to-all"] == 6


@pytest.mark.parametrize(("chunks", "overlap"), [(1, False), (2, True)])
def test_chunks_travel_while_others_are_computed(chunks, overlap):
    mesh = {"expert": 4, "expert_parallel": "all_to_all", "chunks": chunks}
    model = {"num_layers": 1, "width": 512, "moe.hidden_size": 1024, "dtype": "bfloat16"}
    rest = {"data.sequence_length": 256, "optim.optimizer": "adamw"}
    config = changed(load_config_file("configs/quickstart.py"), {"mesh": mesh, "model": model})
    config = changed(config, rest)
    grid = device_mesh.make_mesh(config.mesh, targets.describe_devices("v5e:2x2"))
    text = compile_step(config, grid, 257).as_text()
    assert targets.count_collectives(text)["all-to-all"] == 4 * chunks
    assert (targets.count_overlapping(text) > 0) == overlap


def test_slices_lie_along_the_data_axis():
    """What travels inside a layer stays inside a slice."""
    devices = targets.describe_devices("v5e:2x2", slices=2)
    grid = device_mesh.make_mesh(MeshConfig(expert=2, model=2), devices)
    assert [{device.slice_index for device in part.flat} for part in grid.devices] == [{0}, {1}]
    with pytest.raises(ConfigError, match="--mesh.data 1 is not divisible by the 2 slices"):
        device_mesh.make_mesh(MeshConfig(expert=8), devices)


def test_a_step_compiles_for_two_slices(little_effort):
    flags = ["--slices", "2", "--mesh.expert", "4", "--model.num-layers", "1"]
    code, found = plan_compile("quickstart", "v5e:2x2", *flags, "--optim.optimizer", "adamw")
    assert code == 0 and found["mesh"] == {"data": 2, "context": 1, "expert": 4, "model": 1}


def test_what_does_not_fit_is_named(little_effort):
    flags = ["--data.batch-size", "16384", "--model.num-layers", "1", "--optim.optimizer", "adamw"]
    flags += ["--model.moe.every", "0"]
    code, found = plan_compile("quickstart", "v5e:1x1", *flags)
    assert code == 1 and not found["fits"]
    size, array, name = found["buffers"][0]
    assert size > 1e8 and "DecoderLM" in name and found["buffers_of"]["sequences"] < 16384


@pytest.mark.parametrize("target", ["v5e:3x5", "h100:2x2"])
def test_a_target_that_does_not_exist_is_named(target):
    command = [sys.executable, "-m", "moejax", "plan", "compile", "--target", target]
    command += ["--config", "configs/quickstart.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert f"--target {target}" in done.stderr and "such as v5e:2x2" in done.stderr
