"""What a training shows on the screen, also on a terminal that is narrow or knows no width."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time

import pytest

from moejax.config.measure import BITS_PER_BYTE
from moejax.lab.study import study_clock
from moejax.lab.study.study_clock import StudyClock
from moejax.runtime import live_line as screen
from moejax.train.progress import Progress

LINE = {
    "step": 3, "loss": 1.25, "bits_per_byte": 1.8, "tokens_per_second": 20_398.0,
    "dropped_fraction": 0.076, "max_violation": 0.27, "dead_experts": 0,
}  # fmt: skip
KEPT = "step 3/12  loss 1.2500  1.8000 bits/byte  dropped 7.6%  max violation 0.27  dead 0  20,398"


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of so many columns as standard output; returns what it was sent."""
    ends = pty.openpty()

    def make(columns: int):
        monkeypatch.delenv("COLUMNS", raising=False)
        fcntl.ioctl(ends[1], termios.TIOCSWINSZ, struct.pack("HHHH", 0, columns, 0, 0))
        opened = os.fdopen(os.dup(ends[1]), "w", buffering=1)
        monkeypatch.setattr(sys, "stdout", opened)
        monkeypatch.setattr(sys, "__stdout__", opened)
        os.set_blocking(ends[0], False)
        files.append(opened)
        return lambda: os.read(ends[0], 100_000).decode()

    files: list = []
    yield make
    monkeypatch.undo()
    for file in files:
        file.close()
    for end in ends:
        os.close(end)


def test_the_mfu_stands_beside_the_speed(capsys):
    progress = Progress(12, 0, BITS_PER_BYTE)
    progress.print_interval(LINE | {"mfu": 0.4567})
    progress.update(1.25, 20_398.0, 0.4567)
    assert "20,398 tokens/s, MFU 45.7%" in progress._latest
    progress.close()
    assert "20,398 tokens/s  MFU 45.7%  " in capsys.readouterr().out


def train(beside=None) -> None:
    """Three steps of twelve, and an evaluation."""
    progress = Progress(12, 0, BITS_PER_BYTE, beside=beside)
    progress.begin_compilation()
    progress.end_compilation()
    for _ in range(3):
        progress.update(1.25, 20_398.0)
        time.sleep(0.15)  # tqdm draws ten times a second at most
    progress.print_interval(LINE)
    progress.wait_for("evaluating at step 3")
    time.sleep(0.8)
    progress.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Seconds pass quickly."""
    monkeypatch.setattr(screen, "TICK", 0.1)


@pytest.mark.parametrize(
    ("columns", "there", "missing"),
    [
        (0, ["step 3/12", "left", "loss 1.250", "20,398 tokens/s"], []),
        (200, ["step 3/12", "left", "loss 1.250", "20,398 tokens/s"], []),
        (40, ["step 3/12", "left", "loss 1.250"], ["20,398 tokens/s"]),
        (24, ["step 3/12", "left"], ["loss 1.250", "tokens/s"]),
        (6, ["step"], ["3/12"]),
    ],
)
def test_a_terminal_shows_what_has_room_and_what_matters_most_first(
    terminal, columns, there, missing
):
    sent = terminal(columns)
    train()
    said = sent()
    lines = [line for line in re.split(r"[\r\n]+", said) if line.startswith("step")]
    # The first has no time left yet.
    live = [line for line in lines if not line.startswith("step 3/12  loss 1.2500")]
    assert all(any(words in line for line in live) for words in there), said
    assert not any(words in line for line in live[1:] for words in missing), live
    assert columns == 0 or all(len(line.rstrip()) < columns for line in live), live
    assert "first step done after" in said
    # What stays is the same as in a file.
    assert KEPT in said
    assert columns in (6, 24) or re.search(r"evaluating at step 3: \d s  step 3/12", said)


def test_elsewhere_a_line_comes_before_long(monkeypatch, capsys):
    monkeypatch.setattr(screen, "SILENCE", 0.5)
    train()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["compiling the training step ...", "first step done after 0 s"]
    assert lines[2].startswith(KEPT) and lines[2].endswith(" left")
    assert lines[3].startswith("evaluating at step 3: 0 s  step 3/12  loss 1.250  20,398 tok")


def test_one_process_of_several_is_quiet(capsys, monkeypatch):
    monkeypatch.setattr(screen, "SILENCE", 0.0)
    progress = Progress(12, 0, BITS_PER_BYTE, quiet=True)
    progress.begin_compilation()
    time.sleep(0.3)
    progress.close()
    assert capsys.readouterr().out == ""


def test_a_whole_study_counts_what_this_start_took(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(study_clock.time, "monotonic", lambda: now[0])
    clock = StudyClock(4)
    clock.skip()
    clock.begin("a")
    now[0] = 10.0
    assert clock.describe(20.0) == " (study: 1 of 4 done, 1 min 20 s left)"
    now[0] = 50.0
    clock.end("a")
    clock.begin("a")
    assert clock.describe(5.0) == " (study: 2 of 4 done, 55 s left)"
    monkeypatch.undo()
    train(beside=lambda left: " (study: 1 of 2 done)")
    assert " left (study: 1 of 2 done)\n" in capsys.readouterr().out
