"""The limits within which whatever is wrong must end, and a command that must end so."""

import signal
import time
from pathlib import Path

import pytest

from moejax.commands import main
from moejax.config.errors import UserError

SECONDS, MEGABYTES = 10, 500


def read_peak() -> float:
    """The largest memory of this process, in megabytes, since it was last started anew."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1e3


def refuse(*words) -> str:
    """Run a command that must end with a message, which is returned."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = read_peak(), time.process_time()
    signal.alarm(120)  # what hangs must not hang the tests
    try:
        with pytest.raises((UserError, SystemExit)) as caught:
            main.run([str(word) for word in words])
    finally:
        signal.alarm(0)
    assert getattr(caught.value, "exit_code", None) == 2 or caught.value.args == (2,)
    assert time.process_time() - start < SECONDS
    assert read_peak() - before < MEGABYTES
    message = str(caught.value)
    assert len(message) < 2000
    return message
