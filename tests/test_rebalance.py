"""Experts that follow the load while texts are served."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_runner import MadeUpRunner, make_sizes
from serving import make_model
from test_generate import ROUTED, TINY, TOKENIZER, V, bias_of, made
from test_module_drafts import make_drafting_runner, with_modules
from test_page_runner import WINDOW, make_runner, requests, wanted

from moejax.config import ConfigError, MeshConfig
from moejax.inference.engine import rebalance
from moejax.inference.engine.core import Core
from moejax.inference.engine.drafts import ModelDrafter, ModuleDrafter, PromptDrafter
from moejax.inference.engine.engine import Engine
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.placed_experts import PlacedExperts, add_places
from moejax.inference.engine.rebalance import Rebalancer
from moejax.inference.engine.stats import Balance
from moejax.inference.engine.texts import TextRules
from moejax.inference.server.live import write_stats
from moejax.inference.server.metrics import describe_balance
from moejax.moe.parallel.move import make_fill, make_move
from moejax.moe.parallel.placement import place
from moejax.moe.parallel.replan import (
    LEAST,
    MARGIN,
    keep_in_place,
    plan_copies,
    replan,
    spread_load,
    weigh_layers,
)
from moejax.runtime import device_mesh, partition


def zipf(layers: int, experts: int, rng) -> np.ndarray:
    """The most wanted expert is another one in each layer."""
    load_E = 1 / np.arange(1, experts + 1)
    return 1e6 * np.stack([rng.permutation(load_E) for _ in range(layers)])


def made_places(layers: int, experts: int, devices: int, places: int) -> np.ndarray:
    return place(np.ones((layers, experts)), devices=devices, places=places).expert_LP


def test_a_zipf_load_is_balanced_with_a_spare_place_a_device():
    """64 experts on 8 devices, in 20 layers: mean over largest load of all was 0.409, is 1.000."""
    load_LE = zipf(20, 64, np.random.default_rng(0))
    before_LP = made_places(20, 64, 8, 72)
    after_LP = replan(load_LE, before_LP, 8)
    before, after = (weigh_layers(spread_load(load_LE, x, 8)) for x in (before_LP, after_LP))
    assert (round(before, 3), round(after, 3)) == (0.409, 1.0)
    planned = place(load_LE, devices=8, places=72)
    found_LQ, planned_LQ = spread_load(load_LE, after_LP, 8), planned.load_LQ
    np.testing.assert_allclose(np.sort(found_LQ), np.sort(planned_LQ))  # devices are renamed


def test_a_layer_that_would_gain_little_or_has_seen_little_stays():
    """The first would get 33 % better, the second 2 %, and of the third nothing is known yet."""
    now_LP = np.tile(np.arange(4), (3, 1))
    load_LE = np.array([[3.0, 3, 1, 1], [1.02, 1, 1, 1], [3, 3, 1, 1]]) * LEAST
    load_LE[2] /= 2.01
    after_LP = replan(load_LE, now_LP, 2)
    assert (after_LP != now_LP).any(1).tolist() == [True, False, False]
    assert sorted(after_LP[0, :2].tolist()) in ([0, 2], [0, 3], [1, 2], [1, 3])
    assert MARGIN == 0.05


@pytest.mark.parametrize("seed", range(20))
def test_what_can_stay_stays_and_the_copies_lead_from_places_to_places(seed):
    """Experts of each device are those of one device of the plan; a third of a shuffled one's."""
    rng = np.random.default_rng(seed)
    devices, M = int(rng.integers(2, 7)), int(rng.integers(1, 6))
    E = int(rng.integers(1, devices * M + 1))
    now_P, wanted_P = (
        rng.permutation([*range(E), *rng.integers(0, E, devices * M - E)]) for _ in range(2)
    )
    new_P = keep_in_place(now_P, wanted_P, devices)
    found, planned = (
        sorted(map(sorted, x.reshape(devices, M).tolist())) for x in (new_P, wanted_P)
    )
    assert found == planned
    assert (new_P == now_P).sum() >= (wanted_P == now_P).sum()
    np.testing.assert_array_equal(keep_in_place(now_P, now_P, devices), now_P)
    copies = plan_copies(now_P, new_P, devices)
    assert copies.experts == (new_P != now_P).sum()
    there_QM = now_P.reshape(devices, M).copy()
    for further in range(devices):
        for turn in range(copies.turns_S[further]):
            for giver in range(devices):
                to = (giver + further) % devices
                put = copies.put_SQX[further, to, turn]
                if put < M:
                    took = copies.take_SQX[further, giver, turn]
                    there_QM[to, put] = now_P.reshape(devices, M)[giver, took]
    np.testing.assert_array_equal(there_QM.reshape(-1), new_P)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_copies_are_made_in_place_and_nothing_but_them_is_sent(dtype):
    """A device needs its own part of one layer of three beside the stack, and two experts."""
    layout = MeshConfig(expert=4, model=2)
    mesh = device_mesh.make_mesh(layout)
    R, places, D, F = 3, 12, 16, 32
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 200, (R, places, D, F)).astype(dtype)
    sharding = partition.tree_shardings(mesh, {"w_up_EDF": stack})["w_up_EDF"]
    now_P, wanted_P = (rng.permutation([*range(9), 0, 1, 2]) for _ in range(2))
    stack[1] = stack[1, now_P]  # so that replicas are alike
    copies = plan_copies(now_P, wanted_P, 4)
    given = (np.int32(1), *copies.arrays)
    program = make_move(sharding).lower(jax.device_put(stack, sharding), *given).compile()
    memory, part = program.memory_analysis(), stack.nbytes // 8
    expert = part // R // 3
    assert memory.alias_size_in_bytes == part
    assert memory.temp_size_in_bytes <= part // R + 2 * expert + 2000
    sent = re.findall(r"= (\S+) (?:all-\S+|collective-permute|reduce-scatter)\(", program.as_text())
    assert len(sent) == 3 and all(re.match(rf"\w+\[(1,)*{D},{F // 2}\]", one) for one in sent)
    moved = np.asarray(program(jax.device_put(stack, sharding), *given))
    wanted_stack = stack.copy()
    wanted_stack[1] = stack[1, [np.flatnonzero(now_P == expert)[0] for expert in wanted_P]]
    np.testing.assert_array_equal(moved, wanted_stack)


