"""Large text files as several documents: a document is in memory as a whole, with its tokens."""

from collections.abc import Iterator, Sequence
from typing import IO

from moejax.data.text_files import TextFiles

LONGEST, PART = 2**22, 2**20
"""Bytes up to which a file is one document; of larger ones, at most so many are."""
_REACH = 2**16
"""Bytes before the end of a part in which a better place is looked for."""


def open_texts(files: Sequence[tuple[str, int]]) -> TextFiles:
    """The documents of files, of each its path and its size in bytes."""
    paths = [path for path, _ in files]
    if all(size <= LONGEST for _, size in files):
        return TextFiles(paths)
    parts = [find_parts(path, size) for path, size in files]
    named = [path for path, found in zip(paths, parts, strict=True) for _ in found]
    return TextFiles(named, [part for found in parts for part in found])


def find_parts(path: str, size: int) -> list[tuple[int, int]]:
    """From which byte to which the documents of a file of so many bytes go: each ends after a
    paragraph, or else after a line, or else after a character. Only what is near is read.
    """
    if size <= LONGEST:
        return [(0, size)]
    cuts = [0]
    with open(path, "rb") as file:
        for end in range(PART, size, PART):
            file.seek(end - _REACH)
            cuts.append(end - _REACH + _find_cut(file.read(_REACH)))
    return list(zip(cuts, [*cuts[1:], size], strict=True))


def read_parts(stream: IO[bytes]) -> Iterator[bytes]:
    """The same documents of a file that can be read only from the front."""
    begun = _read(stream, LONGEST + 1)
    if len(begun) <= LONGEST:
        yield begun
        return
    end, done = PART, 0
    """Up to where parts go at most, in the file, and up to where they are given out."""
    while True:
        while end < done + len(begun):
            cut = end - _REACH + _find_cut(begun[end - _REACH - done : end - done])
            yield begun[: cut - done]
            begun, done, end = begun[cut - done :], cut, end + PART
        more = _read(stream, PART)
        if not more:
            yield begun
            return
        begun += more


def _read(stream: IO[bytes], size: int) -> bytes:
    """So many bytes, unless there are no more."""
    blocks = []
    while size and (block := stream.read(size)):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def _find_cut(near: bytes) -> int:
    """The last good place in a text."""
    for border in (b"\n\n", b"\n"):
        if (place := near.rfind(border)) > 0:
            return place + len(border)
    for place in range(len(near), max(0, len(near) - 3), -1):
        # The byte after the last one is not known: a character may go on there.
        if near[place - 1] & 0xC0 == 0xC0:
            return place - 1
    return len(near)
