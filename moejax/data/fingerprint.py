"""A fingerprint of data, so that a run goes on with the very data that it began with.

It is a list of marks. Each stands for a group of neighbouring documents: the names of its first and
its last one, and a digest of all their names and contents. Most texts have few files, so that each
is a group and a changed one can be named.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np

from moejax.data.documents import Documents
from moejax.data.find_files import FoundFile

Mark = tuple[str, str, str]
"""The names of the first and the last document of a group, and a digest."""

GROUPS = 256
"""At most so many marks."""
READ_WHOLE = 256 * 2**20
"""Bytes of all files together up to which all of them are read."""
READ_OF_MORE = 32 * 2**20
"""Bytes that are read of larger texts, in blocks that are spread evenly over each file."""
BLOCK, EDGE = 2**15, 2**13
"""Bytes of a block, and of the first and the last one of a file."""
DOCUMENTS = 256
"""Documents that are read of a data set of many small ones."""


def mark_files(files: Sequence[FoundFile], roles: Sequence[str]) -> list[Mark]:
    """The marks of files, by their names, sizes, roles (trained on or held out) and contents. Of
    more than ``READ_WHOLE`` bytes, only blocks are read.
    """
    total = sum(file.size for file in files)
    share = None if total <= READ_WHOLE else READ_OF_MORE / total
    digests = []
    for file, role in zip(files, roles, strict=True):
        digest = hashlib.blake2b(repr((file.name, file.size, role)).encode(), digest_size=8)
        for block in read_blocks(file.path, file.size, share):
            digest.update(block)
        digests.append(digest.digest())
    return _group([file.name for file in files], digests)


def stamp_files(files: Sequence[FoundFile]) -> str:
    """A digest of where files are, their sizes and when they were written."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        facts = os.stat(file.path)
        said = (os.path.realpath(file.path), facts.st_size, facts.st_mtime_ns)
        digest.update(repr(said).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def read_blocks(path: str, size: int, share: float | None) -> Iterator[bytes]:
    """All of a file, or about a ``share`` of it: its edges, and blocks spread evenly between."""
    with open(path, "rb", buffering=0) as file:
        count = 0 if share is None else int(size * share) // BLOCK
        if share is None or size <= 2 * EDGE + count * BLOCK:
            while block := file.read(2**20):
                yield block
            return
        yield file.read(EDGE)
        for number in range(count):
            file.seek(EDGE + (size - 2 * EDGE - BLOCK) * number // max(1, count - 1))
            yield file.read(BLOCK)
        file.seek(-EDGE, os.SEEK_END)
        yield file.read(EDGE)


def mark_documents(side: str, documents: Documents, what: str = "document") -> list[Mark]:
    """The marks of one side of a data set, by its length and ``DOCUMENTS`` of its documents, spread
    evenly from the first to the last; ``what`` they are called.
    """
    count = len(documents)
    numbers = sorted({i * (count - 1) // (DOCUMENTS - 1) for i in range(DOCUMENTS)})
    digests = []
    for number in numbers:
        digest = hashlib.blake2b(repr((count, number)).encode(), digest_size=8)
        document = documents[number]
        digest.update(document if isinstance(document, bytes) else np.asarray(document).tobytes())
        digests.append(digest.digest())
    return _group([f"{what} {number} of {side}" for number in numbers], digests)


def explain_change(old: Sequence[Sequence[str]], new: Sequence[Mark]) -> str | None:
    """What has become of a text whose marks were ``old`` and are ``new``, by name; None if it is
    the same.
    """
    before = {(first, last): digest for first, last, digest in old}
    after = {(first, last): digest for first, last, digest in new}
    if before == after:
        return None
    gone = [_name(group) for group in before if group not in after]
    added = [_name(group) for group in after if group not in before]
    changed = [_name(group) for group in after if before.get(group, after[group]) != after[group]]
    parts = [
        f"{words} {', '.join(names[:3])}" + f" and {len(names) - 3:,} more" * (len(names) > 3)
        for words, names in (("changed:", changed), ("gone:", gone), ("new:", added))
        if names
    ]
    return "; ".join(parts)


def join_marks(marks: Sequence[Mark]) -> str:
    """One digest of all marks, also of those that a checkpoint has as lists."""
    same = [tuple(mark) for mark in marks]
    return hashlib.blake2b(repr(same).encode(), digest_size=8).hexdigest()


def _group(names: Sequence[str], digests: Sequence[bytes]) -> list[Mark]:
    count = min(GROUPS, len(names))
    edges = [len(names) * i // count for i in range(count + 1)]
    return [
        (
            names[begin],
            names[end - 1],
            hashlib.blake2b(b"".join(digests[begin:end]), digest_size=8).hexdigest(),
        )
        for begin, end in itertools.pairwise(edges)
    ]


def _name(group: tuple[str, str]) -> str:
    first, last = group
    return first if first == last else f"something from {first} to {last}"
