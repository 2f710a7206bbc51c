"""Several processes as one run: the same losses, one set of files, and an end together."""

import dataclasses
import random
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace

import chex
import hf_models
import numpy as np
import pytest
from test_run import (  # noqa: F401
    command,
    config,
    kept_programs,
    metrics,
    quick,
    start,
    wait_for_step,
    with_run,
)

from moejax.config import Config, DistributedConfig
from moejax.runs.checksums import find_damage
from moejax.runs.run_directory import RunDirectory
from moejax.runs.stored_arrays import list_arrays, open_arrays
from moejax.runtime.batch_rows import process_rows
from moejax.runtime.processes import joins

# What Gloo writes to standard output when devices meet. Its threads write piece by piece, so a
# line may hold the pieces of several.
GLOO = re.compile(
    r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :|\d+"
)


@pytest.fixture
def small(config, tmp_path) -> Config:  # noqa: F811 (a fixture of test_run)
    """Ten steps of one layer, and validation text of 19 rows: two batches and a part of what one
    process has of the third.
    """
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=1))
    held_out = tmp_path / "held_out"
    held_out.write_bytes(held_out.read_bytes()[:300])
    return with_run(config, steps=10, sample_tokens=4)


def with_shards(config: Config, shards: int) -> Config:  # noqa: F811
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shards=shards))


def pair(config: Config, folder: Path, *flags: str, second: tuple = ()) -> list[Popen]:  # noqa: F811
    """Two processes on this machine, with four devices each; what they compile is kept. The second
    one may have flags of its own.
    """
    words = command(config, folder, *flags)
    return [
        started([*words, *meet, *own], folder)
        for meet, own in zip(meetings(), [(), second], strict=True)
    ]


def meetings() -> list[list[str]]:
    """The flags by which each of two processes finds the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = ["--distributed.coordinator-address", f"127.0.0.1:{port}"]
    meet += ["--distributed.num-processes", "2", "--distributed.process-id"]
    return [[*meet, str(index)] for index in (0, 1)]


def slurm_pair(config: Config, folder: Path) -> list[Popen]:  # noqa: F811
    """Two processes as ``srun`` would start them; JAX takes the port from the number of the job."""
    job = {"SLURM_JOB_ID": str(random.randrange(4096)), "SLURM_STEP_NODELIST": "localhost"}
    words = command(config, folder)
    return [
        started(
            words,
            folder,
            **job,
            SLURM_NTASKS="2",
            SLURM_STEP_NUM_TASKS="2",
            SLURM_PROCID=str(index),
            SLURM_LOCALID=str(index),
        )
        for index in (0, 1)
    ]


def started(words: list[str], folder: Path, **environment: str) -> Popen:
    env = {"JAX_NUM_CPU_DEVICES": "4"} | kept_programs(folder)
    return start(words, env=env | environment)


def ends(processes: list[Popen], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, output without what Gloo says, and errors of each process."""
    found = []
    for process in processes:
        said, errors = process.communicate(timeout=timeout)
        said = "".join(x for x in said.splitlines(True) if GLOO.sub("", x).strip())
        found.append((process.returncode, said, errors))
    return found


