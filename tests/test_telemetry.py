"""What is kept of a logging interval: sums by position, norms of routers in the order of layers."""

import dataclasses
import functools
import math
import struct

import jax
import numpy as np
import pytest

from moejax.config import ModelConfig, MoEConfig
from moejax.models.decoder import DecoderLM
from moejax.moe.balance import stretches, sum_stretches
from moejax.runs.run_directory import RunDirectory
from moejax.train.telemetry import History, interval_arrays, router_arrays
from moejax.train.tensorboard import TensorBoard


def test_stretches_are_as_equal_as_can_be():
    np.testing.assert_array_equal(stretches(4), [0, 1, 2, 3])
    assert np.bincount(stretches(1024)).tolist() == [64] * 16
    counts = np.bincount(stretches(100))
    assert len(counts) == 16 and set(counts) == {6, 7}
    x_BN = np.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(sum_stretches(x_BN, stretches(4, most=2)), [[1, 5], [9, 13]])


@pytest.mark.parametrize("group_size", [8, 32])
def test_drops_are_counted_where_they_happen(tiny, batch, group_size):
    """One slot for each expert, in groups of half a sequence or of two; padding asks for none."""
    moe = dataclasses.replace(tiny.model.moe, group_size=group_size, capacity_factor=0.1)
    config = dataclasses.replace(tiny.model, moe=moe)
    model = DecoderLM(config, 257)
    params = jax.jit(model.init, static_argnums=2)(jax.random.key(0), batch, True)
    _, routed = jax.jit(model.apply, static_argnums=2)(params, batch, True)
    stats = jax.device_get(routed.stats)
    assert stats.asked_BW.shape == (2, 8, 16)
    real_BN = batch["segments"] > 0
    np.testing.assert_array_equal(stats.asked_BW, [2.0 * real_BN] * 2)
    np.testing.assert_array_equal(stats.seated_BW.sum(-1), stats.seated_BE.sum(-1))
    first_N = np.arange(16) % group_size == 0
    begins = stats.seated_BW[:, :: max(1, group_size // 16)][..., first_N]
    assert (begins >= 1).all()  # the first choice of the first token of every group
    assert stats.seated_BW.sum() < 0.5 * stats.asked_BW.sum()


def ones(config: ModelConfig, batch) -> dict:
    """Parameters of a model, all of them 1."""
    init = functools.partial(DecoderLM(config, 257).init, jax.random.key(0), training=True)
    return jax.tree.map(lambda like: np.ones(like.shape), jax.eval_shape(init, batch)["params"])


@pytest.mark.parametrize("every", [1, 2])
def test_norms_are_in_the_order_of_the_layers(tiny, batch, every):
    """Layers of a scan lie together: its repeats first, then the places in its unit."""
    moe = dataclasses.replace(tiny.model.moe, every=every, first_dense=1)
    config = dataclasses.replace(tiny.model, num_layers=5, moe=moe)
    params = ones(config, batch)
    routed = sum(config.routed_layers)
    assert routed == (4 if every == 1 else 2)
    block = params["layers_1"]["block_0" if every == 1 else "block_1"]["moe"]
    scale_R = np.arange(1.0, 1 + routed)
    block["w_router_DE"] = np.ones((routed, 16, 4)) * scale_R[:, None, None]
    got = router_arrays(params, None, config)
    assert set(got) == {"router_norm_LE"}
    np.testing.assert_allclose(got["router_norm_LE"], 4 * scale_R[:, None] * np.ones((1, 4)))


def test_a_router_without_weights_has_no_norm_and_a_soft_one_has_those_of_all_slots(tiny, batch):
    for router, present in (("hash", False), ("soft", True)):
        moe = dataclasses.replace(tiny.model.moe, router=router, top_k=1)
        config = dataclasses.replace(tiny.model, moe=moe)
        got = router_arrays(ones(config, batch), np.zeros((2, 4)), config)
        assert ("router_norm_LE" in got, "bias_LE" in got) == (present, True)
        if present:
            assert got["router_norm_LE"].shape == (2, 4)


def test_a_large_model_writes_no_more_than_is_said(tmp_path):
    """61 layers of 256 experts: 24 bytes for each in an interval, before they are compressed."""
    L, E = 61, 256
    model = ModelConfig(
        num_layers=L,
        width=64,
        num_heads=1,
        moe=MoEConfig(num_experts=E, top_k=8, hidden_size=8, group_size=8),
    )
    rng = np.random.default_rng(0)
    totals = {
        "asked_LE": rng.integers(0, 2**20, (L, E)),
        "seated_LE": rng.integers(0, 2**20, (L, E)),
        "asked_LW": rng.integers(0, 2**20, (L, 16)),
        "seated_LW": rng.integers(0, 2**20, (L, 16)),
        "entropy_L": rng.random(L),
        "log_z_squared_L": rng.random(L),
        "routed_L": np.full(L, 1e6),
        "targets": 10**6,
    }
    routers = {"router_norm_LE": rng.random((L, E)), "bias_LE": rng.random((L, E))}
    arrays = interval_arrays(totals, routers, model)
    assert sum(np.asarray(array).nbytes for array in arrays.values()) < 24 * L * E + 400 * L
    with RunDirectory(tmp_path) as run:
        run.write_load(7, **arrays)
        assert (tmp_path / "load" / "00000007.npz").stat().st_size < 24 * L * E + 400 * L
        (read,) = run.last_loads(3)
    np.testing.assert_array_equal(read["asked_LE"], totals["asked_LE"])


def test_history_goes_on_where_the_run_was_left(tiny, tmp_path):
    """The third interval in a row that drops too much raises the alarm, resumed or not."""
    asked_LE = np.full((2, 4), 1000)
    line = {"split": "train", "loss": 2.0, "dropped_fraction": 0.5, "skipped_updates": 0}

    def judge(history: History, step: int) -> dict:
        judged = history.judge(line | {"step": step}, asked_LE, tiny)
        run.append_metrics(judged)
        run.write_load(step, asked_LE=asked_LE)
        return judged

    with RunDirectory(tmp_path) as run:
        history = History(run)
        assert "alarms" not in judge(history, 3) and "alarms" not in judge(history, 6)
        (alarm,) = judge(History(run), 9)["alarms"]
        assert alarm["kind"] == "drops"
        assert "alarms" not in judge(History(run), 12)  # told already


def line_at(step: int, loss: float) -> dict:
    return {"split": "train", "step": step, "loss": loss, "z_loss": math.nan, "alarms": []}


def test_tensorboard_has_the_numbers_of_the_lines(tmp_path):
    """As a reader of its files finds them; what a resumed run writes again is taken back first."""
    pytest.importorskip("tensorboardX")
    load_LE = np.array([[1.0, 3.0], [2.0, 2.0]])
    board = TensorBoard(tmp_path)
    for step in (3, 6, 9):
        board.write(line_at(step, step / 10), load_LE)
    board.close()
    resumed = TensorBoard(tmp_path)
    resumed.write(line_at(9, 0.5) | {"split": "validation"})
    resumed.close()
    scalars, histograms, starts = {}, set(), []
    for file in sorted(tmp_path.glob("events*")):
        for event in events(file):
            if event.HasField("session_log"):
                starts.append(event.step)
            for value in event.summary.value:
                if value.HasField("histo"):
                    histograms.add(value.tag)
                else:
                    scalars[value.tag, event.step] = round(value.simple_value, 6)
    assert scalars == {
        ("train/loss", 3): 0.3,
        ("train/loss", 6): 0.6,
        ("train/loss", 9): 0.9,
        ("validation/loss", 9): 0.5,
    }
    assert histograms == {"train/load/routed_layer_0", "train/load/routed_layer_1"}
    assert 9 in starts


def events(file):
    """The events of a file: length, checksum, body, checksum, one after the other."""
    from tensorboardX.proto.event_pb2 import Event

    data = file.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