@pytest.mark.parametrize("places", [8, 12])
def test_places_are_filled_without_a_bank_on_one_device(places):
    """Eight experts of three layers, on four devices; a place for each, or half as many more."""
    layout = MeshConfig(expert=4, model=2)
    mesh, rng = device_mesh.make_mesh(layout), np.random.default_rng(0)
    shape, expert_RP = (3, 8, 16, 32), np.stack([rng.permutation(places) % 8 for _ in range(3)])
    expert_RP[0] = np.arange(places) % 8  # with as many places as experts, nothing moves
    stack = rng.normal(size=shape).astype(np.float32)
    sharding = partition.tree_shardings(mesh, {"w_up_EDF": stack})["w_up_EDF"]
    source = jax.device_put(stack, sharding)
    filled = jnp.zeros((3, places, 16, 32), device=sharding)
    for repeat, expert_P in enumerate(expert_RP):
        copies = plan_copies(np.arange(8), expert_P, 4, anew=True)
        given = (filled, source, np.int32(repeat), *copies.arrays)
        program = make_fill(sharding).lower(*given).compile()
        memory = program.memory_analysis()
        assert memory.temp_size_in_bytes <= stack.nbytes // 8 // 3 * 2 + 2000  # one layer, and more
        assert "all-gather" not in program.as_text()
        filled = program(*given)
    np.testing.assert_array_equal(filled, stack[np.arange(3)[:, None], expert_RP])


@pytest.mark.parametrize(
    ("moe", "replicas", "wrong"),
    [
        ({"every": 0}, 8, "--rebalance moves experts, and this model has none: leave it out"),
        ({"router": "soft"}, 8, "no text can be generated with --model.moe.router soft"),
        ({}, 2, "--replicas 2 must lie in 4 to 8: each of 4 experts needs a place, and each of 2"),
        ({}, 10, "--replicas 10 must lie in 4 to 8"),
    ],
)
def test_places_that_a_model_cannot_have_are_refused(moe, replicas, wrong):
    mesh = device_mesh.make_mesh(MeshConfig(expert=2), jax.devices()[:2])
    config = replace(TINY, moe=replace(ROUTED, **moe))
    with pytest.raises(ConfigError, match=wrong):
        add_places(make_model(config=config), mesh, replicas)


def test_balance_is_told_by_layer_and_of_all_layers():
    """Layers 1 and 3 are routed; 1 has a device with three times the load of the other."""
    nothing = Balance(now_LQ=np.zeros((2, 2)))
    load_LQ = np.array([[3.0, 1], [2, 2]])
    balance = nothing.at(load_LQ).moved(load_LQ, np.full((2, 2), 2.0), 5)
    found = {}
    for family in describe_balance(balance, [1, 3]):
        found |= {(one.name[7:], *one.labels.values()): one.value for one in family.samples}
    assert found["expert_moves_total",] == 1 and found["experts_copied_total",] == 5
    assert found["balancedness", "now", "1"] == 2 / 3 and found["balancedness", "now", "3"] == 1
    assert found["balancedness", "before", "all"] == 4 / 5 == found["balancedness", "now", "all"]
    assert found["balancedness", "after", "all"] == 1
    assert [*nothing.shares()] == ["now"] and nothing.shares()["now"][0] == 1
    stats = replace(Core(MadeUpRunner(make_sizes(), V), RULES).stats(), balance=balance)
    written = json.loads(json.dumps(write_stats(stats)))["balance"]
    assert written["moves"] == 1 and written["before"] == {"all": 0.8, "layers": [2 / 3, 1.0]}


