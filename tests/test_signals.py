"""SIGTERM and Ctrl-C: heard at once, answered in one line, and the end that was asked for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run import command, config, with_run

from moejax.config.errors import ConfigError
from moejax.config.files import load_config_file
from moejax.runtime.stop import Stopped, StopSignals

ROOT = Path(__file__).parents[1]
__all__ = ["config"]  # a fixture

STUCK = """
import ctypes, sys
from moejax.runtime.stop import StopSignals, end_at_signals, last_act
def be_stuck():  # as in compiled code: Python's handlers are not called
    lock, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    libc.pthread_mutex_lock(lock)
    print("stuck", flush=True)
    libc.pthread_mutex_lock(lock)
with end_at_signals(), last_act(lambda signum: print("last", signum, flush=True)):
    BODY
"""


def start(words: list[str], **options) -> subprocess.Popen:
    """A command with its own signals, though those of a test in the background are ignored."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(with_signals("SIG_DFL", words), env=environment, **pipes | options)


def with_signals(action: str, words: list[str]) -> list[str]:
    """A command that begins with this action for SIGINT. It is set by a process that becomes the
    command: a fork of this one, in which JAX runs, would be warned of.
    """
    become = f"import os, signal, sys; signal.signal(signal.SIGINT, signal.{action});"
    become += " os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", become, *words]


def send(process: subprocess.Popen, number: int) -> None:
    """Send a signal once the command listens: Python itself does not catch SIGTERM."""
    bit = 1 << (signal.SIGTERM - 1)
    for _ in range(1200):
        assert process.poll() is None, process.communicate()
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(status.split("SigCgt:")[1].split()[0], 16) & bit:
            return process.send_signal(number)
        time.sleep(0.05)
    raise AssertionError("it does not listen")


def be_stuck(body: str) -> subprocess.Popen:
    process = start([sys.executable, "-c", STUCK.replace("BODY", body)])
    assert process.stdout is not None and process.stdout.readline() == "stuck\n"
    time.sleep(0.5)  # until it is
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stuck_ends_at_the_first_signal(number):
    process = be_stuck("be_stuck()")
    send(process, number)
    assert process.stderr is not None
    assert process.stderr.readline() == f"{number.name}: stopped.\n"
    said, errors = process.communicate(timeout=30)
    assert (process.returncode, said, errors) == (128 + number, f"last {number:d}\n", "")


def test_a_run_that_is_stuck_says_what_it_waits_for_and_ends_at_the_second():
    process = be_stuck(
        "stop = StopSignals().__enter__(); stop.begin(); stop.waits_for = 'the evaluation';"
        " be_stuck()"
    )
    send(process, signal.SIGINT)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("SIGINT: heard. The run stops after the evaluation, and is saved;")
    time.sleep(0.2)
    assert process.poll() is None
    send(process, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert errors == "SIGTERM: ends at once; the same command resumes from the last checkpoint.\n"


def test_a_signal_whose_exception_python_ignores_ends_the_command_too():
    """As in a callback of the garbage collector: no traceback, and no run that goes on."""
    body = """
import os, signal, time
from moejax.runtime.stop import end_at_signals
from moejax.commands.command_line import errors_as_messages
class Ignores:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
with end_at_signals(), errors_as_messages():
    Ignores()
    for _ in range(600):
        time.sleep(0.1)
"""
    process = start([sys.executable, "-c", body])
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors == "SIGTERM: stopped.\n"


@pytest.mark.parametrize(
    "words", [["-m", "moejax", "bench", "layer"], ["train.py", "--config", "configs/quickstart.py"]]
)
def test_a_command_ends_at_the_first_signal_from_its_beginning_on(words):
    process = start([sys.executable, *words], cwd=ROOT)
    send(process, signal.SIGINT)
    said, errors = process.communicate(timeout=30)
    assert (process.returncode, said, errors) == (130, "", "SIGINT: stopped.\n")


def test_what_the_shell_ignores_stays_ignored():
    body = (
        "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('goes on', flush=True);"
        " os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(60)"
    )
    words = with_signals("SIG_IGN", [sys.executable, "-c", STUCK.replace("BODY", body)])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (143, "goes on\n")
    assert done.stderr == "SIGTERM: stopped.\n"


def test_the_first_signal_is_remembered_and_the_second_raises(capfd):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals() as outer:
        with pytest.raises(Stopped) as stopped, StopSignals() as stop:
            stop.begin()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.check() == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        assert stopped.value.code == 130 and outer.check() is None
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["SIGTERM", "SIGINT"]
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_one_signal_is_not_taken_for_two(capfd):
    """Neither when the thread hears it before the handler is called, nor when an event loop has a
    pipe of its own.
    """
    with StopSignals() as stop:
        stop.begin()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        assert stop.check() == signal.SIGINT
    pipe = os.pipe()
    os.set_blocking(pipe[1], False)
    with StopSignals() as stop:
        stop.begin()
        ours = signal.set_wakeup_fd(pipe[1])
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.check() == signal.SIGTERM
        signal.set_wakeup_fd(ours)
        time.sleep(0.3)
    assert len(capfd.readouterr().err.splitlines()) == 2


def test_when_all_is_saved_there_is_nothing_to_wait_for(capfd):
    with pytest.raises(Stopped), StopSignals() as stop:
        stop.begin()
        stop.end("all is saved.")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    assert capfd.readouterr().err == "SIGINT: all is saved.\n"
    with pytest.raises(Stopped), StopSignals() as stop:
        stop.begin()
        os.kill(os.getpid(), signal.SIGINT)
        stop.end("all is saved.")


@pytest.mark.filterwarnings("ignore:.*fork")  # JAX and Python warn of threads that do not go along
def test_a_signal_to_a_forked_process_is_its_own(capfd):
    with StopSignals() as stop:
        stop.begin()
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        time.sleep(0.2)
        assert os.WTERMSIG(status) == signal.SIGTERM and stop.check() is None
    assert not capfd.readouterr().err


def test_a_signal_while_a_config_file_runs_is_no_fault_of_the_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    with pytest.raises(Stopped), StopSignals():
        load_config_file(file)
    file.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match="SystemExit"), StopSignals():
        load_config_file(file)


def checkpoints(directory: Path) -> list[int]:
    there = (directory / "checkpoints").glob("[0-9]*")
    return sorted(int(path.name) for path in there if path.name.isdigit())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_in_an_evaluation_end_a_run_quickly_and_it_goes_on(config, tmp_path, number):
    """The evaluation is being compiled then, which JAX does in a thread of its own."""
    directory = Path(config.run.directory)
    short = with_run(config, steps=8, log_every=8, eval_every=8, checkpoint_every=4)
    flags = ("--model.num-layers", "3", "--model.unroll", "True")
    process = start(command(short, tmp_path, *flags))
    while checkpoints(directory) != [4] or not (directory / "metrics.jsonl").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(0.3)
    began = time.monotonic()
    send(process, number)
    time.sleep(0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 6
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors and "heard. The run stops after the eval" in errors
    done = subprocess.run(
        command(short, tmp_path, *flags), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "from step" in done.stdout, done.stderr
    last = (directory / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == 8
