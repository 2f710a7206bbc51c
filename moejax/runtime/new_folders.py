"""Folders that a command makes before it knows that it can do its work: if it fails, it leaves
none.
"""

import contextlib
import shutil
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


def remove_content(folder: Path) -> None:
    """Remove all that is in a folder, as far as it may be."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
