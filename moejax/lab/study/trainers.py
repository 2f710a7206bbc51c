"""What trains: this process, or processes of their own, several at a time."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

from moejax.config.config import Config
from moejax.config.errors import InUseError, RunError
from moejax.config.files import to_dict
from moejax.config.own_code import find_router_file
from moejax.lab.study.study_clock import StudyClock
from moejax.lab.study.trials import Trial
from moejax.runtime.live_line import LiveLine
from moejax.runtime.machine import limit_threads
from moejax.runtime.stop import Stopped, StopSignals

GOES_ON = "the study stops; the same command goes on with it."
WORKER = ("-m", "moejax.commands.study_worker")
IN_USE = 75
"""The exit code of a process that finds its training in use: EX_TEMPFAIL of sysexits.h."""
OUTPUT = "output.txt"
"""In the directory of a training: what its process printed."""
TICK = 0.2
"""Seconds between two looks at the processes."""


class Trainer(Protocol):
    """What trains, one training or several at a time."""

    @property
    def running(self) -> frozenset[Path]:
        """The directories of trainings that have begun and not been waited for."""

    @property
    def has_room(self) -> bool:
        """Whether one more may begin."""

    def start(self, trial: Trial) -> None:
        """Begin a training."""

    def wait(self) -> list[tuple[Trial, bool]]:
        """The trainings that have ended since, at least one, and whether this study did them:
        another one may be at it. Raises ``UserError`` for one that did not work, and ``Stopped``.
        """

    def rest(self, seconds: float) -> None:
        """Do nothing for so long. Raises ``Stopped``."""

    def say(self, line: str) -> None:
        """Print a line."""


class Train(Protocol):
    """Trains one training in this process: ``train_one``."""

    def __call__(
        self,
        config: Config,
        label: str,
        command: str,
        compiled: Path,
        beside: Callable[[float], str] | None = None,
    ) -> None:
        """As ``train_one`` says."""


class Here:
    """Trains in this process, one after the other."""

    def __init__(self, train: Train, command: str, compiled: Path, clock: StudyClock) -> None:
        self._train, self._command = train, command
        self._compiled, self._clock = compiled, clock
        self._ended: list[tuple[Trial, bool]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def running(self) -> frozenset[Path]:
        """As ``Trainer`` says."""
        return frozenset(trial.directory for trial, _ in self._ended)

    @property
    def has_room(self) -> bool:
        """As ``Trainer`` says."""
        return not self._ended

    def start(self, trial: Trial) -> None:
        """Train to the end."""
        try:
            self._train(
                *(trial.config, trial.label, self._command, self._compiled),
                beside=self._clock.describe,
            )
        except InUseError:
            self._ended.append((trial, False))
        except Stopped as stopped:
            self.say(f"{stopped.name}: {GOES_ON}")
            raise
        else:
            self._ended.append((trial, True))

    def wait(self) -> list[tuple[Trial, bool]]:
        """As ``Trainer`` says."""
        ended, self._ended = self._ended, []
        return ended

    def rest(self, seconds: float) -> None:
        """As ``Trainer`` says."""
        time.sleep(seconds)

    def say(self, line: str) -> None:
        """As ``Trainer`` says."""
        print(line, flush=True)


class SideBySide:
    """Trains in processes of their own, so many at a time. They end with this one: a signal lets
    each finish its step and save; if this process is killed, their input ends, which they take for
    a signal.
    """

    def __init__(
        self, command: str, compiled: Path, clock: StudyClock, at_once: int, threads: int
    ) -> None:
        self._command, self._compiled, self._clock = command, compiled, clock
        self._at_once, self._threads = at_once, threads
        self._workers: dict[Path, _Worker] = {}
        self._stop = StopSignals(GOES_ON)

    def __enter__(self) -> Self:
        self._stop.__enter__()
        self._stop.waits_for = "the step in progress of each training"
        self._stop.begin()
        self._line = LiveLine(self._describe)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._line.close()
        if kind is not None and not issubclass(kind, Stopped):
            for worker in self._workers.values():
                worker.process.terminate()
            for worker in self._workers.values():
                worker.process.wait()
        for worker in self._workers.values():
            worker.end()
        self._stop.__exit__()

    @property
    def running(self) -> frozenset[Path]:
        """As ``Trainer`` says."""
        return frozenset(self._workers)

    @property
    def has_room(self) -> bool:
        """As ``Trainer`` says."""
        return len(self._workers) < self._at_once

    def start(self, trial: Trial) -> None:
        """Start a process for a training."""
        self._obey()
        environment = limit_threads(os.environ, self._threads)
        self._workers[trial.directory] = _Worker(trial, self._command, self._compiled, environment)

    def wait(self) -> list[tuple[Trial, bool]]:
        """As ``Trainer`` says."""
        while True:
            self.rest(TICK)
            ended = [w for w in self._workers.values() if w.process.poll() is not None]
            for worker in ended:
                del self._workers[worker.trial.directory]
                worker.end()
            if ended:
                return [(worker.trial, worker.judge()) for worker in ended]

    def rest(self, seconds: float) -> None:
        """As ``Trainer`` says."""
        self._obey()
        time.sleep(seconds)

    def say(self, line: str) -> None:
        """As ``Trainer`` says."""
        self._line.say(line)

    def _obey(self) -> None:
        """After a signal let all trainings save, wait for them, and raise ``Stopped``."""
        if (signum := self._stop.check()) is None:
            return
        for worker in self._workers.values():
            worker.process.terminate()
        for worker in self._workers.values():
            worker.process.wait()
        stopped = Stopped(signum)
        self.say(f"{stopped.name}: {GOES_ON}")
        raise stopped

    def _describe(self, room: int) -> str:
        """How far all are, in a line, whatever room there is."""
        clock = self._clock
        parts = [f"study: {clock.done} of {clock.count} done"]
        parts += [worker.describe() for worker in self._workers.values()]
        left = clock.describe_left(self._at_once)
        return "; ".join([*parts, left] if left else parts)


class _Worker:
    """The process of one training (``moejax/commands/study_worker.py``)."""

    def __init__(
        self, trial: Trial, command: str, compiled: Path, environment: dict[str, str]
    ) -> None:
        self.trial = trial
        trial.directory.mkdir(parents=True, exist_ok=True)
        self._output = trial.directory / OUTPUT
        self._begin = self._output.stat().st_size if self._output.exists() else 0
        path = os.pathsep.join(sys.path)
        with open(self._output, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *WORKER],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is passed on by this process, once
            )
        code = find_router_file(trial.config.model.moe.router)
        job = {
            "config": to_dict(trial.config),
            "label": trial.label,
            "command": command,
            "compiled": str(compiled),
            "code": None if code is None else str(code),
        }
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended already: its exit code says more

    def judge(self) -> bool:
        """Whether it has come to its end; False if the training is in use elsewhere. Raises
        ``RunError``, with what it said last, if it has failed.
        """
        code = self.process.returncode
        if code in (0, IN_USE):
            return code == 0
        said = self._output.read_bytes()[self._begin :].decode("utf-8", "replace")
        _, _, why = said.rpartition("error: ")
        if code < 0 or not why.strip():
            name = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            why = f"its process ended by {name}; {self._output} has what it said."
        raise RunError(f"{self.trial.label}: {why.strip()}")

    def end(self) -> None:
        """Make sure that it is gone."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def describe(self) -> str:
        """How far it is."""
        step = _read_last_step(self.trial.directory / "metrics.jsonl")
        return f"{self.trial.label} {step}/{self.trial.config.run.steps}"


def _read_last_step(file: Path, most: int = 1 << 14) -> int:
    """The step of the last line of metrics; 0 if there is none."""
    try:
        with open(file, "rb") as opened:
            opened.seek(-min(most, os.fstat(opened.fileno()).st_size), os.SEEK_END)
            found = re.findall(rb'"step": (\d+)', opened.read())
    except OSError:
        return 0
    return int(found[-1]) if found else 0
