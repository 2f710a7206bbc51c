"""What a plan says, against what models, routers and compilers do."""

import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import make_pool
from test_hf_counts import CARDS, DEEPSEEK_V3, MIXTRAL

from moejax.commands import main as cli
from moejax.commands.plan_cost import CostSettings, make_request
from moejax.config import ConfigError, MeshConfig, changed, load_config_file
from moejax.config.errors import UserError
from moejax.lab.plan.advice import advise_capacity, advise_mesh, roomier_configs
from moejax.lab.plan.cost_report import table, to_json
from moejax.lab.plan.dense_twins import dense_twins
from moejax.lab.plan.device_parameters import local_parameters, parameter_shapes
from moejax.lab.plan.devices import DEVICES, paper_mesh
from moejax.lab.plan.expected_drops import WANTED, expected_drops, forecast_seats
from moejax.lab.plan.memory import cache_bytes, plan_memory
from moejax.lab.plan.plan_sections import list_parameters, make_plan
from moejax.lab.plan.read_load import read_shares
from moejax.lab.plan.roofline import draw_up
from moejax.lab.plan.step_flops import step_flops
from moejax.lab.plan.step_sizes import size_step
from moejax.lab.plan.traffic import expected_devices, list_moves
from moejax.models.decoder import DecoderLM
from moejax.routing.seating import capacity
from moejax.runtime.program_flops import count_flops
from moejax.train.optimizer import make_optimizer, make_schedule
from moejax.train.state import init_state
from moejax.train.step import train_step

V = 64


def settings(**given) -> CostSettings:
    """Those that `moejax plan` has where nothing else is given."""
    return CostSettings(**{"device": "cpu"} | given)


def wider(config, dispatch="einsum", **model):
    """The config with a model so wide that products are most of its arithmetic."""
    moe = replace(config.model.moe, hidden_size=128, group_size=64, dispatch=dispatch)
    sizes = {"width": 128, "num_heads": 4, "unroll": None, "moe": moe} | model
    data = replace(config.data, sequence_length=64, batch_size=8)
    return replace(config, model=replace(config.model, **sizes), data=data)


def compile_tiny(config):
    """The training step of 8 sequences of 64."""
    model, optimizer = DecoderLM(config.model, V), make_optimizer(config.optim)
    state = jax.eval_shape(functools.partial(init_state, model, optimizer, config))
    ids_BN = jax.ShapeDtypeStruct((8, 64), jnp.int32)
    batch = dict.fromkeys(("inputs", "targets", "segments", "positions", "bytes"), ids_BN)
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        shape=make_schedule(config.optim, 10),
        config=config,
    )
    return jax.jit(step).lower(state, batch).compile()


