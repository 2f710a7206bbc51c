"""Others' code beside ours: it computes the same, and what is absent has a message.

PyTorch and transformers are no part of the test environment: pip install -e '.[peers]'.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config.errors import ConfigError, UserError
from moejax.lab.bench import gpu, peers
from moejax.lab.bench.agreement import check_agreement, clear_choices
from moejax.lab.bench.gpu import GpuBench
from moejax.lab.bench.peers import PeersBench, ragged_dot_layer
from moejax.lab.bench.programs import Arm, make_problem, routed_arms

HERE = Path(__file__).parent
CPU_ONLY = os.environ | {"JAX_PLATFORMS": "cpu"}
TINY = {"tokens": 64, "experts": 4, "top_k": 2, "width": 16, "hidden": 24}
WITHOUT_TORCH = not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"))


@pytest.fixture(scope="module")
def problem():
    return make_problem(PeersBench(**TINY))


@pytest.fixture(scope="module")
def ours(problem):
    """What our layer gives: ``y_1TD, (dparams, dx_1TD)``."""
    return routed_arms("ours", problem, problem.shape)["ours forward+backward"]()


@pytest.mark.slow
def test_ragged_dot_computes_our_layer(problem, ours):
    def apply(params, x_1TD):
        return ragged_dot_layer(params, x_1TD, top_k=2)

    y_1TD, pull = jax.vjp(apply, problem.routed, problem.x_1TD)
    for got, right in zip(
        jax.tree.leaves((y_1TD, pull(problem.dy_1TD))), jax.tree.leaves(ours), strict=True
    ):
        np.testing.assert_allclose(got, right, atol=1e-5 * np.abs(right).max())


@pytest.mark.skipif(WITHOUT_TORCH, reason="needs PyTorch: pip install -e '.[peers]'")
@pytest.mark.parametrize("name", ["eager", "grouped_mm", "batched_mm"])
def test_the_block_of_transformers_computes_our_layer(problem, ours, name):
    """Outputs and every gradient; transformers stores matrices transposed, gate above up."""
    arms, absent, threads = peers.torch_arms(problem, (name,))
    assert not absent and threads >= 1
    y, ((dgate, dgate_up, ddown), dx) = arms[f"transformers {name} forward+backward"]()
    y_1TD, (dparams, dx_1TD) = ours
    d = dparams["params"]
    pairs = [
        (y, y_1TD),
        (arms[f"transformers {name} forward"](), y_1TD),
        (dx, dx_1TD),
        (dgate.T, d["w_router_DE"]),
        (dgate_up[:, :24].mT, d["w_gate_EDF"]),
        (dgate_up[:, 24:].mT, d["w_up_EDF"]),
        (ddown.mT, d["w_down_EFD"]),
    ]
    for got, right in pairs:
        np.testing.assert_allclose(got.numpy(), right, atol=1e-5 * np.abs(right).max())


@pytest.mark.skipif(WITHOUT_TORCH, reason="needs PyTorch: pip install -e '.[peers]'")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_are_timed_and_the_best_of_the_others_is_named(dtype):
    bench = PeersBench(**TINY, rounds=2, dtype=dtype, ragged_dot=dtype == "float32")
    result = json.loads(json.dumps(peers.measure(bench)))
    others = {"transformers eager", "transformers grouped_mm", "transformers batched_mm"}
    others |= {"ragged_dot"} if bench.ragged_dot else set()
    assert set(result["arms"]) == others | {"ours", "dense", "torch dense"}
    assert set(result["agreement"]["errors"]) == set(result["arms"])
    assert result["best_peer"] in others
    best, own = (result["arms"][n]["forward"] for n in (result["best_peer"], "ours"))
    ratio = result["peer_ratio"]["forward"]
    assert ratio["median"] == pytest.approx(best["cpu_ms"]["median"] / own["cpu_ms"]["median"])
    assert ratio["low"] <= ratio["high"]
    text = peers.report(result)
    assert f"{result['best_peer']} / ours" in text and "threads for PyTorch" in text


@pytest.mark.skipif(WITHOUT_TORCH, reason="needs PyTorch: pip install -e '.[peers]'")
def test_what_copies_too_much_is_left_out(problem, monkeypatch):
    monkeypatch.setattr(peers, "MOST_COPIED_BYTES", 1000)
    arms, absent, _ = peers.torch_arms(problem, ("eager", "batched_mm"))
    assert "transformers eager forward" in arms and "transformers batched_mm forward" not in arms
    assert "copies an expert's weights" in absent["transformers batched_mm"]


@pytest.mark.slow
def test_a_layer_that_computes_something_else_is_not_timed(problem, ours):
    y_1TD, (dparams, dx_1TD) = ours
    wrong = {"other forward+backward": lambda: (1.001 * y_1TD, (dparams, dx_1TD))}
    with pytest.raises(UserError, match="other does not compute .* its output is 1.0e-03"):
        check_agreement(problem, wrong)
    nan = {"other forward+backward": lambda: (y_1TD, (dparams, dx_1TD * jnp.nan))}
    with pytest.raises(UserError, match="its gradient of the input is nan"):
        check_agreement(problem, nan)


def test_tokens_whose_choice_a_rounding_decides_are_not_compared(problem):
    """Of experts with the same logits, each library may take another."""
    assert clear_choices(problem).mean() > 0.9
    params = problem.routed["params"]
    same = {"params": params | {"w_router_DE": jnp.zeros_like(params["w_router_DE"])}}
    with pytest.raises(UserError, match="no token chooses its experts by a margin"):
        clear_choices(replace(problem, routed=same))


def test_wrong_settings_are_refused():
    for settings, message in (
        ({"activation": "gelu"}, "--activation must be swiglu"),
        ({"router": "switch", "top_k": 1}, "--router must be top_k or mixtral"),
        ({"rounds": 0}, "--rounds must be greater than 0, not 0"),
        ({"width": 0}, "--width must be greater than 0, not 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            PeersBench(**settings)


def test_missing_libraries_have_a_message(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torch and transformers: pip install -e '.\[peers"):
        peers.measure(PeersBench(**TINY))


def test_without_a_gpu_the_command_says_what_it_waits_for():
    command = [sys.executable, "-m", "moejax", "bench", "gpu"]
    result = subprocess.run(command, capture_output=True, text=True, env=CPU_ONLY, cwd=HERE.parent)
    assert result.returncode == 2 and "waits for an NVIDIA GPU" in result.stderr
    assert "--tiny" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_tables_for_a_gpu_come_out_whole():
    """The same way from end to end, on a CPU."""
    bench = GpuBench(tiny=True, only=("e8",), dtype="float32", rounds=2)
    result = json.loads(json.dumps(gpu.measure(bench)))
    found = result["shapes"]["e8"]
    assert found["right"], found["errors"]
    assert set(found["errors"]) == {"y", "dx", "dweight", "dw_gate", "dw_up", "dw_down"}
    arms = {"grouped", "einsum", "gather", "dense", "ragged_dot"}
    if WITHOUT_TORCH:
        assert "absent" in found["failed"]["torch grouped_mm"]
    else:
        arms |= {"torch grouped_mm"}
    assert set(found["arms"]) == arms
    assert found["arms"]["dense"]["forward_to_dense"]["median"] == 1.0
    text = gpu.report(result)
    assert "| grouped |" in text and "WRONG" not in text


def test_an_arm_without_memory_is_reported():
    def made() -> dict:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")

    assert gpu.attempt(made) == ({}, "out of memory")

    def refused() -> Arm:
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such kernel\nmore")

    assert gpu.attempt(lambda: {"arm": refused})[1].endswith("INVALID_ARGUMENT: no such kernel")


@pytest.mark.slow
def test_a_wrong_kernel_is_found(monkeypatch):
    true = gpu.grouped_feed_forward
    monkeypatch.setattr(gpu, "grouped_feed_forward", lambda *args: 1.001 * true(*args))
    problem = make_problem(GpuBench(tiny=True, dtype="float32").shape("e8"))
    errors = gpu.kernel_errors(problem)
    assert min(errors.values()) > gpu.LIMITS["float32"]


def test_wrong_settings_for_a_gpu_are_refused():
    with pytest.raises(ConfigError, match="--tokens must be a multiple of 256"):
        GpuBench(tokens=1000)
    with pytest.raises(ConfigError, match="--only needs at least one of e64, e8, e128"):
        GpuBench(only=())
