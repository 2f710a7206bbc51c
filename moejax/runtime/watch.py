"""The watch over the processes of a run: who has died, and how all others end.

A thread of each process sets its heartbeat in the store, and process 0 looks at all of them. A
process that is silent for ``SILENCE`` seconds has died; one that ends by an error says so. Either
becomes the *verdict*: the first one stands, and all other processes end on reading it. Meanwhile
the death of another process may show here as an error of a collective, or as an ``abort`` of JAX's
client or of Gloo: both are held back until the verdict is known.

JAX has heartbeats of its own, which end the others by an abort that names no way on
(``tests/test_jax_processes.py``); this watch is quicker than they are.
"""

import contextlib
import itertools
import threading
import time
from typing import Any

from jax.errors import JaxRuntimeError

from moejax.runtime.ending import RESUME, Ending, exit_at_once
from moejax.runtime.store import Store

BEAT = 2.0
"""Seconds between two heartbeats."""
SILENCE = 30.0
"""Seconds without a heartbeat after which a process is taken for dead."""
FAREWELL = 10.0
"""Seconds that process 0 waits for the others to have read a verdict: it takes the store along."""
VERDICT = SILENCE + 3 * BEAT
"""Seconds within which the death of a process is known everywhere."""


class Watch:
    """The thread that sets this process' heartbeat and ends the process on a verdict."""

    def __init__(self, store: Store, index: int, count: int, ending: Ending) -> None:
        self._store, self._index, self._count, self._ending = store, index, count, ending
        self._heard = {i: (-1, time.monotonic()) for i in range(count)}
        self.is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="moejax-watch")
        self._thread.start()

    def announce_end(self, why: str, code: int) -> None:
        """Tell the others that this process ends, and, in process 0, wait until they know."""
        self.is_over = True
        self._declare({"process": self._index, "why": why, "code": code, "died": False})
        if self._index == 0:
            self._wait_for_readers(besides=0)

    def handle_abort(self) -> None:
        """Something below Python gives up: wait to be told of a death, else tell of this one.

        Where it is the client of the store, this is its thread, and the store is silent for good.
        """
        if self._index != 0 and not self._store.is_reachable():
            self._ending.exit_without_process_0()
        time.sleep(VERDICT)
        last = threading.Thread(target=self.announce_end, args=("it was aborted", 1), daemon=True)
        last.start()
        last.join(2 * FAREWELL)
        self._ending.exit("this process was aborted: the reason is above.", 1)

    def release(self) -> None:
        """End the thread, in all processes alike: it must be gone before the interpreter is."""
        self.is_over = True
        if self._index == 0:
            self._declare(None)
        self._thread.join()

    def _declare(self, verdict: dict[str, Any] | None) -> None:
        """Give the verdict, unless there is one; None lets all go their way."""
        with contextlib.suppress(JaxRuntimeError):  # it exists
            self._store.put("verdict", verdict)

    def _wait_for_readers(self, besides: int) -> None:
        """In process 0: wait until all processes but ``besides`` have read the verdict."""
        until = time.monotonic() + FAREWELL
        for i in range(1, self._count):
            if i != besides:
                with contextlib.suppress(JaxRuntimeError, TimeoutError):
                    self._store.wait_for(f"read/{i}", until - time.monotonic())

    def _run(self) -> None:
        for beat in itertools.count():
            try:
                self._store.put(f"beat/{self._index}", beat, replace=True)
                if self._index == 0:
                    self._listen()
                verdict = self._store.wait_for("verdict", BEAT)
            except (TimeoutError, JaxRuntimeError) as error:
                if self.is_over:
                    return
                if not isinstance(error, TimeoutError):
                    self._ending.exit_without_process_0()
                continue
            if verdict is not None and not self.is_over:
                self._obey(verdict)
            return

    def _listen(self) -> None:
        """In process 0: note who has a new heartbeat, and declare dead who has had none."""
        now = time.monotonic()
        for name, beat in self._store.read_all("beat").items():
            if self._heard[int(name)][0] != beat:
                self._heard[int(name)] = (beat, now)
        silent = [i for i, (_, since) in self._heard.items() if now - since > SILENCE]
        if silent and not self.is_over:
            why = f"not heard of for {SILENCE:.0f} s"
            self._declare({"process": silent[0], "why": why, "code": 1, "died": True})

    def _obey(self, verdict: dict[str, Any]) -> None:
        who, why = f"process {verdict['process']} of {self._count}", verdict["why"]
        if verdict["died"]:
            why, code = f"{who} has died: {why}. All processes end. {RESUME}", 1
        else:
            why = f"{who} has ended, and so do all; its own output says more. It says: {why}"
            code = verdict["code"]
        code = self._ending.print_reason(why, code)
        # Once process 0 knows that all know, it goes, and takes the store along.
        self._store.put(f"read/{self._index}", True, replace=True)
        if self._index == 0:
            self._wait_for_readers(besides=verdict["process"])
        exit_at_once(code)
