"""Eight virtual CPU devices for every test, and small models to run on them."""

import gc
import os
from importlib.metadata import version
from types import SimpleNamespace

# LLVM without optimisation compiles in half the time, and XLA's older way to emit fusions halves
# that again; with jax 0.11 the older way crashes. A program in one piece, for one core as there are
# as many workers as cores, takes a tenth less.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * version("jax").startswith("0.10."),
)

# No folder of compiled programs (JAX_COMPILATION_CACHE_DIR) for all tests: on CPUs, jax 0.10.2 may
# wait for ever in the collective operations of a program that it has read from there.

import jax
import numpy as np
import pytest

from moejax.config import Config, DataConfig, ModelConfig, MoEConfig, OptimConfig, RunConfig

jax.config.update("jax_num_cpu_devices", 8)

# Tracing makes many objects and hardly any garbage: looking for it more seldom saves a tenth.
gc.freeze()
gc.set_threshold(50_000, 20, 20)


def pytest_addoption(parser):
    """How long tests/test_campaign.py goes on, and with which random numbers."""
    parser.addoption("--campaign-runs", type=int, default=1, help="runs to kill; others follow")
    parser.addoption("--campaign-seed", type=int, default=0, help="of moments and damage")


def pytest_report_header(config):
    """The seed, so that a failure can be repeated."""
    return f"campaign: --campaign-seed {config.getoption('--campaign-seed')}"


@pytest.fixture
def refused():
    """Run a command that must end with a message, which is returned, within limits."""
    from hostile import refuse  # late: it imports the package

    return refuse


@pytest.fixture
def little_effort(monkeypatch):
    """Compilers for accelerators take a small part of their time, here and in processes begun from
    here, and programs may be slower: for what is asked of a program beside its speed. The effort to
    make it fit stays.
    """
    effort = "jax_exec_time_optimization_effort"
    usual = getattr(jax.config, effort)
    monkeypatch.setenv(effort.upper(), "-1")
    jax.config.update(effort, -1.0)
    yield
    jax.config.update(effort, usual)


@pytest.fixture
def run_command(capsys):
    """Run `moejax WORDS`, or with ``act`` something else, in this process: the exit code and what
    is said, where a process would write it.
    """
    from moejax.commands import main  # late: it imports the package
    from moejax.config.errors import UserError

    def run(*words: object, act=main.run) -> SimpleNamespace:
        capsys.readouterr()
        code, error = 0, ""
        try:
            act([str(word) for word in words])
        except UserError as refused:
            code, error = refused.exit_code, f"error: {refused}\n"
        except SystemExit as ended:  # of the parser of flags
            code = ended.code
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err + error)

    return run


@pytest.fixture
def tiny() -> Config:
    """Two layers, four experts, sequences of 16: a model that trains in a second."""
    return Config(
        model=ModelConfig(
            num_layers=2,
            width=16,
            num_heads=2,
            unroll=False,  # compiles in half the time
            moe=MoEConfig(num_experts=4, top_k=2, hidden_size=8, group_size=8),
        ),
        data=DataConfig(sequence_length=16, batch_size=8, eval_batch_size=8, shuffle_window=64),
        optim=OptimConfig(learning_rate=3e-3),
        run=RunConfig(steps=12, log_every=3, eval_every=6, checkpoint_every=4, sample_tokens=8),
    )


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    """Eight packed sequences of 16 bytes: two documents in each, padding at the end of some."""
    rng = np.random.default_rng(0)
    text = rng.integers(32, 127, (8, 17), dtype=np.int32)
    segments = np.where(np.arange(16) < 9, 1, 2)[None].repeat(8, 0).astype(np.int32)
    segments[::2, 13:] = 0
    positions = np.where(np.arange(16) < 9, np.arange(16), np.arange(16) - 9)
    real = segments > 0
    return {
        "inputs": np.where(real, text[:, :-1], 0),
        "targets": np.where(real, text[:, 1:], 0),
        "segments": segments,
        "positions": positions[None].repeat(8, 0).astype(np.int32) * real,
        "bytes": real.astype(np.int32),
    }


@pytest.fixture
def no_network(monkeypatch):
    """Every connection is refused, whether the machine has a network or not."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
