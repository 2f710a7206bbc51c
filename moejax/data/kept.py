"""What is made of data once and kept on disk, in the user's own folder for such things."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.config.paths import expand_home

DONE = "about.json"
"""The file that is written last: what lies beside it is whole."""
AGAIN = "run the command again."


def find_kept(directory: str | None) -> Path:
    """The folder of what is kept: ``--data.directory``, or the user's own for such things."""
    if directory is not None:
        return Path(expand_home("--data.directory", directory))
    place = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(place)) / "moejax"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Let one process at a time make what is to lie in ``folder``; others wait for it."""
    if (folder / DONE).is_file():
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "wb") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_part(
    path: str | Path, begin: int, size: int, stamp: tuple[int, int] | None = None
) -> bytes:
    """So many bytes of a file. Raises ``ConfigError`` if they are not there, or if the file has
    another size and time than ``stamp``.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            changed = stamp is not None and find_stamp(os.fstat(file.fileno())) != stamp
            check(not changed, f"{path} has changed since it was first looked at: {AGAIN}")
            data = os.pread(file.fileno(), size, begin)
            while len(data) < size and (more := os.pread(file.fileno(), size, begin + len(data))):
                data += more[: size - len(data)]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from error
    check(len(data) == size, f"{path} has become shorter since it was first looked at: {AGAIN}")
    return data


def find_stamp(facts: os.stat_result) -> tuple[int, int]:
    """The size of a file and when it was written: other ones mean another content."""
    return facts.st_size, facts.st_mtime_ns
