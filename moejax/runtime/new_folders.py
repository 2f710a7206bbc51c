"""Folders that a command makes before it knows that it can do its work: if it fails, it leaves
none.
"""

import contextlib
import fcntl
import os
from pathlib import Path


def make_folders(path: Path) -> list[Path]:
    """Make a folder and those above it; returns those that were not there, the innermost first.
    Raises ``OSError``, and leaves none.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(missing)
        raise
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def lock_folder(folder: Path) -> int:
    """Hold a lock on a folder until the file number that is returned is closed, or the process
    ends. Raises ``BlockingIOError`` if another process holds it.
    """
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        raise
    except OSError:  # a file system without such locks
        pass
    return number
