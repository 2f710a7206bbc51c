"""Which suffix means which format, and how the files of each are opened."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from moejax.config.checks import check
from moejax.config.data import TFDS
from moejax.config.errors import ConfigError
from moejax.data.chat.conversations import ChatFile, ChatFormat
from moejax.data.documents import Document, Documents
from moejax.data.kinds import columns
from moejax.data.kinds.compression import (
    MARKS,
    SKIPPABLE,
    guard,
    import_zstandard,
    open_stream,
    split_compression,
)
from moejax.data.kinds.json_records import read_lines, read_values
from moejax.data.kinds.prepared import Request, prepare
from moejax.data.kinds.records import WHOLE, Record
from moejax.data.kinds.tokens import open_tokens
from moejax.data.text_format import BYTE_ORDER_MARK, HEAD, name_other_format
from moejax.data.text_parts import PART, open_texts, read_parts
from moejax.data.tokenizer import Tokenizer

TEXT, JSON_LINES, JSON, PARQUET, ARROW, TOKENS = (
    "text",
    "JSON lines",
    "JSON",
    "Parquet",
    "Arrow",
    "tokens",
)
SUFFIXES = {
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".jsonlines": JSON_LINES,
    ".json": JSON,
    ".parquet": PARQUET,
    ".pq": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
    ".npy": TOKENS,
    ".bin": TOKENS,
    ".idx": TOKENS,
}
"""All others are those of texts."""
STREAMS = (TEXT, JSON_LINES, JSON)
"""What may be compressed as a whole."""


class FileDocuments(Documents, Protocol):
    """The documents of one file."""

    size: int
    """About how many bytes they are."""
    bad_count: int
    """How many were left out."""
    bad: list[str]
    """What is wrong with the first of them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is the same for all files."""

    field: str = "text"
    skip_bad: bool = False
    directory: str | None = None
    tokenizer: Tokenizer | None = None
    """With which tokens were made; other formats need none."""
    chat: ChatFormat | None = None
    """How conversations are read; None for texts."""


def find_kind(path: str) -> str:
    """The format that the suffix of a path means."""
    return SUFFIXES.get(Path(split_compression(path)[0]).suffix.lower(), TEXT)


def has_fields(given: str) -> bool:
    """Whether the documents of what is named are fields of something."""
    return given.startswith(TFDS) or os.path.isdir(given) or find_kind(given) not in (TEXT, TOKENS)


def is_prepared(given: str) -> bool:
    """Whether something is made of what is named, and kept."""
    return has_fields(given) or split_compression(given)[1] is not None


def find_problem(path: str) -> str | None:
    """Why a file is not what its suffix says, in words that follow its name; None if it may be."""
    kind, packing = find_kind(path), split_compression(path)[1]
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if kind not in STREAMS and packing:
        return f"is compressed as a whole, which a file of {kind} may not be: unpack it first"
    if kind == PARQUET and not head.startswith(columns.PARQUET_MARK):
        return f"is no Parquet file: it begins with {head[:4]!r}" if head else "is empty"
    if packing:
        if not head:
            return "is empty, which no archive is"
        if head.startswith(MARKS[packing]) or packing == ".zst" and head.startswith(SKIPPABLE):
            return None
        return f"is not compressed as its name says: it begins with {head[:4]!r}"
    return name_other_format(head) if kind in STREAMS else None


def open_file(path: str, kind: str, options: Options) -> FileDocuments:
    """The documents of one file. Raises ``ConfigError``, naming file and place."""
    if options.chat is not None:
        return _open_chats(path, kind, options, options.chat)
    if kind == TOKENS:
        if options.tokenizer is None:
            raise ConfigError(f"{path}: tokens are read with the tokenizer that made them.")
        return open_tokens(path, options.tokenizer)
    if kind == ARROW and columns.lies_open(path, options.field):
        return columns.ArrowFile(path, options.field, options.skip_bad)
    packing = split_compression(path)[1]
    if kind == TEXT and packing is None:
        return TextFile(path)
    if packing == ".zst":
        import_zstandard()
    request = Request(
        path=path,
        field="" if kind == TEXT else options.field,
        kind=kind,
        unpack=packing is not None or kind not in (JSON_LINES, JSON),
        skip_bad=options.skip_bad,
        directory=options.directory,
        made_by=f"parts of {PART}" if kind == TEXT else "",
    )
    return prepare(request, partial(read_records, path, kind, options.field))


def _open_chats(path: str, kind: str, options: Options, chat: ChatFormat) -> ChatFile:
    """The conversations of one file, whose tokens are kept."""
    check(
        kind not in (TEXT, TOKENS),
        f"--data.chat-template: {path} is {kind}; conversations are read from JSON lines, JSON,"
        f" Parquet and Arrow.",
    )
    request = Request(
        path=path,
        field=WHOLE,
        kind=kind,
        unpack=True,
        skip_bad=options.skip_bad,
        directory=options.directory,
        made_by=chat.fingerprint,
    )
    return ChatFile(prepare(request, lambda: chat.read(read_records(path, kind))), chat)


class TextFile:
    """One text."""

    bad_count = 0

    def __init__(self, path: str) -> None:
        self.size = os.path.getsize(path)
        self.bad: list[str] = []
        self._texts = open_texts([(path, self.size)])

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> Document:
        return self._texts[index]

    def path(self, index: int) -> str:
        """The path of a document."""
        return self._texts.path(index)


def read_records(path: str, kind: str, field: str = WHOLE) -> Iterator[Record]:
    """The documents of a file, from the first to the last; by default records as they are."""
    if kind == PARQUET:
        yield from columns.read_parquet(path, field)
    elif kind == ARROW:
        yield from columns.read_arrow(path, field)
    else:
        with open_stream(path) as stream:
            yield from guard(_read_stream(stream, path, kind, field), path)


def _read_stream(stream: Any, path: str, kind: str, field: str) -> Iterator[Record]:
    if split_compression(path)[1] and (problem := name_other_format(stream.peek(HEAD))):
        raise ConfigError(f"what is in {path} {problem}.")
    if kind == TEXT:
        for number, text in enumerate(read_parts(stream)):
            yield Record(0, 0, text if number else text.removeprefix(BYTE_ORDER_MARK))
    elif kind == JSON_LINES:
        yield from read_lines(stream, path, field)
    else:
        yield from read_values(stream, path, field)


def check_one_kind(flag: str, paths: Sequence[str]) -> str:
    """The format of all files; raises ``ConfigError`` if they have several."""
    first = {find_kind(path): path for path in reversed(sorted(paths))}
    named = ", ".join(
        f"{path} ({kind})" for kind, path in sorted(first.items(), key=lambda x: x[1])
    )
    most = min(first, key=lambda kind: (kind == TEXT, first[kind]))
    check(
        len(first) == 1,
        f"{flag} names files of several formats: {named}. Name those of one, by a glob such as"
        f" 'corpus/**/*{Path(first[most]).suffix}'.",
    )
    return most
