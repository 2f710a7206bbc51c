"""What takes the lines of metrics beside their file: Weights & Biases, and writers of one's own."""

import json
import os
import struct
import sys
import time
from unittest.mock import MagicMock

import numpy as np
import pytest

from moejax.config import Config, ConfigError, RunConfig
from moejax.runs.run_directory import RunDirectory
from moejax.train.journal import Journal
from moejax.train.metrics_writer import check_writers, open_writers

LINE = {"split": "train", "step": 3, "loss": 0.5, "z_loss": np.nan, "alarms": []}
LOAD_LE = np.array([[1.0, 3.0], [2.0, 2.0]])


class Keeping:
    """A writer that keeps what it is given, and fails at step ``fails``."""

    def __init__(self, fails=None, error=None):
        self.lines, self.closed, self.fails = [], 0, fails
        self.error = error or OSError("no route to host")

    def write(self, line, load_LE=None):
        if line["step"] == self.fails:
            raise self.error
        self.lines.append(line["step"])

    def close(self):
        self.closed += 1


@pytest.mark.parametrize(
    ("settings", "package", "extra"),
    [({"tensorboard": True}, "tensorboardX", "tensorboard"), ({"wandb": "moe"}, "wandb", "wandb")],
)
def test_without_its_package_it_is_said_how_to_get_it(settings, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    check_writers(RunConfig())
    with pytest.raises(ConfigError, match=rf"{package}: pip install -e '.\[{extra}\]'"):
        check_writers(RunConfig(**settings))


def test_a_writer_that_fails_is_left_out_and_training_goes_on(tmp_path):
    """Its neighbours, and the file, get every line."""
    failing, whole = Keeping(fails=6), Keeping()
    with RunDirectory(tmp_path) as run:
        journal = Journal(run, [failing, whole])
        journal.write(LINE, LOAD_LE)
        with pytest.warns(UserWarning, match="Keeping: OSError: no route to host. Training goes"):
            journal.write(LINE | {"step": 6})
        journal.write(LINE | {"step": 9})
        journal.close()
    assert failing.lines == [3] and whole.lines == [3, 6, 9]
    assert (failing.closed, whole.closed) == (0, 1)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6, 9]


def test_a_writer_can_end_training_with_a_message(tmp_path):
    with RunDirectory(tmp_path) as run, pytest.raises(ConfigError, match="enough"):
        Journal(run, [Keeping(3, ConfigError("enough"))]).write(LINE)


def test_of_several_processes_one_writes(tmp_path):
    writer, run = Keeping(), RunDirectory(tmp_path, owner=False)
    journal = Journal(run, [writer])
    journal.write(LINE)
    journal.close()
    assert (writer.lines, writer.closed) == ([], 0)
    config = Config(run=RunConfig(tensorboard=True, wandb="moe"))
    assert open_writers(config, run) == []
    assert not any(tmp_path.iterdir())


@pytest.fixture
def wandb(monkeypatch):
    """The package, as if on a machine where nothing is set."""
    module = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    return module


class StandIn:
    """In the place of ``wandb.init``: keeps what it is called with, and raises ``errors`` first."""

    def __init__(self, *errors):
        self.calls, self.errors = [], list(errors)

    def __call__(self, **settings):
        self.calls.append(settings)
        if self.errors:
            raise self.errors.pop(0)
        return MagicMock()


def records(file):
    """The records of an offline run: a head of 7 bytes, then in blocks of 32 KiB, before each
    record, its checksum, size and kind (1: whole, 4: its last part).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, body = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + size > len(data):
            return
        if kind:
            body += data[at + 7 : at + 7 + size]
        if kind in (1, 4):
            yield Record.FromString(body)
            body = b""
        at += 7 + size
        left = -at % 2**15
        at += left if left < 7 else 0


def read_items(items):
    """Keys and values of a record."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_weights_and_biases_has_the_numbers_of_the_lines(wandb, monkeypatch, tmp_path):
    """Offline, as a reader of its file finds them: numbers, loads, settings, where the report is;
    the next start goes on in the same run.
    """
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = Config(run=RunConfig(wandb="moe", seed=7))
    with RunDirectory(tmp_path) as run:
        (writer,) = open_writers(config, run)
        writer.write(LINE, LOAD_LE)
        writer.close()
        monkeypatch.setattr(wandb, "init", again := StandIn())
        open_writers(config, run)
    (file,) = tmp_path.glob("wandb/offline-*/*.wandb")
    found = {}
    for _ in range(100):  # a process of its own writes the file
        found = {record.WhichOneof("record_type"): record for record in records(file)}
        if {"run", "history"} <= set(found):
            break
        time.sleep(0.1)
    begun, line = found["run"].run, read_items(found["history"].history.item)
    (call,) = again.calls
    assert begun.project == call["project"] == "moe"
    assert begun.run_id == call["id"] and call["resume"] == "allow"
    settings = read_items(begun.config.update)
    assert settings["run"]["seed"] == 7
    assert settings["report"] == str(tmp_path / "report.html")
    assert (line["step"], line["train/loss"]) == (3, 0.5) and "train/z_loss" not in line
    assert sum(line["train/load/routed_layer_0.values"]) == 2  # experts


def test_a_server_that_does_not_answer_stops_nothing(wandb, monkeypatch, tmp_path):
    init = StandIn(wandb.errors.CommError("no such host"))
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: init.calls.append("teardown"))
    with RunDirectory(tmp_path) as run, pytest.warns(UserWarning, match="no such host.*goes on"):
        open_writers(Config(run=RunConfig(wandb="moe")), run)
    first, between, second = init.calls
    assert between == "teardown"  # or the id would still be taken
    assert (first["mode"], second["mode"]) == (None, "offline")
    assert first["id"] == second["id"]


@pytest.mark.parametrize("error", ["AuthenticationError", "UsageError"])
def test_who_is_not_logged_in_is_told_what_to_do(wandb, monkeypatch, tmp_path, error):
    monkeypatch.setattr(wandb, "init", StandIn(getattr(wandb.errors, error)("no key.")))
    config = Config(run=RunConfig(wandb="moe"))
    with (
        RunDirectory(tmp_path) as run,
        pytest.raises(ConfigError, match="moe: no key. If nobody"),
    ):
        open_writers(config, run)


def test_a_project_needs_a_name():
    with pytest.raises(ConfigError, match="--run.wandb needs the name of a project"):
        RunConfig(wandb="")
