"""The lock on a run directory: one training at a time."""

import contextlib
import fcntl
import os
from pathlib import Path

from moejax.config.errors import InUseError, RunError
from moejax.runtime.new_folders import make_folders, remove_empty

NAME = ".lock"


class DirectoryLock:
    """Makes a directory and holds a lock on it, until it is released or the process ends."""

    def __init__(self, path: Path) -> None:
        """Raises ``RunError`` if the directory cannot be written or is in use."""
        self._path, self._file = path, path / NAME
        self._made: list[Path] = []
        try:
            self._made = make_folders(path)
            self._is_new = not self._file.exists()
            while not self._lock_file():
                pass
        except OSError as error:
            remove_empty(self._made)
            raise RunError(
                f"cannot write the run directory {path}: {error.strerror}. Choose another with"
                f" --run.directory."
            ) from error

    def _lock_file(self) -> bool:
        """Lock the file; False if another process removed it meanwhile."""
        lock = open(self._file, "a")  # noqa: SIM115 (held while in use)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise InUseError(
                f"another training is running in {self._path}. Wait for it, or give this one its"
                f" own --run.directory."
            ) from error
        self._lock = lock
        try:
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(self._file)):
                return True
        except FileNotFoundError:
            pass
        lock.close()
        return False

    @staticmethod
    def is_held(path: Path) -> bool:
        """Whether a training is running in a directory."""
        try:
            with open(path / NAME, "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def release(self, *, refused: bool, folders: list[Path]) -> None:
        """Let go. After a command that was ``refused``, what it made goes, too, if nothing is in
        it: ``folders`` in the directory, the lock, and the directory itself.
        """
        if refused and self._is_new:
            remove_empty(folders)
            with contextlib.suppress(OSError):
                self._file.unlink()
            remove_empty(self._made)
        self._lock.close()
