"""Experts and replicas on devices: the published example, and what must hold for any load."""

import json
from functools import partial

import numpy as np
import pytest

from moejax.config.errors import ConfigError
from moejax.moe.parallel.placement import balancedness, pack, place, replicate

# The example in the README of DeepSeek's EPLB: two layers of 12 experts in 4 groups, 16 places on
# 8 devices of 2 nodes.
LOAD_LE = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)
PUBLISHED_LP = np.array(
    [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
)
EXAMPLE = {"devices": 8, "places": 16, "nodes": 2, "groups": 4}


def test_without_exchange_it_is_the_published_example():
    found = place(LOAD_LE, **EXAMPLE, exchange=False)
    np.testing.assert_array_equal(found.expert_LP, PUBLISHED_LP)


def test_replicas_go_where_the_load_is():
    np.testing.assert_array_equal(replicate(np.array([10.0, 1.0, 4.0]), 6), [0, 1, 2, 0, 0, 2])


def test_a_bin_never_has_more_than_its_share():
    """9 + 1 and 6 + 5: the lightest bin is full when 1 comes."""
    assert [b.tolist() for b in pack(np.array([9.0, 6.0, 5.0, 1.0]), 2)] == [[0, 3], [1, 2]]


def loads(kind: str, layers: int, experts: int) -> np.ndarray:
    rng = np.random.default_rng(experts)
    if kind == "random":
        return rng.random((layers, experts))
    zipf = 1 / np.arange(1, experts + 1)
    return np.stack([rng.permutation(zipf) for _ in range(layers)])


@pytest.mark.parametrize("kind", ["random", "zipf"])
@pytest.mark.parametrize(
    ("experts", "devices", "places", "nodes", "groups"),
    [(64, 8, 64, 1, 1), (64, 8, 80, 2, 8), (128, 16, 144, 1, 1), (256, 64, 320, 8, 8)]
    + [(256, 32, 288, 4, 8)],
)
def test_any_load_is_placed_at_least_as_well_as_published(
    kind, experts, devices, places, nodes, groups
):
    load_LE = loads(kind, 3, experts)
    numbers = {"devices": devices, "places": places, "nodes": nodes, "groups": groups}
    found, published = place(load_LE, **numbers), place(load_LE, **numbers, exchange=False)
    assert (found.replicas_LE >= 1).all() and found.expert_LP.shape == (3, places)
    share_LE = load_LE / found.replicas_LE
    load_LP = np.take_along_axis(share_LE, found.expert_LP, axis=1)
    np.testing.assert_allclose(load_LP.reshape(3, devices, -1).sum(-1), found.load_LQ)
    np.testing.assert_allclose(found.load_LQ.sum(-1), load_LE.sum(-1))
    assert (found.balancedness_L >= published.balancedness_L - 1e-12).all()
    # An expert's group stays on one node.
    node_LP = np.broadcast_to(np.repeat(np.arange(nodes), places // nodes), (3, places))
    group_LP = found.expert_LP // (experts // groups)
    for layer in range(3):
        pairs = set(zip(group_LP[layer].tolist(), node_LP[layer].tolist(), strict=True))
        assert len(pairs) == groups or nodes == 1


def test_without_load_all_is_balanced():
    np.testing.assert_array_equal(balancedness(np.zeros((2, 4))), [1, 1])
    assert place(np.zeros((1, 8)), devices=4, places=8).balancedness_L == 1


@pytest.mark.parametrize(
    ("load", "changes", "words"),
    [
        (LOAD_LE, {"places": 8}, "--replicas 8 is fewer than the 12 experts"),
        (LOAD_LE, {"devices": 5}, "--devices 5 does not divide --replicas 16"),
        (LOAD_LE, {"groups": 5}, "--groups 5 does not divide the number of experts, 12"),
        (LOAD_LE, {"nodes": 4, "groups": 2}, "--nodes 4 does not divide --groups 2"),
        (LOAD_LE, {"nodes": 0}, "--nodes must be greater than 0"),
        (-LOAD_LE, {}, "not negative"),
        (LOAD_LE[0], {}, r"not of shape \(12,\)"),
    ],
)
def test_what_does_not_divide_is_named(load, changes, words):
    with pytest.raises(ConfigError, match=words):
        place(load, **EXAMPLE | changes)


@pytest.fixture
def plan(run_command):
    """`moejax plan placement`."""
    return partial(run_command, "plan", "placement")


def test_the_command_prints_the_plan(tmp_path, plan):
    np.save(tmp_path / "loads.npy", LOAD_LE)
    numbers = ["--devices", "8", "--replicas", "16", "--nodes", "2", "--groups", "4"]
    result = plan("--load", str(tmp_path / "loads.npy"), *numbers, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    wanted = place(LOAD_LE, **EXAMPLE)
    np.testing.assert_array_equal(found["expert"], wanted.expert_LP)
    np.testing.assert_array_equal(found["replicas"], wanted.replicas_LE)
    np.testing.assert_allclose(found["balancedness"], wanted.balancedness_L)


def test_the_load_file_of_a_run_is_read(tmp_path, plan):
    np.savez(tmp_path / "00000050.npz", asked_LE=LOAD_LE, seated_LE=LOAD_LE)
    result = plan(
        "--load",
        str(tmp_path / "00000050.npz"),
        "--devices",
        "4",
        "--replicas",
        "12",
    )
    assert result.returncode == 0, result.stderr
    assert "layer 1: mean load over largest 0." in result.stdout
    assert "at most 1 replica of an expert" in result.stdout


@pytest.mark.parametrize("name", ["missing.npy", "text.npy"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, plan):
    (tmp_path / "text.npy").write_text("not numbers")
    result = plan("--load", str(tmp_path / name), "--devices", "8", "--replicas", "16")
    assert result.returncode == 2 and name in result.stderr and "Traceback" not in result.stderr
