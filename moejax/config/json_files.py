"""JSON from files that others wrote: bounded in size, depth and the length of its numbers."""

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

MEBIBYTE = 2**20
MOST_BYTES = 4 * MEBIBYTE
"""Of a file of settings; those of released models have some thousand bytes."""
MOST_TABLE_BYTES = 64 * MEBIBYTE
"""Of a file with a line for each tensor, file or expert."""
DEEPEST = 64
"""Objects and lists inside each other."""
MOST_DIGITS = 40
BLOCK = 1 << 16
HANDED_OVER = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""Where a shell puts a pipe that it hands over: `--hf <(...)`."""


def open_regular(path: str | Path) -> IO[bytes]:
    """A file opened for reading; a pipe of the shell's will do. Raises ``OSError``, or
    ``ValueError`` for a device, a folder, or a pipe with a name, which might never end.
    """
    if str(path).startswith(HANDED_OVER):
        return open(path, "rb")
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # else a pipe would wait
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError("it is not a regular file")
    return os.fdopen(number, "rb")


def read_bounded(path: str | Path, most: int) -> bytes:
    """All bytes of a file. Raises ``OSError``, or ``ValueError`` for more than ``most``."""
    found = bytearray()
    with open_regular(path) as file:
        while len(found) <= most and (part := file.read(BLOCK)):  # takes memory as it comes
            found += part
    if len(found) > most:
        raise ValueError(f"it has more than the {most:,} bytes that such a file may have")
    return bytes(found)


def read_json(path: str | Path, most: int = MOST_BYTES) -> Any:
    """The value in a JSON file. Raises ``OSError`` or ``ValueError`` (which the errors of UTF-8 and
    of JSON are, too).
    """
    return parse_json(read_bounded(path, most))


def parse_json(
    text: str | bytes, pairs: Callable[[list], Any] | None = None, finite: bool = False
) -> Any:
    """The value of a JSON text; ``pairs`` makes objects from lists of pairs, by default dicts. With
    ``finite``, numbers are those of JSON alone, and what Python has besides (NaN) is refused.
    Raises ``ValueError``, also for what is nested deeper than anyone means it.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        found = json.loads(
            text,
            parse_int=_parse_int,
            parse_float=_parse_finite if finite else None,
            parse_constant=_refuse_constant if finite else None,
            object_pairs_hook=pairs,
        )
    except RecursionError:
        found, depth = None, DEEPEST + 1
    else:
        depth = 0 if pairs is not None else measure_depth(found)
    if depth > DEEPEST:
        raise ValueError(f"objects or lists are nested more than {DEEPEST} deep")
    return found


def measure_depth(value: Any) -> int:
    """How many objects and lists are inside each other, and at most one more than ``DEEPEST``."""
    depth, layer = 0, [value]
    while depth <= DEEPEST:
        inside = [item for item in layer if isinstance(item, dict | list)]
        if not inside:
            break
        depth += 1
        layer = [x for item in inside for x in (item.values() if type(item) is dict else item)]
    return depth


def _parse_int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _parse_finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:MOST_DIGITS]} is too large")
    return number


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
