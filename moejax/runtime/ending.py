"""The end of a process from any of its threads, with one message."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

RESUME = "The same command in all of them resumes from the last checkpoint."


class Ending:
    """How this process ends when others do: only the first reason counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.code: int | None = None
        """The exit code, once the reason is printed, or needs no words."""

    def catch_aborts(self, handle: Callable[[], None]) -> None:
        """Call ``handle``, which must not return, when something below Python aborts. Once there is
        an exit code, an abort only ends the process, as other threads may be stuck.
        """
        # Python's own handlers run too late: an abort does not come back to the interpreter.
        self._handler = _SIGNAL_HANDLER(
            lambda _: handle() if self.code is None else exit_at_once(self.code)
        )
        _set_c_handler(ctypes.cast(self._handler, ctypes.c_void_p))

    def leave_aborts(self) -> None:
        """Leave aborts to the system again."""
        _set_c_handler(ctypes.c_void_p(0))

    def expect(self, code: int) -> None:
        """From here on the process ends with this exit code: an abort is no news."""
        with self._lock:
            if self.code is None:
                self.code = code

    def print_reason(self, reason: str, code: int) -> int:
        """Print why the process ends, unless a reason is printed already; returns the exit code of
        the reason that is printed.
        """
        with self._lock:
            if self.code is None:
                self.code = code
                print(f"error: {reason}", file=sys.stderr, flush=True)
            return self.code

    def exit(self, reason: str, code: int) -> None:
        """Print why, and end the process."""
        exit_at_once(self.print_reason(reason, code))

    def exit_without_process_0(self) -> None:
        """End the process because process 0 does not answer."""
        self.exit(
            "process 0 has died, or cannot be reached any more: see its own output. All processes"
            f" end. {RESUME}",
            1,
        )


_SIGNAL_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def _set_c_handler(handler: ctypes.c_void_p) -> None:
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    function(signal.SIGABRT, handler)


def exit_at_once(code: int) -> None:
    """End the process without JAX's own end, which would wait for the other processes."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