RULES = TextRules(tokenizer=TOKENIZER, ends=frozenset(), vocab_size=V, window=WINDOW)
SPARE = {"seats": 1, "rows": (1,), "prompt_rows": (1,)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        MeshConfig(data=2, expert=4, expert_parallel="all_gather"),
        MeshConfig(data=2, expert=4, expert_parallel="all_to_all"),
        MeshConfig(expert=4, model=2, expert_parallel="ragged"),
        MeshConfig(data=2, expert=4, fsdp=True),
    ],
    ids=["all_gather", "all_to_all", "ragged", "fsdp"],
)
def test_experts_that_move_change_no_text_and_hold_up_none(layout, monkeypatch):
    """First they move to random places again and again, while texts run; then by the load."""
    mesh, rng = device_mesh.make_mesh(layout), np.random.default_rng(0)
    model = make_model(config=TINY, layout=layout, params=made(TINY), bias_LE=bias_of(TINY))
    model, expert_LP, place_LER = add_places(model, mesh, 8)
    runner = make_runner(TINY, model.params, 8, layout, place_LER, **SPARE)
    runner.warm()
    log = []
    placed = PlacedExperts(runner, TINY, mesh, expert_LP)
    note(runner, "extend", log)
    said: list[str] = []

    def anywhere(load_LE, expert_LP, devices):
        return rng.permuted(expert_LP, axis=1)

    with Engine(runner, RULES, EngineSettings()) as engine:
        monkeypatch.setattr(rebalance, "replan", anywhere)
        with Rebalancer(engine, placed, 1e-3, said.append):
            note(placed, "move", log)
            texts = engine.run(requests())
        assert [text.ids for text in texts] == wanted()
        # No two layers move between two calls: each token waits for one at most.
        between = "".join(log).strip("m").split("x")
        assert max(map(len, between)) == 1 and between.count("m") >= 10
        balance = engine.stats().balance
        assert balance.moves == len(said) > 0
        by_load = Rebalancer(engine, placed, 60, said.append)
        monkeypatch.setattr(rebalance, "replan", lambda *_: expert_LP)
        by_load.turn()
        monkeypatch.undo()
        monkeypatch.setattr("moejax.moe.parallel.replan.LEAST", 1)
        by_load.turn()
        shares = engine.stats().balance.shares()
        assert [text.ids for text in engine.run(requests())] == wanted()
        by_load.turn()
        now = engine.stats().balance.shares()["now"][0]
    assert runner._run._cache_size() == len(runner.sizes.shapes())  # no other programs than before
    before, after = (shares[when][0] for when in ("before", "after"))
    assert f"of 2 layers: mean over largest load of devices {before:.3f} -> {after:.3f}" in said[-1]
    # The same texts again: what was planned is about what is measured.
    assert (round(before, 1), round(after, 1), round(now, 1)) == (0.5, 0.8, 0.8)


@pytest.mark.slow
def test_experts_that_move_while_drafts_are_checked_change_no_text(monkeypatch):
    """They move to random places again and again; drafts come from the model's own module, from a
    smaller model, and from the text.
    """
    layout = MeshConfig(data=2, expert=4, expert_parallel="all_to_all")
    mesh, rng = device_mesh.make_mesh(layout), np.random.default_rng(0)
    config, params, bias_LE = with_modules(TINY, 1)
    params = jax.tree.map(jnp.copy, params)
    model = make_model(config=config, layout=layout, params=params, bias_LE=bias_LE)
    model, expert_LP, place_LER = add_places(model, mesh, 8)
    assert len(expert_LP) == len(place_LER) == 3  # the module's, too, which stay
    lanes = {**SPARE, "lanes": 8, "drafts": 1, "ahead": 1}
    given = (config, layout, model.params, bias_LE)
    runner = make_drafting_runner(*given, mesh, modules=1, place_LER=place_LER, **lanes)
    dense = replace(TINY, num_layers=1, moe=replace(TINY.moe, every=0))
    lanes |= {"ahead": 0, "checks": False}
    smaller = make_drafting_runner(dense, layout, made(dense), None, mesh, **lanes)
    placed = PlacedExperts(runner, config, mesh, expert_LP)
    accepted: list[int] = []

    def anywhere(load_LE, expert_LP, devices):
        return rng.permuted(expert_LP, axis=1)

    monkeypatch.setattr(rebalance, "replan", anywhere)
    for drafter in (ModuleDrafter(1), ModelDrafter(smaller, 1), PromptDrafter(1, 1)):
        with Engine(runner, RULES, EngineSettings(), drafter) as engine:
            with Rebalancer(engine, placed, 1e-3, lambda line: None):
                texts = [text.ids for text in engine.run(requests())]
            stats = engine.stats()
        assert texts == wanted(), drafter
        assert stats.drafted > stats.accepted and stats.balance.moves >= 5
        accepted.append(stats.accepted)
    assert max(accepted) > 0 and runner._run._cache_size() == len(runner.sizes.shapes())


def note(holder, name: str, log: list[str]) -> None:
    """Have calls of a method noted by the second letter of its name, or the first."""
    method = getattr(holder, name)

    def noted(*given):
        log.append("x" if name == "extend" else "m")
        return method(*given)

    setattr(holder, name, noted)
