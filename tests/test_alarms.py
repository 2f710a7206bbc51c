"""Alarms: what fires them, what does not, and that they say which setting helps."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moejax.config import BalanceConfig, Config, ModelConfig, MoEConfig
from moejax.runs.alarms import PATIENCE, SILENCE, Recent, effective_experts, find_alarms, find_dead
from moejax.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]
LAYERS = (1, 3)
EVEN = np.full((2, 4), 1000)


def config(**moe: object) -> Config:
    moe = {"num_experts": 4, "top_k": 2, "hidden_size": 8, "group_size": 8} | moe
    model = ModelConfig(num_layers=4, width=16, num_heads=2, moe=MoEConfig(**moe))
    return Config(model=model)


def line(**values: float) -> dict:
    usual = {"loss": 2.0, "dropped_fraction": 0.05, "z_loss": 3.0}
    return usual | {"skipped_updates": 0, "bad_logits": 0} | values


def told(lines: list[dict], loads: list[np.ndarray] = (EVEN,) * PATIENCE, **moe) -> dict[str, str]:
    """Kind and words of the alarms at the last of the lines."""
    found = find_alarms(Recent(lines, list(loads), LAYERS), config(**moe))
    return {alarm["kind"]: alarm["words"] for alarm in found}


def test_effective_experts_by_hand():
    load_LE = np.array([[5, 5, 5, 5], [9, 0, 0, 0], [6, 6, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(effective_experts(load_LE), [1, 1 / 4, 2 / 4, 1])


def test_an_expert_is_dead_only_where_there_were_choices_enough_to_tell():
    np.testing.assert_array_equal(
        find_dead(np.array([[1000, 1000, 5, 0]])), [[False, False, True, True]]
    )
    assert not find_dead(np.array([[90, 90, 0, 0]])).any()


def test_a_healthy_run_is_told_nothing():
    falling = [line(loss=2 + 3 * math.exp(-i / 3) + 0.05 * (-1) ** i) for i in range(40)]
    uneven = np.array([[1300, 900, 900, 900], [1000, 700, 1000, 1300]])
    for n in range(1, 41):
        assert told(falling[:n], [uneven] * min(n, PATIENCE)) == {}


def test_dead_experts_are_named_after_a_while():
    starved = np.array([[1000, 1000, 1000, 1000], [1300, 1, 1300, 1300]])
    lines = [line()] * 5
    assert told(lines, [EVEN, starved, starved]) == {}
    words = told(lines, [starved] * PATIENCE)["dead experts"]
    assert words.startswith("1 expert is dead") and "layer 3: 1" in words
    assert "now 0.01" in words and "--model.moe.balance.loss-weight" in words
    # One in the first of the three intervals, another one in the others: each may yet recover.
    other = np.roll(starved, 1, axis=1)
    assert "dead experts" not in told(lines, [other, starved, starved])


def test_a_collapse_is_told_with_what_would_balance_it():
    bad = np.array([[1000, 1000, 1000, 1000], [3800, 100, 50, 50]])
    words = told([line()] * 5, [bad] * PATIENCE, balance=BalanceConfig(loss_weight=0.0))["collapse"]
    assert "layer 3" in words and "Nothing balances it" in words and "of 4 experts" in words
    by_bias = BalanceConfig(loss_weight=0.0, bias_update="sign", bias_rate=0.002)
    assert (
        "bias-rate (now 0.002)" in told([line()] * 5, [bad] * PATIENCE, balance=by_bias)["collapse"]
    )
    assert "hash does not learn" in told([line()] * 5, [bad] * PATIENCE, router="hash")["collapse"]


def test_drops_that_go_away_are_not_told():
    """Every router begins unevenly: these fell from a third to a fifth of the choices."""
    lines = [line(dropped_fraction=share) for share in (0.34, 0.27, 0.21)]
    assert "drops" not in told(lines)
    assert "drops" in told([line(dropped_fraction=share) for share in (0.26, 0.25, 0.21)])


def test_drops_that_last_are_told_with_a_larger_capacity():
    lines = [line(dropped_fraction=0.5)] * PATIENCE
    words = told(lines, capacity_factor=0.5)["drops"]
    assert words.startswith("50% of all choices") and "--model.moe.capacity-factor 1.25" in words
    assert told(lines[1:]) == {} and told([*lines[1:], line()]) == {}


def test_logits_that_grow():
    assert "router logits" not in told([line(z_loss=11.0**2)])
    words = told([line(z_loss=400.0)])["router logits"]
    assert "about 20" in words and "1.4 where none" in words and "z-loss-weight 0.001" in words


def test_a_spike_is_measured_against_how_much_the_loss_moves():
    calm = [line(loss=2.0 + 0.01 * (-1) ** i) for i in range(20)]
    assert told([*calm, line(loss=2.25)]) == {}
    words = told([*calm, line(loss=2.4)])["loss spike"]
    assert "jumped to 2.4" in words and "1.99 at best" in words and "--optim.learning-rate" in words
    wild = [line(loss=2.0 + 0.2 * (-1) ** i) for i in range(20)]
    assert told([*wild, line(loss=2.6)]) == {}
    assert told([line(loss=math.nan), line(loss=2.0)]) == {}
    assert told([line(loss=2.0), line(loss=None)]) == {}  # as read back from a file


def test_what_is_not_finite_is_told_once_for_each_interval_that_has_it():
    lines = [line(skipped_updates=2), line(skipped_updates=5, bad_logits=7)]
    words = told(lines)["not finite"]
    assert "3 updates were skipped and 7 tokens" in words
    assert told([*lines, line(skipped_updates=5)]) == {}


def test_an_alarm_is_silent_for_a_while_after_it_was_told():
    bad = line(z_loss=1e4)
    alarm = {"kind": "router logits", "words": ""}
    lines = [bad | {"alarms": [alarm]}, *[bad] * SILENCE]
    assert told(lines) == {}
    assert set(told([*lines, bad])) == {"router logits"}


@pytest.mark.parametrize("loads", [[], [EVEN]])
def test_a_dense_model_and_a_run_that_has_just_begun_are_silent(loads):
    dense = dataclasses.replace(config(), model=ModelConfig(num_layers=1, width=16, num_heads=2))
    only = {"loss": 2.0, "skipped_updates": 0}
    assert find_alarms(Recent([only], loads, LAYERS), dense) == []


# Runs made to fail.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "kinds"),
    [
        (["--model.moe.balance.loss-weight", "0"], {"collapse", "drops"}),
        (["--model.moe.capacity-factor", "0.5"], {"drops"}),
        (
            ["--optim.learning-rate", "2", "--optim.muon-learning-rate", "3"]
            + ["--optim.router-learning-rate", "0.3"],
            {"router logits"},
        ),
    ],
)
def test_alarms_fire_on_runs_made_to_fail(tmp_path, flags, kinds):
    """The quickstart without balance (whose routers are biased from the start), with too few slots,
    and with 100 times the learning rate. The quickstart as it is, is silent: CI looks at it.
    """
    command = [sys.executable, "train.py", "--config", "configs/quickstart.py", *flags]
    command += ["--run.steps", "24", "--run.log-every", "6", "--run.eval-batches", "1"]
    command += ["--data.shuffle-window", "4096"]
    command += ["--run.sample-tokens", "0", "--run.directory", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
    )
    with RunDirectory(tmp_path) as run:
        lines = run.metrics("train")
    told = [alarm for line in lines for alarm in line.get("alarms", ())]
    assert kinds <= {alarm["kind"] for alarm in told}
    said = [line for line in done.stdout.splitlines() if line.startswith("alarm    ")]
    assert said == [f"alarm    {alarm['words']}" for alarm in told]
    assert f"Alarm ({min(kinds)})" in (tmp_path / "report.html").read_text()
