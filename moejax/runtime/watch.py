"""The watch over the processes of a run: who has died, and how all others end.

A thread of each process sets its heartbeat in the coordination service's store, and process 0
looks at all of them. Whoever is silent for ``SILENCE`` seconds has died; whoever ends by an error
says so. Either becomes the *verdict*, the first one stands, and all other processes end on reading
it. Meanwhile the death of another process may show here as an error of a collective, or as an
``abort`` of JAX's client or of Gloo: both are held back until the verdict is known.
"""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # the address of process 0 has no public name

BEAT = 2.0
"""Seconds between two heartbeats."""
SILENCE = 30.0
"""Seconds without a heartbeat after which a process is taken for dead."""
FAREWELL = 10.0
"""Seconds that process 0 waits for the others to have read a verdict: it takes the store along."""
VERDICT = SILENCE + 3 * BEAT
"""Seconds within which the death of a process is known everywhere."""

RESUME = "The same command in all of them resumes from the last checkpoint."


class Watch:
    """The thread that sets this process' heartbeat and ends the process on a verdict."""

    def __init__(self, store: Any, prefix: str, index: int, count: int, end: "End") -> None:
        self._store, self._prefix, self._index, self._count = store, prefix, index, count
        self._end = end
        self._heard = {i: ("", time.monotonic()) for i in range(count)}
        self.over = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="moejax-watch")
        self._thread.start()

    def farewell(self, why: str, code: int) -> None:
        """Tell the others that this process ends, and, in process 0, wait until they know."""
        self.over = True
        self._declare({"process": self._index, "why": why, "code": code, "died": False})
        if self._index == 0:
            self._wait_for_readers(besides=0)

    def aborted(self) -> None:
        """Something below Python gives up: wait to be told of a death, else tell of this one.

        Where it is the client of the store, this is its thread, and the store is silent for good.
        """
        if self._index != 0 and not _answers(distributed.global_state.coordinator_address):
            self._end.coordinator_is_gone()
        time.sleep(VERDICT)
        last = threading.Thread(target=self.farewell, args=("it was aborted", 1), daemon=True)
        last.start()
        last.join(2 * FAREWELL)
        self._end.because("this process was aborted: the reason is above.", 1)

    def let_go(self) -> None:
        """End the thread, in all processes alike: it must be gone before the interpreter is."""
        self.over = True
        if self._index == 0:
            self._declare(None)
        self._thread.join()

    def _declare(self, verdict: dict[str, Any] | None) -> None:
        """Give the verdict, unless there is one; None lets all go their way."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # it exists
            self._store.key_value_set(f"{self._prefix}/verdict", json.dumps(verdict))

    def _wait_for_readers(self, besides: int) -> None:
        """In process 0: wait until all processes but ``besides`` have read the verdict."""
        until = time.monotonic() + FAREWELL
        for i in range(1, self._count):
            left = int(1000 * (until - time.monotonic()))
            if i != besides and left > 0:
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    self._store.blocking_key_value_get(f"{self._prefix}/read/{i}", left)

    def _run(self) -> None:
        for beat in itertools.count():
            try:
                self._set(f"beat/{self._index}", str(beat))
                if self._index == 0:
                    self._listen()
                key = f"{self._prefix}/verdict"
                verdict = self._store.blocking_key_value_get(key, int(BEAT * 1000))
            except jax.errors.JaxRuntimeError as error:
                if self.over:
                    return
                if not timed_out(error):
                    self._end.coordinator_is_gone()
                continue
            if verdict != "null" and not self.over:
                self._obey(json.loads(verdict))
            return

    def _set(self, name: str, value: str) -> None:
        self._store.key_value_set(f"{self._prefix}/{name}", value, allow_overwrite=True)

    def _listen(self) -> None:
        """In process 0: note who has a new heartbeat, and declare dead who has had none."""
        now = time.monotonic()
        for key, beat in self._store.key_value_dir_get(f"{self._prefix}/beat/"):
            index = int(key.rsplit("/", 1)[1])
            if self._heard[index][0] != beat:
                self._heard[index] = (beat, now)
        silent = [i for i, (_, since) in self._heard.items() if now - since > SILENCE]
        if silent and not self.over:
            why = f"not heard of for {SILENCE:.0f} s"
            self._declare({"process": silent[0], "why": why, "code": 1, "died": True})

    def _obey(self, verdict: dict[str, Any]) -> None:
        who, why = f"process {verdict['process']} of {self._count}", verdict["why"]
        if verdict["died"]:
            self._end.say(f"{who} has died: {why}. All processes end. {RESUME}", 1)
        else:
            why = f"{who} has ended, and so do all; its own output says more. It says: {why}"
            self._end.say(why, verdict["code"])
        # Once process 0 knows that all know, it goes, and takes the store along.
        self._set(f"read/{self._index}", "")
        if self._index == 0:
            self._wait_for_readers(besides=verdict["process"])
        exit_with(self._end.code)


class End:
    """The end of the process from any thread, with one message."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.code: int | None = None
        """The exit code, once it has been said why."""

    def arm(self, aborted: Callable[[], None]) -> None:
        """Call ``aborted``, which must not return, when something below Python aborts; unless it
        has been said why the process ends: then it only ends, as other threads may be stuck.
        """
        self._handler = _SIGNAL_HANDLER(
            lambda _: aborted() if self.code is None else exit_with(self.code)
        )
        _c_signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

    def disarm(self) -> None:
        """Leave aborts to the system again."""
        _c_signal(signal.SIGABRT, ctypes.c_void_p(0))

    def coordinator_is_gone(self) -> None:
        """Process 0 does not answer."""
        self.because(
            "process 0 has died, or cannot be reached any more: see its own output. All processes"
            f" end. {RESUME}",
            1,
        )

    def say(self, why: str, code: int) -> None:
        """Print why the process ends; the first reason stands."""
        with self._lock:
            if self.code is None:
                self.code = code
                print(f"error: {why}", file=sys.stderr, flush=True)

    def because(self, why: str, code: int) -> None:
        """Print why, and end the process."""
        self.say(why, code)
        exit_with(self.code)


# Python's own handlers run too late for an abort, which does not come back to the interpreter.
_SIGNAL_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def _c_signal(signum: int, handler: ctypes.c_void_p) -> None:
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    function(signum, handler)


def exit_with(code: int) -> None:
    """End the process at once: JAX would wait for the others."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _answers(address: str) -> bool:
    """Whether anyone listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=FAREWELL).close()
    except OSError:
        return False
    return True


def timed_out(error: Exception) -> bool:
    """Whether the store had no answer in time."""
    return str(error).startswith("DEADLINE_EXCEEDED")
