"""Commands of moejax that are started, killed and signalled, and folders that are harmed.

As a program, this file is where commands start from: it imports the package once, and forks a child
for each line that it reads.
"""

import contextlib
import json
import os
import random
import re
import resource
import runpy
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
import zlib
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[1]
BOUND = 240.0
"""Seconds after which a command hangs: it takes less than ten where nothing else runs."""
WARM = """import moejax.train.training, moejax.commands.generate, moejax.commands.import_
import moejax.commands.report, moejax.commands.check, orbax.checkpoint, tyro, jax"""
NOT_SEEN = {"seconds", "processor_seconds", "tokens_per_second", "mfu", "hfu", "bandwidth"}
"""Fields of a line of metrics that are times."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    """Of the exit; less than 0 for a signal, as in ``subprocess``."""
    out: str
    err: str
    hung: bool
    seconds: float

    @property
    def fault(self) -> str | None:
        """What no command may do, whatever it was given; None if all is well."""
        if self.hung:
            return "it hangs"
        if "Traceback" in self.err or "Traceback" in self.out:
            return "a traceback"
        if self.code < 0 and self.code not in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            return f"it died of {signal.Signals(-self.code).name}"
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.code == 2 and len(errors) != 1:
            return f"{len(errors)} messages"
        return None

    @property
    def noticed(self) -> bool:
        """Whether it says that something is wrong."""
        return self.code != 0 or "warning: " in self.err

    def __str__(self) -> str:
        said = f"{self.out[-1500:]}\n{self.err[-3000:]}"
        return f"exit {self.code} after {self.seconds:.1f} s\n{said}"

    __repr__ = __str__


class Child:
    """A running command."""

    def __init__(self, launcher: "Launcher", pid: int, files: tuple[Path, Path]) -> None:
        self.pid, self._launcher, self._files = pid, launcher, files
        self._began = time.monotonic()

    def send(self, number: int) -> None:
        """Send a signal, if it still runs or has not been waited for."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def said(self) -> str:
        """What it has printed so far."""
        return self._files[0].read_text(errors="replace")

    def wait(self) -> Outcome:
        """Wait until it ends; kill it if it hangs."""
        hung = not self._launcher.wait_for_answer(f"wait {self.pid}", BOUND)
        if hung:
            self.send(signal.SIGKILL)
        code = int(self._launcher.read_answer())
        out, err = (file.read_text(errors="replace") for file in self._files)
        return Outcome(code, out, err, hung, time.monotonic() - self._began)


class Launcher:
    """Starts commands of moejax from a process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=env,
            cwd=folder,
        )
        assert self.read_answer() == "ready"

    def start(self, *words: object, most_bytes: int | None = None) -> Child:
        """Start ``moejax`` with these words; no file of it gets larger than ``most_bytes``."""
        self._count += 1
        files = tuple(self._folder / f"{self._count}.{kind}" for kind in ("out", "err"))
        order = {"words": [str(word) for word in words], "most_bytes": most_bytes}
        order |= {"files": [str(file) for file in files]}
        for file in files:
            file.touch()
        self.wait_for_answer(json.dumps(order), BOUND)
        return Child(self, int(self.read_answer()), files)

    def run(self, *words: object, **limits: int | None) -> Outcome:
        """Start a command, and wait for its end."""
        return self.start(*words, **limits).wait()

    def wait_for_answer(self, line: str, seconds: float) -> bool:
        """Whether there is an answer to a line after so many seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def read_answer(self) -> str:
        """The next line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)


def serve() -> None:
    """Fork a child for each line of standard input that is an order; wait for one that is named."""
    exec(WARM)
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        if line.startswith("wait "):
            _, status = os.waitpid(int(line.split()[1]), 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            become(json.loads(line))


def become(order: dict) -> None:
    """In a child: be the command, to the end of the process."""
    os.setsid()
    for number, file in enumerate(order["files"], start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell said `&`
    if order["most_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["most_bytes"],) * 2)
    sys.argv = ["moejax", *order["words"]]
    try:
        runpy.run_module("moejax", run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    sys.exit(0)


def read_metrics(run: Path) -> list[dict]:
    """The lines of a run without what depends on time."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in NOT_SEEN} for line in lines]


def digest(run: Path, step: int) -> dict[str, int]:
    """A checksum of every array of a checkpoint, and of what lies beside them but for times."""
    place = (run / "checkpoints" / str(step)).absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(place / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = {jax.tree_util.keystr(k): zlib.crc32(np.asarray(x).tobytes()) for k, x in leaves}
    extra = json.loads((place / "extra" / "metadata").read_text())
    known = {k: v for k, v in extra.items() if k in ("step", "tokens", "best", "place", "marks")}
    return sums | {"extra": zlib.crc32(json.dumps(known, sort_keys=True).encode())}


def read_page(outcome: Outcome, run: Path) -> str:
    """What `moejax report` printed, and the page that it wrote, without its place."""
    page = (run / "report.html").read_text()
    return (outcome.out + page).replace(str(run.parent), "PLACE")


def must(outcome: Outcome) -> Outcome:
    """An outcome that must be a success."""
    assert outcome.code == 0, outcome
    return outcome


def wait_for(child, words: str) -> None:
    """Wait until a command has printed these words."""
    end = time.monotonic() + BOUND
    while words not in child.said():
        assert time.monotonic() < end, child.said()
        time.sleep(0.01)


def list_files(folder: Path) -> list[Path]:
    """All files in a folder that have a content, sorted."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def name_kind(file: Path, folder: Path) -> str:
    """The kind of a file: its path without numbers and random names."""
    return re.sub(r"[0-9a-f]{32}|\d+", "*", file.relative_to(folder).as_posix())


def flip(file: Path, rng: random.Random) -> str:
    """Change one random bit."""
    content = bytearray(file.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(bytes(content))
    return f"bit {bit} of byte {place} flipped"


def cut(file: Path, rng: random.Random) -> str:
    """Leave the beginning alone."""
    size = rng.randrange(file.stat().st_size)
    os.truncate(file, size)
    return f"cut to {size} bytes"


def empty(file: Path, rng: random.Random) -> str:
    """Leave nothing in it."""
    os.truncate(file, 0)
    return "emptied"


def remove(file: Path, rng: random.Random) -> str:
    """Delete it."""
    file.unlink()
    return "deleted"


DAMAGE = {"flip": flip, "cut": cut, "empty": empty, "remove": remove}


def copy(folder: Path, target: Path) -> Path:
    """A fresh copy of a folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, symlinks=True)
    return target


def remove_folder(folder: Path) -> None:
    """Delete a folder."""
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def small_disk(place: Path, size: int):
    """A file system of ``size`` bytes at ``place``; gives a function that makes room, or None where
    nothing can be mounted.
    """
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        more = ["mount", "-o", "remount,size=64m", str(place)]
        yield lambda: subprocess.run(more, check=True)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


if __name__ == "__main__":
    serve()
