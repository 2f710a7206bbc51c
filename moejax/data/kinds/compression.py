"""Compressed files, read as streams. An archive that ends early is an ``EOFError``."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from moejax.config.errors import ConfigError
from moejax.data.kinds.records import Bad, Record

_BLOCK = 2**16


class _ZstdStream(io.RawIOBase):
    """The content of all frames of a zstd file. (The library's own reader takes a file that is cut
    off for one that ends.)
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: Any = None
        """The frame that has begun and not ended."""
        self._given, self._left = b"", b""

    def readable(self) -> bool:
        """As of every file that is read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of ``buffer``."""
        while not self._given:
            block = self._left or self._file.read(_BLOCK)
            self._left = b""
            if not block:
                if self._frame is not None:
                    raise EOFError("the last frame of zstd has no end")
                return 0
            if self._frame is None:
                self._frame = import_zstandard().ZstdDecompressor().decompressobj()
            self._given = self._frame.decompress(block)
            if self._frame.eof:
                self._left, self._frame = self._frame.unused_data, None
        part, self._given = self._given[: len(buffer)], self._given[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def import_zstandard() -> Any:
    """The library for zstd. Raises ``ConfigError`` if it is missing."""
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(
            "files that end in .zst are read by zstandard, which is missing:"
            " pip install -e '.[zstd]'"
        ) from error
    return zstandard


OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".zst": lambda file: io.BufferedReader(_ZstdStream(file), _BLOCK),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
"""How files with these suffixes are read."""
MARKS = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00"}
"""How they begin."""
SKIPPABLE = tuple(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60))
"""Frames of zstd that hold no content may stand first."""
DAMAGED = (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)
"""What these libraries raise; bz2 an ``OSError`` without a number, zstandard its own error."""


def split_compression(path: str) -> tuple[str, str | None]:
    """The path without the suffix of a compression, and that suffix; None if it has none."""
    suffix = Path(path).suffix.lower()
    return (path[: -len(suffix)], suffix) if suffix in OPENERS else (path, None)


def is_damage(error: BaseException) -> bool:
    """Whether an error of reading says that an archive is damaged."""
    own = type(error).__module__.startswith("zstandard") or type(error).__name__ == "ZstdError"
    return isinstance(error, DAMAGED) or own or (isinstance(error, OSError) and not error.errno)


def explain_damage(error: BaseException) -> str:
    """What is wrong with an archive, in words that follow its name."""
    if isinstance(error, EOFError):
        return "is cut off: the archive has no end."
    return f"is damaged: {str(error) or type(error).__name__}."


@contextlib.contextmanager
def open_stream(path: str) -> Iterator[Any]:
    """The content of a file, unpacked if its suffix says that it is compressed, with ``peek``. Of a
    large one, progress is shown on a terminal.
    """
    suffix = split_compression(path)[1]
    with open(path, "rb") as raw:
        total = os.fstat(raw.fileno()).st_size
        name = os.path.basename(path)
        with tqdm(total=total, unit="B", unit_scale=True, desc=name, delay=3, disable=None) as bar:
            counted = io.BufferedReader(_Counted(raw, bar), _BLOCK)
            yield OPENERS[suffix](counted) if suffix else counted


class _Counted(io.RawIOBase):
    """A file that tells a progress bar what is read of it."""

    def __init__(self, file: IO[bytes], bar: Any) -> None:
        self._file, self._bar = file, bar

    def readable(self) -> bool:
        """As of every file that is read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of ``buffer``."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._bar.update(len(data))
        return len(data)


def guard(records: Iterator[Record], path: str) -> Iterator[Record]:
    """The records of an archive; where it is damaged, a bad one as the last."""
    try:
        yield from records
    except Exception as error:
        if not is_damage(error):
            raise
        yield Record(0, 0, Bad(path, explain_damage(error)))
