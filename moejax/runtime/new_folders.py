"""Folders that a command makes before it knows that it can do its work: refused, it leaves none."""

import contextlib
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