def wait_for_checkpoint(run: Path, process: Popen) -> None:
    """Until one is whole. Steps so small are quicker than saving."""
    for _ in range(1200):
        if any(saved.name.isdigit() for saved in (run / "checkpoints").glob("*")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no checkpoint")


def said_at_the_end(processes: list[Popen]) -> str:
    """What process 0 says until it has trained to the end. The other one says nothing."""
    (code, said, errors), (other_code, other_said, other_errors) = ends(processes)
    assert code == other_code == 0, errors + other_errors
    assert not errors and not other_said and not other_errors
    return said


def assert_close(got: Path | str, want: Path | str) -> None:
    for one, other in zip(metrics(got), metrics(want), strict=True):
        assert one.pop("split") == other.pop("split")
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_two_processes_train_as_one_does(small, tmp_path, shards):
    """And write the same files; of two shards also a sample, which is slow. A run of one shard then
    loses a part of its last checkpoint.
    """
    small = with_shards(with_run(small, sample_tokens=0 if shards == 1 else 4), shards)
    alone = with_run(small, directory=str(tmp_path / "alone"))
    processes = pair(small, tmp_path)
    quick(alone)
    said = said_at_the_end(processes)
    assert_close(small.run.directory, alone.run.directory)
    assert "8 x cpu" in said and said.count("Trained 10 steps") == 1
    assert metrics(small.run.directory)[-1]["text_bytes"] == 300
    files, files_of_one = (
        {str(p.relative_to(d)): p for p in Path(d).rglob("*") if "checkpoints" not in p.parts}
        for d in (small.run.directory, alone.run.directory)
    )
    assert set(files) == set(files_of_one)
    if small.run.sample_tokens:
        assert files["sample.txt"].read_text() == files_of_one["sample.txt"].read_text()
    if shards == 1:
        check_that_a_checkpoint_cut_short_is_set_aside_by_both(small, tmp_path)


def check_that_a_checkpoint_cut_short_is_set_aside_by_both(trained: Config, folder: Path) -> None:  # noqa: F811
    want = metrics(trained.run.directory)
    checkpoints = Path(trained.run.directory) / "checkpoints"
    for file in (checkpoints / "10").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:500])
    (code, said, errors), (other_code, _, other_errors) = ends(pair(trained, folder))
    assert code == other_code == 0, errors + other_errors
    assert "warning: checkpoint 10 cannot be read" in errors and "from step 8" in said
    assert metrics(trained.run.directory) == want


@pytest.mark.slow
def test_when_a_process_is_killed_the_other_ends_and_both_resume(small, tmp_path):
    """First process 0, later process 1. They resume in two processes; and after the second kill
    also in one.
    """
    small = with_shards(with_run(small, steps=24, eval_every=12, sample_tokens=0), 2)
    alone = with_run(small, directory=str(tmp_path / "alone"))
    in_one = with_run(small, directory=str(tmp_path / "in_one"))
    said_at_the_end(pair(alone, tmp_path))
    for victim, step in enumerate((6, 15)):
        processes = pair(small, tmp_path)
        wait_for_step(Path(small.run.directory), step, processes[0])
        wait_for_checkpoint(Path(small.run.directory), processes[0])
        processes[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        ended = ends(processes)
        assert time.monotonic() - killed < 60
        left = ended[1 - victim]
        assert left[0] == 1, left
        last = left[2].strip().splitlines()[-1]
        assert last.startswith(f"error: process {victim} ") and "has died" in last
        assert "resumes from the last checkpoint" in last
        assert victim == 0 or "from step" in ended[0][1]  # where process 0 lives, it says so
    shutil.copytree(small.run.directory, in_one.run.directory)
    assert "from step" in said_at_the_end(pair(small, tmp_path))
    assert metrics(small.run.directory) == metrics(alone.run.directory)
    quick(in_one)
    assert_close(in_one.run.directory, small.run.directory)


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_process_stops_both_at_the_same_step(small, tmp_path, signalled):
    """Also in an evaluation, where they are most of the time here."""
    small = with_run(small, steps=100_000, eval_every=1, log_every=1)
    processes = pair(small, tmp_path)
    wait_for_step(Path(small.run.directory), 6, processes[0])
    processes[signalled].send_signal(signal.SIGTERM)
    (code, said, errors), (other_code, other_said, other_errors) = ends(processes, 60)
    assert code == other_code == 143, errors + other_errors
    assert "before the first step" not in said and not other_said
    step = said.split("SIGTERM: saved step ")[1].split()[0]
    assert (Path(small.run.directory) / "checkpoints" / step).is_dir()


@pytest.mark.slow
def test_losses_that_are_not_finite_end_both(small, tmp_path):
    flags = ["--optim.learning-rate", "1e30", "--optim.warmup-fraction", "0"]
    found = ends(pair(small, tmp_path, *flags, "--run.max-skipped-in-a-row", "3"))
    for code, _, errors in found:
        assert code == 1 and "error: stopped: the loss" in errors and "Traceback" not in errors


@pytest.mark.parametrize("start_both", [pair, slurm_pair])
def test_what_process_0_refuses_ends_the_other_with_its_words(small, tmp_path, start_both):
    began = time.monotonic()
    with RunDirectory(Path(small.run.directory)):
        (code, _, errors), (other_code, _, other_errors) = ends(start_both(small, tmp_path))
    assert code == other_code == 2, errors + other_errors
    assert errors.startswith("error: another training is running in")
    assert other_errors.startswith("error: process 0 of 2 has ended")
    assert "another training is running in" in other_errors
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_processes_that_are_not_alike_are_told_apart(small, tmp_path):
    for code, _, errors in ends(pair(small, tmp_path, second=("--data.seed", "3"))):
        assert code == 2 and "data.seed: 0 -> 3" in errors


SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "8"}, False),  # a batch script, beside its srun
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"TPU_PROCESS_ADDRESSES": "10.0.0.1:8476,10.0.0.2:8476"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, True),
    ],
)
def test_the_environment_says_whether_there_are_several(environment, several):
    assert joins(DistributedConfig(), environment) == several
    assert not joins(DistributedConfig(initialize="never"), environment)
    assert joins(DistributedConfig(initialize="always"), environment)
    flags = {"coordinator_address": "here:1234", "num_processes": 2, "process_id": 0}
    assert joins(DistributedConfig(**flags), environment)


