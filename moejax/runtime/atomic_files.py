"""Files that are written whole: a reader finds the old file or the new one, never a part of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_file(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a new file, then put it in the place of ``file``."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.writing")
    try:
        with open(temporary, "wb") as opened:
            write(opened)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write text in UTF-8; a lone surrogate becomes a question mark."""
    write_file(file, lambda opened: opened.write(text.encode("utf-8", "replace")))


def write_json(file: Path, value: Any) -> None:
    """Write ``value`` as readable JSON."""
    write_text(file, json.dumps(value, indent=2) + "\n")
