"""Several processes as one run: how they find each other, agree, and end together.

The processes of a job meet at the coordination service of ``jax.distributed``, which lives in
process 0. Small facts that steer a run travel by its key-value store, which needs no devices and
waits as long as it takes.

A thread of each process sets its heartbeat there, and process 0 looks at all of them. Whoever is
silent for ``SILENCE`` seconds has died; whoever ends by an error says so. Either becomes the
*verdict*, the first one stands, and all other processes end on reading it. Meanwhile the death of
another process may show here as an error of a collective, or as an ``abort`` of JAX's client or of
Gloo: both are held back until the verdict is known.
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
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the key-value store has no public name; Orbax does the same

from moejax.config import DistributedConfig
from moejax.errors import RunError, UserError
from moejax.train.stop import Stopped

T = TypeVar("T")

BEAT = 2.0
"""Seconds between two heartbeats."""
SILENCE = 30.0
"""Seconds without a heartbeat after which a process is taken for dead."""
FAREWELL = 10.0
"""Seconds that process 0 waits for the others to have read a verdict: it takes the store along."""
VERDICT = SILENCE + 3 * BEAT
"""Seconds within which the death of a process is known everywhere."""
MEETING = 300
"""Seconds within which all processes must have started."""
FOREVER = 7 * 24 * 3600.0
"""Seconds to wait for processes that are alive: a data set may take a day to prepare."""

RESUME = "The same command in all of them resumes from the last checkpoint."

_numbers = itertools.count()


def say(text: str) -> None:
    """Print a line, in process 0 alone."""
    if jax.process_index() == 0:
        print(text, flush=True)


def joins(config: DistributedConfig, environment: Mapping[str, str]) -> bool:
    """Whether this process is one of several, by the settings or by what started it."""
    if config.initialize != "auto" or config.coordinator_address is not None:
        return config.initialize != "never"

    def several(*names: str) -> bool:
        value = next((environment[name] for name in names if environment.get(name)), "")
        return value.isdigit() and int(value) > 1

    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    in_a_step = "SLURM_STEP_NODELIST" in environment  # of srun; a batch script has none
    return (
        (in_a_step and several("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"))
        or several("OMPI_COMM_WORLD_SIZE")
        or "," in hosts
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
        or "JAX_COORDINATOR_ADDRESS" in environment
    )


class Processes:
    """The processes that train together, while ``with`` holds; most often there is one.

    All processes must call its methods alike.
    """

    def __init__(self, config: DistributedConfig) -> None:
        self._config = config
        self._prefix = f"moejax/{next(_numbers)}"
        self._calls = itertools.count()

    def __enter__(self) -> "Processes":
        self._end = _End()
        if joins(self._config, os.environ) and not jax.distributed.is_initialized():
            _initialize(self._config, self._end)
        self.index, self.count = jax.process_index(), jax.process_count()
        self._several = self.count > 1
        if self._several:
            if not jax.distributed.is_initialized():
                raise RunError(
                    f"the devices belong to {self.count} processes that have not met: give"
                    f" --distributed.initialize always, so that they do."
                )
            self._store = distributed.global_state.client
            self._watch = _Watch(self._store, self._prefix, self.index, self.count, self._end)
            self._end.arm(self._watch.aborted)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if not self._several:
            return
        if not self._watch.over:
            self.leave() if error is None else self._leave_by(error)
        elif isinstance(error, UserError):  # of all alike: process 0 must not be gone first
            jax.distributed.shutdown()

    @property
    def first(self) -> bool:
        """Whether this is process 0, which writes files and the screen."""
        return self.index == 0

    def gather(self, value: Any, wait: float = FOREVER) -> list[Any]:
        """The JSON values of all processes in process 0, and only the own elsewhere. Raises
        ``TimeoutError`` after ``wait`` seconds.
        """
        if not self._several:
            return [value]
        place = f"{self._prefix}/{next(self._calls)}"
        if not self.first:
            self._store.key_value_set(f"{place}/{self.index}", json.dumps(value))
            return [value]
        others = [self._take(f"{place}/{i}", wait) for i in range(1, self.count)]
        for i in range(1, self.count):
            self._store.key_value_delete(f"{place}/{i}")
        return [value, *others]

    def agree(self, value: T, wait: float = FOREVER) -> T:
        """The JSON value of process 0, in all. Raises ``TimeoutError`` after ``wait`` seconds."""
        if not self._several:
            return value
        place = f"{self._prefix}/{next(self._calls)}"
        if self.first:
            self._store.key_value_set(place, json.dumps(value))
            return value
        return self._take(place, wait)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.agree(self.gather(None)[0])

    def first_then_others(self, make: Callable[[], T]) -> T:
        """What ``make`` returns, which it does in process 0 before it is called elsewhere."""
        if self.first:
            made = make()
            self.agree(None)
            return made
        self.agree(None)
        return make()

    def check_same(self, what: str, values: Mapping[str, Any]) -> None:
        """Raise ``RunError`` in a process whose JSON ``values`` are not those of process 0."""
        ours = json.loads(json.dumps(dict(values)))
        theirs = self.agree(ours)
        differ = [f"  {k}: {theirs[k]!r} -> {ours[k]!r}" for k in ours if ours[k] != theirs[k]]
        if differ:
            raise RunError(
                f"process {self.index} has other {what} than process 0:\n"
                + "\n".join(differ)
                + "\nGive all processes the same command, files and software."
            )

    def largest(self, value: int) -> int:
        """The largest ``value`` that a process gives."""
        return self.agree(max(self.gather(value)))

    def leave(self) -> None:
        """End what binds the processes together: from here on each may end by itself."""
        if self._several:
            self.barrier()
            self._watch.let_go()
            self._end.disarm()

    def _take(self, key: str, wait: float) -> Any:
        until = time.monotonic() + wait
        while time.monotonic() < until:  # in short turns: signals are heard between them
            try:
                return json.loads(self._store.blocking_key_value_get(key, int(BEAT * 1000)))
            except jax.errors.JaxRuntimeError as error:
                if not _timed_out(error):
                    raise
        raise TimeoutError(f"no answer in {wait:.0f} s")

    def _leave_by(self, error: BaseException) -> None:
        """Tell the others of an error of this process alone; does not return if it means nothing
        to a user.
        """
        if _came_from_jax(error):  # perhaps the echo of a process that has died: wait to be told
            time.sleep(VERDICT)
        code = getattr(error, "exit_code", 1)
        why = str(error)
        if isinstance(error, Stopped):
            code, why = error.code, f"{error.name} stopped it"
        elif not isinstance(error, UserError):
            why = f"{type(error).__name__}: {why}"
        self._watch.farewell(why[:2000], code)
        if isinstance(error, UserError):
            return
        if not isinstance(error, Stopped):
            traceback.print_exception(error)
        _exit(code)  # JAX would wait for the others at the end of the process


class _Watch:
    """The thread that sets this process' heartbeat and ends the process on a verdict."""

    def __init__(self, store: Any, prefix: str, index: int, count: int, end: "_End") -> None:
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
                if not _timed_out(error):
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
        self._set(f"read/{self._index}", "")
        if self._index == 0:
            self._wait_for_readers(besides=verdict["process"])
        if verdict["died"]:
            self._end.because(f"{who} has died: {why}. All processes end. {RESUME}", 1)
        self._end.because(
            f"{who} has ended, and so do all; its own output says more. It says: {why}",
            verdict["code"],
        )


