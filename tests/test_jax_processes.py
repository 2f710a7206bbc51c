"""What JAX does by itself for several processes, and where it is not enough: this is why
``moejax/runtime`` has a store, a watch and an ending of its own.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MEET = """
import os, signal, sys, time
import jax
index, port, preemption = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_enable_preemption_service", preemption)
jax.distributed.initialize(
    f"127.0.0.1:{port}", 2, index, cluster_detection_method="deactivate",
    heartbeat_timeout_seconds=10, shutdown_timeout_seconds=2,
)
jax.devices()
"""


def run(script: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a program."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", script]
    found = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    return found.returncode, found.stdout, found.stderr


def run_two(script: str, *, preemption: bool = False) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of both processes of a program, which have met by JAX."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    env.pop("XLA_FLAGS", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = [sys.executable, "-c", MEET + script]
    both = [
        subprocess.Popen([*words, str(index), str(port), str(preemption)], env=env, **pipes)
        for index in (0, 1)
    ]
    found = [process.communicate(timeout=90) for process in both]
    return [(process.returncode, *told) for process, told in zip(both, found, strict=True)]


FATAL = "Terminating process because the JAX distributed service detected fatal errors"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_process_aborts_the_others_with_a_stack_trace(victim):
    """Hence the watch, which is quicker than JAX's heartbeat, and the handler of aborts."""
    found = run_two(f"""
if index == {victim}:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
""")
    code, _, errors = found[1 - victim]
    assert code == -signal.SIGABRT and FATAL in errors and "stack trace" in errors


@pytest.mark.slow
def test_an_error_in_one_process_aborts_both_and_the_other_is_not_told_of_it():
    """Hence the verdict, and the exit at once. By default JAX waits for 300 s, here for 2 s."""
    (code, _, errors), (other_code, _, other_errors) = run_two("""
if index == 1:
    raise ValueError("the file is gone")
time.sleep(30)
""")
    assert code == other_code == -signal.SIGABRT
    assert "the file is gone" in other_errors and "the file is gone" not in errors


def test_a_collective_of_values_that_differ_in_length_aborts():
    """Hence the store, which takes whatever a process says."""
    found = run_two("""
import numpy as np
from jax.experimental import multihost_utils
text = "a reason" if index == 0 else "a longer reason"
multihost_utils.process_allgather(np.frombuffer(text.encode(), np.uint8))
""")
    assert -signal.SIGABRT in [code for code, _, _ in found]
    assert any("doesn't match expected size" in errors for _, _, errors in found)


@pytest.mark.slow
def test_the_preemption_service_takes_sigterm_for_itself_until_there_are_steps():
    """Hence ``stop.py``: a run stops before its first step, and at Ctrl-C, too."""
    found = run_two(
        """
os.kill(os.getpid(), signal.SIGTERM) if index == 1 else None
time.sleep(3)
print("has not stopped")
""",
        preemption=True,
    )
    for code, told, _ in found:
        assert code == 0 and "has not stopped" in told


@pytest.mark.slow
def test_live_devices_waits_for_every_process_that_lives():
    """Hence heartbeats in the store: a process that ends by an error comes to no barrier. The
    recoverability that ``live_devices`` needs also warns in every run.
    """
    (code, told, errors), _ = run_two("""
import threading
from jax.experimental.multihost_utils import live_devices
def ask():
    with live_devices(jax.devices()) as devices:
        print("living:", len(devices))
if index == 0:
    threading.Thread(target=ask, daemon=True).start()
time.sleep(5)
os._exit(0)
""")
    assert code == 0 and "living" not in told


ABORT = """
import ctypes, sys, threading, time
threading.Thread(target=ctypes.CDLL(None).abort).start()
time.sleep(10)
"""


def test_a_handler_of_python_is_not_called_before_an_abort_has_ended_the_process():
    code, told, _ = run(f"""
import signal
signal.signal(signal.SIGABRT, lambda *_: print("caught", flush=True))
{ABORT}""")
    assert code == -signal.SIGABRT and "caught" not in told


def test_an_abort_ends_the_process_with_the_reason_and_its_code():
    code, _, errors = run(f"""
from moejax.runtime.ending import Ending
ending = Ending()
ending.catch_aborts(lambda: ending.exit("process 1 has died", 3))
{ABORT}""")
    assert code == 3 and errors.strip() == "error: process 1 has died"


@pytest.mark.slow
def test_all_that_end_together_have_their_code_though_process_0_takes_the_service_along():
    """Also one that is slow at it: JAX aborts it as soon as process 0 is gone."""
    found = run_two("""
from moejax.config import DistributedConfig
from moejax.runtime.ending import exit_at_once
from moejax.runtime.processes import Processes
with Processes(DistributedConfig()) as processes:
    if index == 1:
        processes._watch.release = lambda: time.sleep(20)
    processes.leave(ends_with=143)
    exit_at_once(143)
""")
    assert [code for code, *_ in found] == [143, 143], found
    assert FATAL in found[1][2] and "error: " not in found[1][2]
