"""Ending politely: SIGTERM and Ctrl-C let the step in progress finish and be saved.

Python calls its handlers of signals between two of its own instructions, and none is carried out
while compiled code is awaited. So a thread listens to the pipe into which Python writes each signal
as it comes, and answers at once. It also ends the process if the main thread does not.

The process must end without Python's own end: JAX compiles in threads of its own, which would go on
with devices that are gone (a segmentation fault, with jax 0.10.2).
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Self

from moejax.runtime.ending import exit_at_once

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 2.0
"""Seconds that a command has to end by itself, once it is told to end at once."""
LATE = 0.05
"""Seconds within which the pipe may repeat what the handler was called for already."""


class Stopped(SystemExit):
    """Raised to end the process with the exit code 128 + signal, such as 143 for SIGTERM."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.name = signal.Signals(signum).name


class StopSignals:
    """While in use, remembers the first SIGTERM or SIGINT; before ``begin`` and at the second one
    it raises ``Stopped`` at once. Either way a line on standard error says so without delay.

    Those in use at the same time lie inside each other; a signal is the innermost one's.
    """

    def __init__(self, words: str = "stopped.") -> None:
        """``words``: the line where there is nothing to wait for."""
        self.words = words
        self.waits_for = "this step"
        """What must be done before the run can be saved, for the line."""
        self.signum: int | None = None
        self.begun = False

    def __enter__(self) -> Self:
        _ear.add(self)  # before the handler, which asks it
        self._before = {number: signal.signal(number, _handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        _ear.remove(self)

    def begin(self) -> None:
        """From here on there is something to save: wait for ``check``."""
        self.begun = True

    def end(self, words: str) -> None:
        """From here on all is saved: a signal ends at once, with these words, and so does one that
        has come before.
        """
        self.begun, self.words = False, words
        if self.signum is not None:
            raise Stopped(self.signum)

    def check(self) -> int | None:
        """The signal that asked to stop, if any."""
        return self.signum

    def hear(self, signum: int) -> tuple[str, bool]:
        """Take a signal; returns the line about it, and whether it ends the process at once."""
        name = signal.Signals(signum).name
        if not self.begun:
            return f"{name}: {self.words}", True
        if self.signum is not None:
            return f"{name}: ends at once; the same command resumes from the last checkpoint.", True
        self.signum = signum
        return (
            f"{name}: heard. The run stops after {self.waits_for}, and is saved;"
            f" a second signal ends it at once, without saving.",
            False,
        )


@contextlib.contextmanager
def end_at_signals() -> Iterator[None]:
    """Around a whole command: SIGTERM and Ctrl-C end the process, with one line and no traceback,
    also where the main thread is stuck. What the shell that started it ignores stays ignored.
    """
    ignored = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
    _ear.ends_process = True
    with StopSignals():
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        sys.unraisablehook = _without_stops
        try:
            yield
        except Stopped as stopped:
            exit_at_once(128 + stopped.signum)
        finally:
            if _ear.over is not None:  # raised, and perhaps made into another error
                exit_at_once(128 + _ear.over)
            _ear.ends_process = False


@contextlib.contextmanager
def last_act(act: Callable[[int], object]) -> Iterator[None]:
    """In the ``with``: if a signal ends the process while the main thread is stuck, another thread
    calls ``act`` with its number first.
    """
    _ear.acts.append(act)
    try:
        yield
    finally:
        _ear.acts.remove(act)


class _Ear:
    """The thread that listens, and what it has heard."""

    def __init__(self) -> None:
        self.ends_process = False
        self.over: int | None = None
        """The signal that ends all at once."""
        self.acts: list[Callable[[int], object]] = []
        self._users: list[StopSignals] = []
        self._lock = threading.RLock()  # the handler may be called while it is called
        self._has_raised = False
        self._read_since: Counter[int] = Counter()
        """Signals taken from the pipe since the handler was last called for one."""
        self._ahead: dict[int, float] = {}
        """When the handler took a signal that was not in the pipe."""

    def add(self, user: StopSignals) -> None:
        """Listen, and let this one take what is heard."""
        if not self._users:
            self.over, self._has_raised = None, False
            self._read_since.clear()
            self._ahead.clear()
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            self._fd_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._closing = threading.Event()
            self._thread = threading.Thread(target=self._run, daemon=True, name="moejax-signals")
            self._thread.start()
        self._users.append(user)

    def remove(self, user: StopSignals) -> None:
        """The inverse of ``add``."""
        self._users.remove(user)
        if not self._users:
            signal.set_wakeup_fd(self._fd_before)
            self._closing.set()
            os.write(self._pipe[1], b"\0")
            self._thread.join()
            for end in self._pipe:
                os.close(end)

    def forget(self) -> None:
        """In a process that was forked: the pipe is the other one's."""
        if self._users:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)

    def handle(self, signum: int) -> None:
        """Python's handler, in the main thread. Raises ``Stopped`` if the end has come."""
        with self._lock:
            lines, count = self._read(), self._read_since[signum]
            if not count:  # an event loop had a pipe of its own, or the byte is on its way
                lines += self._take(signum)
                self._ahead[signum] = time.monotonic()
            # Of two that come together, the second may have its own call, or share this one.
            self._read_since[signum] = 1 if count > 1 else 0
            raises = self.over is not None and not (self.ends_process and self._has_raised)
            self._has_raised = self._has_raised or raises
        _write(lines)
        if raises and self.over is not None:
            if self.ends_process and not self.acts and len(self._users) <= 1:
                # Nothing to undo, and libraries may be half imported: some crash when that fails.
                os._exit(128 + self.over)
            with contextlib.suppress(OSError):
                os.write(self._pipe[1], b"\0")  # the thread counts the seconds from now
            raise Stopped(self.over)

    def _run(self) -> None:
        while not self._closing.is_set():
            select.select([self._pipe[0]], [], [])
            with self._lock:
                lines = self._read()
            _write(lines)
            # The main thread unwinds meanwhile, unless it is stuck.
            if self.over is not None and self.ends_process and not self._closing.wait(GRACE):
                for act in reversed(self.acts):
                    with contextlib.suppress(Exception):
                        act(self.over)
                os._exit(128 + self.over)  # no flush: another thread may hold the output's lock

    def _read(self) -> list[str]:
        """Take what is in the pipe; returns the lines to write."""
        lines: list[str] = []
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._pipe[0], 256):
                if number not in SIGNALS:
                    continue
                if time.monotonic() - self._ahead.pop(number, -LATE) < LATE:
                    continue
                self._read_since[number] += 1
                lines += self._take(number)
        return lines

    def _take(self, signum: int) -> list[str]:
        if self.over is not None or not self._users:
            return []
        line, over = self._users[-1].hear(signum)
        self.over = signum if over else None
        return [line]


def _without_stops(raised: "sys.UnraisableHookArgs") -> None:
    """A ``Stopped`` that is raised where Python ignores exceptions, as in a callback of the garbage
    collector, is lost without a traceback: the thread that listens ends the process.
    """
    if not isinstance(raised.exc_value, Stopped):
        sys.__unraisablehook__(raised)


def _write(lines: list[str]) -> None:
    """Write to standard error, unless it takes nothing now: no lock of Python's is waited for."""
    live = "\n" if sys.stdout is not None and _is_terminal(1) else ""
    for line in lines:
        with contextlib.suppress(OSError, ValueError):
            if select.select([], [2], [], 0.5)[1]:
                os.write(2, f"{live}{line}\n".encode())


def _is_terminal(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        return os.isatty(descriptor)
    return False


_ear = _Ear()
os.register_at_fork(after_in_child=_ear.forget)


def _handle(signum: int, _: FrameType | None) -> None:
    _ear.handle(signum)
