"""Arrays by step: ``DIRECTORY/STEP.npz``, in the folders ``load``, ``choices`` and ``classes``."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from moejax.runtime.atomic_files import write_file

# A RuntimeError is what a flipped bit of the flags or the method of compression looks like.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)

Arrays = dict[str, np.ndarray]


def list_steps(directory: Path) -> list[Path]:
    """The files of a folder, in the order of their steps."""
    found = (path for path in directory.glob("*.npz") if path.stem.isdecimal())
    return sorted(found, key=lambda path: int(path.stem))


def write_arrays(directory: Path, step: int, arrays: Arrays) -> None:
    """Write the arrays of a step."""
    directory.mkdir(exist_ok=True)
    file = directory / f"{step:08d}.npz"
    named: Any = arrays  # numpy has settings beside the arrays, which none is named like
    write_file(file, lambda opened: np.savez_compressed(opened, **named))


def read_arrays(path: Path) -> Arrays | None:
    """All arrays of a file by name; None for a damaged file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except _DAMAGE:
        return None
