"""Several processes as one run: how they find each other, agree, and end together.

The processes of a job meet at the coordination service of ``jax.distributed``, which lives in
process 0. Small facts that steer a run travel by its key-value store (``store.py``), ``watch.py``
sees who has died, and ``ending.py`` ends a process with one message.
"""

import itertools
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from moejax.config.distributed import DistributedConfig
from moejax.config.errors import RunError, UserError
from moejax.runtime.ending import Ending, exit_at_once
from moejax.runtime.stop import Stopped
from moejax.runtime.store import Store
from moejax.runtime.watch import VERDICT, Watch

T = TypeVar("T")

MEETING = 300
"""Seconds within which all processes must have started."""
FOREVER = 7 * 24 * 3600.0
"""Seconds to wait for processes that are alive: a data set may take a day to prepare."""

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
        self._number = next(_numbers)
        self._calls = itertools.count()

    def __enter__(self) -> "Processes":
        self._ending = Ending()
        if joins(self._config, os.environ) and not jax.distributed.is_initialized():
            _meet(self._config, self._ending)
        self.index, self.count = jax.process_index(), jax.process_count()
        self._several = self.count > 1
        if self._several:
            if not jax.distributed.is_initialized():
                raise RunError(
                    f"the devices belong to {self.count} processes that have not met: give"
                    f" --distributed.initialize always, so that they do."
                )
            self._store = Store(f"moejax/{self._number}")
            self._watch = Watch(self._store, self.index, self.count, self._ending)
            self._ending.catch_aborts(self._watch.handle_abort)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if not self._several:
            return
        if not self._watch.is_over:
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
        call = next(self._calls)
        if not self.first:
            self._store.put(f"{call}/{self.index}", value)
            return [value]
        keys = [f"{call}/{i}" for i in range(1, self.count)]
        others = [self._store.wait_for(key, wait) for key in keys]
        for key in keys:
            self._store.delete(key)
        return [value, *others]

    def agree(self, value: T, wait: float = FOREVER) -> T:
        """The JSON value of process 0, in all. Raises ``TimeoutError`` after ``wait`` seconds."""
        if not self._several:
            return value
        call = str(next(self._calls))
        if self.first:
            self._store.put(call, value)
            return value
        return self._store.wait_for(call, wait)

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

    def leave(self, ends_with: int | None = None) -> None:
        """End what binds the processes together: from here on each may end by itself.

        ``ends_with``: the exit code of processes that now end without Python's own end. Process 0
        does not wait for the others then, so they have this code even if JAX aborts them.
        """
        if not self._several:
            return
        self.barrier()
        if ends_with is not None:
            # The coordination service ends with process 0, and JAX aborts those that still use it.
            self._ending.expect(ends_with)
            self.gather(None)  # so process 0 goes on only when all others expect that
        self._watch.release()
        if ends_with is None:
            self._ending.leave_aborts()

    def tell_of_signal(self, signum: int) -> None:
        """Tell the others that this process ends by a signal, though its main thread is stuck."""
        if self._several and not self._watch.is_over:
            stopped = Stopped(signum)
            self._watch.announce_end(f"{stopped.name} stopped it", 128 + signum)

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
        self._watch.announce_end(why[:2000], code)
        if isinstance(error, UserError):
            return
        if not isinstance(error, Stopped):
            traceback.print_exception(error)
        exit_at_once(code)


def _came_from_jax(error: BaseException | None) -> bool:
    """Whether a collective, or the coordination service, is at the bottom of an error."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _meet(config: DistributedConfig, ending: Ending) -> None:
    """Meet the other processes. Raises ``RunError`` when JAX cannot tell who they are."""
    at = config.coordinator_address or "the address that JAX found"
    why = (
        f"the processes did not find each other at {at} within {MEETING} s, or one of them ended at"
        " once: see what the others say. Start all of them, with the address of process 0 and a"
        " free port there."
    )
    ending.catch_aborts(lambda: ending.exit(why, 1))
    # Its handler of SIGTERM would keep ours from being called.
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
        ending.leave_aborts()
