"""`moejax bench generate`: what a decode step must read, what it takes, and how fast it is."""

import importlib.util
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_models import CASES

from moejax.commands.main import run
from moejax.config import Config, MeshConfig, ModelConfig, MoEConfig
from moejax.config.errors import UserError
from moejax.inference.compile_decode import decode_state
from moejax.lab.bench.decode_sizes import active_bytes, largest_share, mean_share, weight_bytes
from moejax.lab.bench.generation import GenerationBench, describe_times, measure, report
from moejax.lab.bench.generation_times import Timed, draw_params, time_in_turn
from moejax.moe.quantise_params import Weights
from moejax.moe.quantised import dequantise
from moejax.runtime.device_mesh import make_mesh

WITHOUT_TORCH = not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"))
V, D, E, K, F = 32, 8, 4, 2, 16
TINY = ModelConfig(
    num_layers=2,
    width=D,
    num_heads=2,
    vocab_size=V,
    qk_norm=False,
    moe=MoEConfig(num_experts=E, top_k=K, hidden_size=F, group_size=1),
)


@pytest.fixture(scope="module")
def params() -> dict:
    """The shapes of the parameters."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        return decode_state(Config(model=TINY), V, mesh)["params"]


def test_a_step_of_one_text_needs_its_experts_and_no_others(params):
    """Counted by hand: two layers, each with attention, a router, 2 norms and K of E experts."""
    norms, attention, router, expert = 2 * D, 4 * D * D, D * E, 3 * D * F
    layer = norms + attention + router
    total = V * D + 2 * (layer + E * expert) + D + D * V
    active = D + 2 * (layer + K * expert) + D + D * V
    assert weight_bytes(params) == 4 * total
    assert active_bytes(TINY, params, 1, mean_share(TINY, 1)) == 4 * active
    assert mean_share(TINY, 1) == largest_share(TINY, 1) == K / E


def test_the_experts_of_several_texts_are_counted_once(params):
    """Two texts at random leave a quarter of the experts out on average, many texts none."""
    one, two, many = (
        active_bytes(TINY, params, rows, mean_share(TINY, rows)) for rows in (1, 2, 100)
    )
    assert largest_share(TINY, 2) == largest_share(TINY, 100) == 1
    experts = 4 * 2 * 3 * D * F  # bytes of one expert, in both layers
    rows = 4 * D
    assert two - one == experts * E // 4 + rows
    assert many - one == pytest.approx(experts * (E - K) + 99 * rows, abs=2)


def test_a_head_that_is_the_embedding_is_read_whole(params):
    tied = {name: leaf for name, leaf in params.items() if name != "w_head_DV"}
    one = active_bytes(replace(TINY, tie_embeddings=True), tied, 1, 0.5)
    assert one == active_bytes(TINY, params, 1, 0.5) - 4 * D


def test_weights_that_are_drawn_keep_the_size_of_what_they_multiply(params):
    made = draw_params(params)
    jax.tree.map(lambda x, like: np.testing.assert_equal(x.shape, like.shape), made, params)
    w_LEDF = made["layers_0"]["block_0"]["moe"]["w_up_EDF"]
    assert float(jnp.var(w_LEDF)) == pytest.approx(1 / D, rel=0.1)
    assert bool((made["final_norm"]["scale_D"] == 1).all())


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_quantised_weights_are_counted_and_drawn_as_codes(params, kind):
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    like = decode_state(Config(model=TINY), V, mesh, Weights(kind=kind))["params"]
    short, whole = weight_bytes(like), weight_bytes(params)
    assert short < (0.3 if kind == "int4" else 0.4) * whole
    assert 0 < active_bytes(TINY, like, 1, 0.5) < short
    w_LEDF = draw_params(like)["layers_0"]["block_0"]["moe"]["w_up_EDF"]
    numbers = dequantise(w_LEDF)
    assert numbers.shape == params["layers_0"]["block_0"]["moe"]["w_up_EDF"].shape
    assert 0.01 / D < float(jnp.var(numbers)) < 2 / D


def test_arms_take_turns_and_the_first_round_does_not_count():
    calls = []

    def arm(name, seconds):
        def run(prompt_BN, tokens):
            calls.append((name, len(prompt_BN)))
            return Timed(next(seconds), 1.0)

        return run

    slow = iter([100.0] * 2 + [1.0, 5.0, 2.0, 6.0, 9.0, 7.0])
    quick = iter([100.0] * 2 + [0.1] * 6)
    times = time_in_turn(
        {"slow": arm("slow", slow), "quick": arm("quick", quick)},
        np.zeros((2, 3), np.int32),
        (1, 2),
        tokens=4,
        rounds=3,
    )
    assert calls[:4] == [("slow", 1), ("quick", 1), ("slow", 2), ("quick", 2)]
    assert times["slow", 1].prefill == 2.0 and times["slow", 2].prefill == 6.0


def test_rates_are_of_all_texts_together():
    bench = GenerationBench(batch=(4,), prompt_tokens=10)
    rates = describe_times(Timed(2.0, 0.5), 4, bench, active=3000)
    assert rates == {
        "prefill_tokens_per_second": 20.0,
        "tokens_per_second": 8.0,
        "active_bytes_per_second": 6000.0,
    }


@pytest.mark.slow
def test_all_is_measured_and_reported():
    """The clock is not tested, only that there are figures for each size."""
    bench = GenerationBench(batch=(1, 2), prompt_tokens=4, tokens=3, rounds=1)
    result = measure(bench, Config(model=TINY), V)
    assert [one["batch"] for one in result["batches"]] == [1, 2]
    for one in result["batches"]:
        assert all(rate > 0 for rate in one["moejax"].values())
    assert result["copy_bytes_per_second"] > 0
    lines = report(result).splitlines()
    assert len(lines) == 5 and lines[3].split()[:2] == ["1", "moejax"]


@pytest.fixture
def released(tmp_path):
    """The config.json of a released model, in a directory without weights."""
    (tmp_path / "config.json").write_text(json.dumps(CASES["olmoe"]))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_config_json_is_enough_to_compile(released, capsys, name):
    words = ["bench", "generate", "--hf", str(released / name), "--batch", "1", "--compiled"]
    run([*words, "--dtype", "bfloat16", "--model.num-layers", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["dtype"] == "bfloat16" and result["platform"] == "cpu"
    assert 0 < result["active_bytes"] < result["weight_bytes"]
    assert {"temporary_bytes", "accessed_bytes", "peak_bytes"} < set(result)
    assert result["peak_bytes"] >= result["weight_bytes"]
    assert result["batches"][0]["temporary_bytes"] == result["temporary_bytes"]


@pytest.mark.slow
def test_the_compiled_figures_are_a_table_for_people(released, capsys):
    run(["bench", "generate", "--hf", str(released), "--batch", "1", "2", "--compiled"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cpu, bfloat16, weights ")
    assert [line.split()[0] for line in lines[1:]] == ["batch", "1", "2"]


@pytest.mark.parametrize(
    "flags, says",
    [
        ([], "say which model: --config FILE"),
        (["--hf", "none.json"], "--hf none.json cannot be read"),
        (["--hf", "HERE", "--batch", "0"], "--batch must be numbers greater than 0, not 0"),
        (["--hf", "HERE", "--rounds", "9", "--compiled"], "--rounds 9 has no effect with"),
        (
            ["--hf", "HERE", "--model.moe.hidden-size", "100000000"],
            "a model of these sizes takes at least",
        ),
        (["--hf", "HERE", "--tokens", "1"], "--tokens must be at least 2"),
        (["--hf", "HERE", "--peers", "--compiled"], "leave --compiled and --target out"),
        (
            ["--config", "configs/quickstart.py", "--model.moe.router", "expert_choice"],
            "no text can be generated with",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(released, flags, says):
    flags = [str(released) if flag == "HERE" else flag for flag in flags]
    with pytest.raises(UserError, match=says):
        run(["bench", "generate", *flags])


@pytest.mark.skipif(WITHOUT_TORCH, reason="needs PyTorch and transformers")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_is_timed_after_its_logits_were_found_equal(released, capsys, dtype):
    words = ["--batch", "2", "--prompt-tokens", "5", "--tokens", "3", "--rounds", "1"]
    run(["bench", "generate", "--hf", str(released), "--peers", "--dtype", dtype, "--json", *words])
    result = json.loads(capsys.readouterr().out)
    assert result["agreement"] < {"float32": 1e-4, "bfloat16": 5e-2}[dtype]
    ours, theirs = (result[name]["tokens_per_second"] for name in ("moejax", "transformers"))
    assert result["ratio"] == pytest.approx(ours / theirs)


@pytest.mark.skipif(not WITHOUT_TORCH, reason="PyTorch and transformers are here")
def test_without_transformers_the_command_says_what_to_install(released):
    with pytest.raises(UserError, match=r"--peers needs torch and transformers: pip install"):
        run(["bench", "generate", "--hf", str(released), "--peers"])
