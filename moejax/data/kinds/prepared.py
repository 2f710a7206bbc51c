"""Files whose documents lie behind one another: where each is, found once and kept on disk.

A file of JSON is read where it lies, by an index. What cannot be read at any place (compressed
files, Parquet) is unpacked: its documents are written one after the other, beside an index. Both
are made again when the file has changed: they belong to its path, size and time. Memory holds
neither.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.data.documents import Document
from moejax.data.kept import AGAIN, DONE, find_kept, find_stamp, hold, read_part
from moejax.data.kinds.json_records import parse_document
from moejax.data.kinds.records import Bad, Record
from moejax.runtime.atomic_files import write_json

_VERSION = 1
"""Of what is kept: another one is made anew."""
_NAMED = 3
"""Bad documents that a message names."""
_FLUSH = 2**16
"""Documents whose places are in memory before they are written."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is wanted of a file, and where the result is kept."""

    path: str
    field: str
    kind: str
    unpack: bool
    """Whether to keep the documents, too, and not their places alone."""
    skip_bad: bool
    directory: str | None
    """`--data.directory`."""
    made_by: str = ""
    """A fingerprint of what else makes the documents of what is read."""


class PreparedFile:
    """The documents of one file, read from their places."""

    def __init__(self, folder: Path, request: Request) -> None:
        self._folder, self._request = folder, request
        said = json.loads((folder / DONE).read_text(encoding="utf-8"))
        self._count: int = said["count"]
        self._is_tokens: bool = said["tokens"]
        self.bad_count: int = said["bad_count"]
        self.bad: list[str] = said["bad"]
        self.size: int = said["bytes"]
        self._stamp = tuple(said["stamp"])

    def __len__(self) -> int:
        return self._count

    def read_sizes(self) -> np.ndarray:
        """The bytes of each document, int64 [n]."""
        places = np.fromfile(self._folder / "places", np.int64).reshape(-1, 2)
        return places[:, 1] - places[:, 0]

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < self._count:
            raise IndexError(index)
        begin, end = np.frombuffer(read_part(self._folder / "places", 16 * index, 16), np.int64)
        if self._request.unpack:
            data = read_part(self._folder / "documents", int(begin), int(end - begin))
            return np.frombuffer(data, np.int32) if self._is_tokens else data
        text = read_part(self._request.path, int(begin), int(end - begin), self._stamp)
        place = f"{self._request.path}, bytes {begin:,} to {end:,},"
        found = parse_document(text, self._request.field, place)
        if isinstance(found, Bad):
            raise ConfigError(f"{found} The file has changed: {AGAIN}")
        return found


def prepare(request: Request, read: Callable[[], Iterable[Record]]) -> PreparedFile:
    """The documents of a file that ``read`` finds, from what is kept, or else found now.

    Raises ``ConfigError`` for the first bad document, unless they are to be skipped.
    """
    facts = os.stat(request.path)
    key = [_VERSION, os.path.realpath(request.path), *find_stamp(facts)]
    key += [request.field, request.kind, request.unpack]
    key += [request.made_by] if request.made_by else []
    name = hashlib.sha256(repr(key).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    folder = find_kept(request.directory) / "documents" / name
    try:
        with hold(folder):
            if not (folder / DONE).is_file():
                temporary = folder.with_name(f"{name}.making")
                shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
                temporary.mkdir(parents=True)
                try:
                    _write(temporary, request, read(), find_stamp(facts))
                    os.replace(temporary, folder)
                except BaseException:
                    shutil.rmtree(temporary, ignore_errors=True)
                    raise
    except OSError as error:
        raise ConfigError(
            f"--data.directory: what is made of {request.path} cannot be kept in {folder.parent}:"
            f" {error.strerror or error}."
        ) from error
    found = PreparedFile(folder, request)
    if found.bad:
        _check_skipped(found.bad[0], request)
    return found


def _check_skipped(bad: object, request: Request) -> None:
    check(request.skip_bad, f"{bad} --data.skip-bad True leaves such documents out.")


def _write(
    folder: Path, request: Request, records: Iterable[Record], stamp: tuple[int, int]
) -> None:
    count, size, bad_count = 0, 0, 0
    bad: list[str] = []
    tokens: bool | None = None
    places: list[tuple[int, int]] = []
    with open(folder / "places", "wb") as index, _open(folder, request.unpack) as documents:
        for begin, end, value in records:
            if not isinstance(value, Bad):
                kind = isinstance(value, np.ndarray)
                tokens = kind if tokens is None else tokens
                if kind != tokens:
                    one, other = ("tokens", "text") if kind else ("text", "tokens")
                    value = Bad(f"{request.path}, document {count}", f"is {one}, others {other}.")
            if isinstance(value, Bad):
                _check_skipped(value, request)
                bad_count += 1
                bad += [str(value)] * (len(bad) < _NAMED)
                continue
            if documents is not None:
                data = value if isinstance(value, bytes) else np.asarray(value).tobytes()
                documents.write(data)
                begin, end = size, size + len(data)
            size += end - begin
            count += 1
            places.append((begin, end))
            if len(places) == _FLUSH:
                index.write(np.asarray(places, np.int64).tobytes())
                places = []
        index.write(np.asarray(places, np.int64).tobytes())
    about: dict[str, Any] = {"count": count, "tokens": bool(tokens), "bytes": size}
    about |= {"bad_count": bad_count, "bad": bad, "path": request.path, "field": request.field}
    about["stamp"] = stamp
    write_json(folder / DONE, about)


@contextlib.contextmanager
def _open(folder: Path, unpack: bool) -> Iterator[IO[bytes] | None]:
    if not unpack:
        yield None
        return
    with open(folder / "documents", "wb") as file:
        yield file