class _End:
    """The end of the process from any thread, with one message."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def arm(self, aborted: Callable[[], None]) -> None:
        """Call ``aborted``, which must not return, when something below Python aborts."""
        self._handler = _SIGNAL_HANDLER(lambda _: aborted())
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

    def because(self, why: str, code: int) -> None:
        """Print why, and end the process."""
        with self._lock:
            print(f"error: {why}", file=sys.stderr, flush=True)
            _exit(code)


# Python's own handlers run too late for an abort, which does not come back to the interpreter.
_SIGNAL_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def _c_signal(signum: int, handler: ctypes.c_void_p) -> None:
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    function(signum, handler)


def _exit(code: int) -> None:
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


def _timed_out(error: Exception) -> bool:
    return str(error).startswith("DEADLINE_EXCEEDED")


def _came_from_jax(error: BaseException | None) -> bool:
    """Whether a collective, or the coordination service, is at the bottom of an error."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _initialize(config: DistributedConfig, end: _End) -> None:
    """Meet the other processes. Raises ``RunError`` when JAX cannot tell who they are."""
    at = config.coordinator_address or "the address that JAX found"
    why = (
        f"the processes did not find each other at {at} within {MEETING} s, or one of them ended at"
        " once: see what the others say. Start all of them, with the address of process 0 and a"
        " free port there."
    )
    end.arm(lambda: end.because(why, 1))
    # Its handler of SIGTERM would stand beside ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            config.coordinator_address,
            config.num_processes,
            config.process_id,
            cluster_detection_method="deactivate" if config.coordinator_address else None,
            initialization_timeout=MEETING,
        )
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"the processes of this run cannot meet: {str(error).splitlines()[0]} Give"
            " --distributed.coordinator-address HOST:PORT, --distributed.num-processes and"
            " --distributed.process-id, or --distributed.initialize never to train in this process"
            " alone."
        ) from error
    if jax.process_count() == 1:
        end.disarm()