@pytest.mark.parametrize(
    "settings",
    [
        {"next_tokens": 1},
        {"remat": "layer"},
        pytest.param({"remat": "layer", "dispatch": "gather"}, marks=pytest.mark.slow),
        pytest.param({"remat": "attention"}, marks=pytest.mark.slow),
        pytest.param({"remat": "experts"}, marks=pytest.mark.slow),
        pytest.param(
            {
                "remat": "layer",
                "remat_keep": ("queries_keys_values", "attention_output", "hidden"),
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_a_step_is_what_the_compiler_counts(tiny, settings):
    """Its products within 3 %, all of its arithmetic within 5 %, what lies in memory before and
    after it to the byte; and the bytes of the roofline are less than it moves, but not far less.
    """
    config = wider(tiny, **settings)
    compiled = compile_tiny(config)
    counted = compiled.cost_analysis()["flops"]
    params = sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(config, V)))
    # What AdamW and the norm of the gradient do to each parameter are no products.
    assert abs((counted - 20 * params) / step_flops(config, V) - 1) < 0.05
    assert abs(count_flops(compiled.as_text()) / step_flops(config, V) - 1) < 0.03
    grid = paper_mesh(config.mesh, None, "cpu")
    roofline = draw_up(config, V, grid, DEVICES["v5e"].peak)
    least = sum(row.bytes for row in roofline.rows)
    assert 0.2 < least / compiled.cost_analysis()["bytes accessed"] < 1
    held = sum(plan_memory(config, V, grid).state.values())
    there = compiled.memory_analysis().argument_size_in_bytes - 5 * 4 * 8 * 64
    assert 0 <= there - held < 200  # numbers of steps


def test_mixtral_is_explained(tmp_path):
    """Eight experts are not eight models, and two of them not two."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(MIXTRAL))
    request = make_request(settings(hf=file), [])
    section = list_parameters(request)
    text = table(request, [section], explain=True)
    assert "8 x 5.64G of experts + 1.61G of the rest = 46.7G" in text
    assert "8 whole models of one expert each, 7.24G, would be 57.9G" in text
    assert "2 x 5.64G of experts + 1.61G of the rest = 12.9G" in text


@pytest.mark.parametrize(("hf", "total", "active", "digits"), CARDS)
def test_the_plan_of_a_released_model_equals_its_card(tmp_path, hf, total, active, digits):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(hf))
    request = make_request(settings(hf=file), [])
    found = to_json(request, [list_parameters(request)])
    assert round(found["parameters_total"] / 1e9, digits) == total
    assert round(found["parameters_active"] / 1e9, digits) == active
    assert found["parameters"]["total"]["total"] == found["parameters_total"]
    parts = [part["total"] for part in found["parameters"].values() if isinstance(part, dict)]
    assert sum(parts) == 2 * found["parameters_total"]


def test_the_table_and_the_object_say_the_same():
    request = make_request(
        settings(devices=8, config=Path("configs/quickstart.py")), ["--mesh.expert", "4"]
    )
    sections = make_plan(request)
    found, text = to_json(request, sections), table(request, sections, explain=True)
    assert found["mesh"] == {"data": 2, "context": 1, "expert": 4, "model": 1}
    for section in sections:
        assert section.title in text and section.key in found
        for line in section.lines:
            assert line.cells[0] in text
    assert json.loads(json.dumps(found)) == found


def choices(share_E: np.ndarray, tokens: int, top_k: int, rng: np.random.Generator) -> np.ndarray:
    """K different experts for each token, each with K times its share: systematic sampling over the
    experts in random order.
    """
    order = rng.permuted(np.tile(np.arange(share_E.size), (tokens, 1)), axis=1)
    upper = np.cumsum(top_k * share_E[order], axis=1)
    lower = np.concatenate([np.zeros((tokens, 1)), upper[:, :-1]], axis=1)
    start = rng.random((tokens, 1))
    hit = np.floor(upper - start + 1e-12) > np.floor(lower - start + 1e-12)
    chosen = np.zeros_like(hit)
    np.put_along_axis(chosen, order, hit, axis=1)
    return chosen


@pytest.mark.parametrize("skew", [0.0, 0.5])
def test_expected_drops_are_those_of_a_simulation(skew):
    E, K, S, groups = 8, 2, 64, 2000
    share_E = np.exp(-skew * np.arange(E))
    share_E /= share_E.sum()
    asked_GE = (
        choices(share_E, groups * S, K, np.random.default_rng(0)).reshape(groups, S, E).sum(1)
    )
    assert asked_GE.sum() == groups * S * K
    planned_C = expected_drops(share_E[None], S, K)
    for C in (12, 16, 20, 24):
        simulated = np.maximum(asked_GE - C, 0).sum() / (groups * S * K)
        assert abs(planned_C[C] - simulated) < 0.003
    assert planned_C[S] == 0 and abs(planned_C[0] - 1) < 1e-9


def test_the_advised_factor_is_the_smallest_that_will_do(tiny):
    moe = replace(tiny.model.moe, num_experts=8, group_size=64)
    model, even = replace(tiny.model, moe=moe), np.full((1, 8), 1 / 8)
    seat = forecast_seats(model, 20, even, 64)
    lost_C = expected_drops(even, 64, 2)
    assert capacity(64, 2, 8, seat.least_factor) == seat.least_slots
    assert capacity(64, 2, 8, seat.least_factor - 0.01) < seat.least_slots
    assert lost_C[seat.least_slots] < WANTED <= lost_C[seat.least_slots - 1]
    assert seat.dropped == lost_C[20]


def test_loads_are_read_from_files_and_runs(tiny, tmp_path):
    """Of a run, its last intervals together."""
    (tmp_path / "load").mkdir()
    for i in range(7):
        asked_LE = np.array([[1, 1, 1, 1], [1, 1, 1, 1 + 16 * (i > 1)]])
        np.savez(tmp_path / "load" / f"{i:08}.npz", asked_LE=asked_LE)
    share_LE = read_shares(tmp_path, tiny.model)
    np.testing.assert_allclose(share_LE, [[0.25] * 4, [0.05, 0.05, 0.05, 0.85]])
    one = read_shares(tmp_path / "load" / "00000000.npz", tiny.model)
    np.testing.assert_allclose(one, np.full((2, 4), 0.25))
    np.save(tmp_path / "other.npy", np.ones((3, 4)))
    with pytest.raises(ConfigError, match="3 layers of 4 experts, but the model 2 routed layers"):
        read_shares(tmp_path / "other.npy", tiny.model)
    with pytest.raises(UserError, match="no load/STEP.npz"):
        read_shares(tmp_path / "load", tiny.model)


def test_slots_that_are_sent_are_those_of_the_docstring(tiny):
    """G E C D (n - 1) / n numbers, twice there and twice back."""
    layout = MeshConfig(data=2, expert=4, expert_parallel="all_to_all")
    config = replace(tiny, mesh=layout)
    grid = paper_mesh(layout, None, "v5e")
    local = local_parameters(config, parameter_shapes(config, V), grid)
    with jax.sharding.use_abstract_mesh(grid):
        found = list_moves(config, size_step(config, V), local)
    G, E, C, D, n = 8 * 16 // 8 // 8, 4, 5, 16, 4
    sent = [move for move in found if move.name == "all-to-all"]
    assert {move.bytes for move in sent} == {4 * G * E * C * D * (n - 1) / n}
    assert sum(move.count for move in sent) == 4 * config.model.num_layers


def test_rows_go_to_the_devices_that_were_chosen():
    """A token's two choices of four experts on four devices are never on one."""
    rng = np.random.default_rng(0)
    assert expected_devices(2, 4, 4) == pytest.approx(1.5)
    chosen = np.argsort(rng.random((20_000, 16)))[:, :3] // 4
    others = np.mean([len(set(row) - {0}) for row in chosen.tolist()])
    assert expected_devices(3, 16, 4) == pytest.approx(others, rel=0.01)


def test_parameters_that_are_spread_take_less_each(tiny):
    """With FSDP all but vectors are shared out; without, experts alone are."""
    alone = paper_mesh(MeshConfig(), 1, "v5e")
    many = paper_mesh(MeshConfig(expert=4), 8, "v5e")
    spread = replace(tiny, mesh=MeshConfig(expert=4, fsdp=True))
    plain = replace(tiny, mesh=MeshConfig(expert=4))
    whole = plan_memory(tiny, V, alone).state["weights"]
    experts = 4 * 2 * 4 * 3 * 16 * 8
    assert plan_memory(plain, V, many).state["weights"] == whole - experts * 3 / 4
    assert whole / 8 < plan_memory(spread, V, many).state["weights"] < whole / 7


def test_the_cache_of_keys_and_values_is_that_of_the_decoder(tiny):
    grid = paper_mesh(MeshConfig(), 4, "cpu")
    (cache,) = make_pool(tiny.model, 2, 100)
    held = sum(x.nbytes for x in cache.values()) // 51 * 50  # a page is nobody's
    assert cache_bytes(tiny, 8, 100, grid) == held


def test_dense_twins_have_the_sizes_that_they_should():
    config = load_config_file("configs/quickstart.py")
    active, total = dense_twins(config, 257, paper_mesh(config.mesh, None, "cpu"))
    assert abs(active.parameters / 565_000 - 1) < 0.01
    assert abs(total.parameters / 1_596_000 - 1) < 0.01
    # Its own dense twin, but for the routers: 16 x 128 numbers a layer, 3 x 128 of a hidden one.
    assert 5 <= active.hidden - 256 <= 6


def test_what_does_not_fit_is_said_and_what_would():
    config = load_config_file("configs/mixtral_8x7b.py")
    grid = paper_mesh(config.mesh, 64, "v5e")
    said = advise_mesh(config, 32000, grid, "v5e")
    assert "more than nine tenths of a v5e" in said and "--devices 128" in said
    advised = next(
        (other, devices)
        for text, other, devices in roomier_configs(config, grid)
        if f". {text} " in said
    )
    there = paper_mesh(advised[0].mesh, advised[1], "v5e")
    assert plan_memory(advised[0], 32000, there).peak < 0.9 * DEVICES["v5e"].bytes


def test_groups_of_one_token_have_room_whatever_the_factor(tiny):
    config = changed(tiny, {"model.moe.group_size": 1})
    shares_LE = np.full((config.model.num_layers, config.model.moe.num_experts), 0.25)
    said = advise_capacity(config, paper_mesh(config.mesh, 1, "v5e"), shares_LE)
    assert said.startswith("--model.moe.group-size 1: ") and "nothing is dropped" in said


def test_advice_is_flags_as_they_are_typed():
    config = changed(load_config_file("configs/mixtral_8x7b.py"), {"mesh.data": 1})
    grid = paper_mesh(config.mesh, 8, "v5e")
    for text, _, devices in roomier_configs(config, grid):
        assert " ".join(text.split()) == text
        assert devices == 8 or "--mesh.data None" in text


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["plan"], ["plan", "cost"]),
        (["plan", "--config", "a.py"], ["plan", "cost", "--config", "a.py"]),
        (["plan", "placement", "--json"], ["plan", "placement", "--json"]),
        (["plan", "--help"], ["plan", "--help"]),
        (["bench"], ["bench"]),
        ([], []),
    ],
)
def test_a_plan_without_a_command_is_one_of_cost(argv, meant):
    assert cli.insert_default(argv) == meant


@pytest.mark.parametrize(
    ("given", "rest", "message"),
    [
        ({}, [], "say what to plan: --config FILE"),
        ({"hf": "there", "config": Path("configs/quickstart.py")}, [], "exclude each other"),
        ({"hf": "missing"}, [], "missing.json cannot be read"),
        ({"hf": "list"}, [], "is not a JSON object"),
        ({"hf": "bert"}, [], "model_type 'bert' is not supported. There are: mixtral"),
        ({"hf": "there", "devices": 3}, ["--mesh.expert", "2"], "make it a multiple of 2"),
        ({"hf": "there", "context": 0}, [], "--context must be greater than 0, not 0"),
    ],
)
def test_wrong_input_ends_in_one_message(given, rest, message, tmp_path):
    contents = {"there": DEEPSEEK_V3, "list": [], "bert": {"model_type": "bert"}}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    if "hf" in given:
        given = given | {"hf": tmp_path / f"{given['hf']}.json"}
    with pytest.raises(UserError, match=message):
        make_request(settings(**given), rest)


def test_the_command_says_what_is_wrong_and_exits_with_2():
    command = [sys.executable, "-m", "moejax", "plan", "--hf", "nowhere/config.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --hf nowhere/config.json cannot be read")
