"""Files that are written whole: a reader finds the old file or the new one, never a part of it."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


def write_file(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a new file, then put it in the place of ``file``. An ``OSError`` names
    ``file``, which is then as it was. A device or a pipe, such as `/dev/stdout`, is written to.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.writing")
    with name_file(file):
        if file.exists() and not file.is_file() and not file.is_dir():
            with open(file, "wb") as opened:
                write(opened)
            return
        try:
            with open(temporary, "wb") as opened:
                write(opened)
            os.replace(temporary, file)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def name_file(file: Path) -> Iterator[None]:
    """Let an ``OSError`` name ``file``: the system does not say where a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def write_text(file: Path, text: str) -> None:
    """Write text in UTF-8; a lone surrogate becomes a question mark."""
    write_file(file, lambda opened: opened.write(text.encode("utf-8", "replace")))


def write_json(file: Path, value: Any) -> None:
    """Write ``value`` as readable JSON."""
    write_text(file, json.dumps(value, indent=2) + "\n")


def append_text(file: Path, text: str) -> None:
    """Add text in UTF-8 at the end of ``file``, which need not be there yet."""
    with name_file(file), open(file, "ab") as opened:
        opened.write(text.encode())