def fake_mesh(processes: list, names: tuple[str, ...] = ("data", "expert")) -> SimpleNamespace:
    """A mesh of devices that belong to these processes."""
    devices = np.vectorize(lambda index: SimpleNamespace(process_index=index))(processes)
    return SimpleNamespace(axis_names=names, devices=devices)


@pytest.mark.parametrize(
    ("mesh", "rows"),
    [
        (fake_mesh([[0, 0], [1, 1]]), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (fake_mesh([[0, 1], [0, 1]]), [[0, 1, 4, 5], [2, 3, 6, 7]]),
        (fake_mesh([[[0, 0]], [[1, 1]]], ("data", "expert", "model")), [range(4), range(4, 8)]),
        (fake_mesh([[[0, 1]], [[0, 1]]], ("data", "expert", "model")), [range(8), range(8)]),
        (fake_mesh([[[0, 0]], [[1, 1]]], ("model", "data", "expert")), [range(8), range(8)]),
        (fake_mesh([[[0, 0]], [[0, 1]]], ("data", "expert", "model")), [range(8), range(4, 8)]),
    ],
    ids=["side by side", "crosswise", "with copies", "copies apart", "model first", "overlapping"],
)
def test_the_rows_of_a_process_are_those_of_its_devices(mesh, rows):
    for process, own in enumerate(rows):
        assert process_rows(mesh, 8, process).tolist() == list(own)


@pytest.mark.slow
def test_two_processes_import_as_one_does(tmp_path):
    """Each reads what its devices hold: of the experts, one half."""
    source = hf_models.write(tmp_path / "source", "qwen3_moe")
    flags = ["--mesh.expert", "2"]
    words = [sys.executable, "-m", "moejax", "import", str(source)]
    together = [
        started([*words, str(tmp_path / "two"), *flags, *meet], tmp_path, JAX_NUM_CPU_DEVICES="1")
        for meet in meetings()
    ]
    alone = started([*words, str(tmp_path / "one"), *flags], tmp_path, JAX_NUM_CPU_DEVICES="2")
    (code, said, errors), (other_code, other_said, other_errors) = ends(together)
    assert code == other_code == 0, errors + other_errors
    assert "qwen3_moe" in said and not other_said
    assert ends([alone])[0][0] == 0
    assert find_damage(tmp_path / "two") is None
    names = [{p.name for p in (tmp_path / n).iterdir()} for n in ("one", "two")]
    assert names[0] == names[1]
    one, two = (
        {path: store.read().result() for path, store in open_arrays(folder, paths).items()}
        for folder in (tmp_path / "one" / "model", tmp_path / "two" / "model")
        for paths in [list_arrays(folder)]
    )
    chex.assert_trees_all_equal(one, two)
