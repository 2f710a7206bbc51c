"""What the machine's environment says of JAX: one message where it is wrong, no search in vain."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moejax.runtime import start_jax

ROOT = Path(__file__).parent.parent
TRAIN = ["train.py", "--config", "configs/quickstart.py", "--run.directory"]
BENCH = ["-m", "moejax", "bench", "layer", "--tokens", "8"]


@pytest.mark.parametrize(
    ("command", "variable", "value", "parts"),
    [
        ("train", "JAX_NUM_CPU_DEVICES", "abc", ("JAX_NUM_CPU_DEVICES=abc", "Invalid value")),
        ("bench", "JAX_NUM_CPU_DEVICES", "0", ("JAX_NUM_CPU_DEVICES=0", "from 1 to 4,096")),
        ("bench", "JAX_NUM_CPU_DEVICES", "99999", ("JAX_NUM_CPU_DEVICES=99999", "4,096")),
        ("train", "JAX_ENABLE_X64", "abc", ("JAX_ENABLE_X64=abc",)),
        ("train", "JAX_PLATFORMS", "nix", ("'nix'", "JAX_PLATFORMS=nix", "such as cpu")),
        ("bench", "JAX_PLATFORMS", "nix", ("'nix'", "JAX_PLATFORMS=nix", "such as cpu")),
        ("bench", "JAX_PLATFORMS", "cuda", ("JAX has no devices", "JAX_PLATFORMS=cuda")),
    ],
)
def test_a_wrong_environment_ends_in_one_message(command, variable, value, parts, tmp_path):
    if value == "cuda" and Path("/dev/nvidia0").exists():
        pytest.skip("this machine has what is asked for")
    words = [*TRAIN, str(tmp_path / "run")] if command == "train" else BENCH
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment | {variable: value},
        capture_output=True,
        text=True,
        timeout=300,
    )
    message = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(message) == 1, done.stderr
    assert message[0].startswith("error: ")
    for part in parts:
        assert part in message[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("there", "variables", "files", "chosen"),
    [
        ({"libtpu"}, {}, (), "cpu"),
        (set(), {}, (), None),
        ({"libtpu", "jax_plugins"}, {}, (), None),  # of a GPU, say
        ({"libtpu"}, {"JAX_PLATFORMS": "tpu"}, (), "tpu"),
        ({"libtpu"}, {"TPU_WORKER_HOSTNAMES": "a,b"}, (), None),
        ({"libtpu"}, {}, ("/dev/accel0",), None),
    ],
)
def test_a_tpu_is_looked_for_only_where_one_may_be(there, variables, files, chosen, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("JAX_", *start_jax.TPU_VARIABLES)):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(start_jax, "_is_installed", lambda name: name in there)
    monkeypatch.setattr(
        start_jax.glob, "glob", lambda p: [f for f in files if f.startswith(p.rstrip("*"))]
    )
    monkeypatch.setattr(start_jax.os, "environ", dict(os.environ))
    start_jax.look_for_no_tpu()
    assert start_jax.os.environ.get("JAX_PLATFORMS") == chosen
