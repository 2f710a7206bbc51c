"""Checksums of the files of a checkpoint, so that no changed byte is read as if it were right.

They lie beside the checkpoint, in ``checksums.json``: the size and the CRC-32C of each file. They
are written as soon as the checkpoint is on disk, and looked at before it is used.
"""

import json
from pathlib import Path
from typing import Any

import google_crc32c

from moejax.config.errors import RunError
from moejax.config.json_files import MOST_TABLE_BYTES, read_json
from moejax.runtime.atomic_files import write_json

FILE = "checksums.json"
TIMES = "_CHECKPOINT_METADATA"
"""When the checkpoint was saved: Orbax writes this after all else, and nothing depends on it."""
CHECKSUM = "checksum"
"""The field of a JSON object with the checksum of the others."""
BLOCK = 1 << 18
"""Bytes read at a time: what fits a processor's cache."""


def write_checksums(directory: Path, names: list[str] | None = None) -> None:
    """Write the checksums of files in ``directory`` into it: by default all, at any depth."""
    names = list_files(directory) if names is None else names
    files = {name: sum_file(directory / name) for name in names}
    write_json(directory / FILE, {"algorithm": "crc32c", "files": files})


def find_damage(directory: Path, part: int = 0, parts: int = 1, start: str = "") -> str | None:
    """What is wrong with the files of ``directory``, in words; None if nothing is known to be.

    Every file must be as its checksum says, and none may be missing. Of several processes that
    share the work, each looks at its ``part`` of ``parts``. Files whose path does not begin with
    ``start`` are not looked at. Directories without checksums were written before there were any,
    or are still being finished: nothing is known of them.
    """
    file = directory / FILE
    if not file.is_file():
        return None
    try:
        files = read_json(file, MOST_TABLE_BYTES)["files"]
        expected = {str(name): [int(size), str(crc)] for name, (size, crc) in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{FILE} itself is damaged"
    for name in sorted(name for name in expected if name.startswith(start))[part::parts]:
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            found = sum_file(path)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != expected[name]:
            return f"{name} is not what was written: its checksum differs"
    return None


def check_files(directory: Path) -> None:
    """Raise ``RunError`` if a file of ``directory`` is not what was written."""
    if damage := find_damage(directory):
        raise RunError(damage)


def list_files(directory: Path) -> list[str]:
    """The files that have a checksum, by their paths inside ``directory``, sorted."""
    paths = (path for path in directory.rglob("*") if path.name not in (FILE, TIMES))
    return sorted(path.relative_to(directory).as_posix() for path in paths if path.is_file())


def sum_file(path: Path) -> list[int | str]:
    """The size of a file in bytes, and its CRC-32C in hexadecimal digits."""
    crc, size = 0, 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            crc, size = google_crc32c.extend(crc, block), size + len(block)
    return [size, f"{crc:08x}"]


def sum_bytes(content: bytes) -> list[int | str]:
    """The same of bytes in memory."""
    return [len(content), f"{google_crc32c.value(content):08x}"]


def sum_json(value: dict[str, Any]) -> str:
    """The CRC-32C of a JSON object without its own checksum, however it is laid out in a file."""
    rest = {name: content for name, content in value.items() if name != CHECKSUM}
    return str(sum_bytes(json.dumps(json.loads(json.dumps(rest)), sort_keys=True).encode())[1])
