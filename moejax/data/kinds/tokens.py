"""Tokens that were made earlier: `.npy`, and `.bin` as nanoGPT, llm.c and Megatron write them.

Their documents are read where they lie. Megatron's `.idx` says where each begins. A stream of
tokens is cut after each token that ends a document; one without any, every ``LONGEST`` tokens.
"""

import os
from typing import NamedTuple

import numpy as np

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.data.kept import read_part
from moejax.data.tokenizer import Tokenizer

LONGEST = 2**16
"""Tokens of a part of a stream in which no document ends."""
_BLOCK = 2**22
"""Tokens that are looked at together."""
_MEGATRON = b"MMIDIDX\x00\x00"
_MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LLM_C, _LLM_C_HEADER = 20240520, 1024
"""The first number of a file of llm.c's, and the bytes before its tokens."""


class Stream(NamedTuple):
    """Where the tokens of a file lie."""

    path: str
    begin: int
    """Bytes before the first one."""
    kind: np.dtype
    tokens: int
    """How many."""


class TokenFile:
    """The documents of a file of tokens."""

    bad_count = 0

    def __init__(self, stream: Stream, edges: np.ndarray) -> None:
        """``edges``: the tokens before each document, and all of them; int64 [documents + 1]."""
        self._stream, self._edges = stream, edges
        self.size = stream.tokens * stream.kind.itemsize
        self.bad: list[str] = []

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        begin, end = int(self._edges[index]), int(self._edges[index + 1])
        return _read(self._stream, begin, end).astype(np.int32)


def open_tokens(path: str, tokenizer: Tokenizer) -> TokenFile:
    """The documents of a file of tokens. Reads all of it once, to find where documents end.

    Raises ``ConfigError``, naming file and place, if it is none, or has a token that the tokenizer
    has not.
    """
    index = path.removesuffix(".bin") + ".idx"
    if path.endswith(".bin") and os.path.isfile(index):
        stream, edges = _read_megatron(path, index)
        _find_ends(stream, tokenizer)
        return TokenFile(stream, edges)
    stream = _open_npy(path) if path.endswith(".npy") else _open_bin(path, tokenizer)
    return TokenFile(stream, _split(stream, _find_ends(stream, tokenizer)))


def _open_npy(path: str) -> Stream:
    begin = read_part(path, 0, 6)
    check(begin == b"\x93NUMPY", f"{path} is no array of numpy: it begins with {begin!r}.")
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"{path} cannot be read as an array of numpy: {str(error).rstrip('.')}."
        ) from error
    shown = f"{tokens.dtype}{list(tokens.shape)}"
    check(
        tokens.ndim == 1 and tokens.dtype.kind in "iu",
        f"{path} is {shown}: it must be the ids of tokens one after the other, as integers [n].",
    )
    assert isinstance(tokens, np.memmap)
    return Stream(path, int(tokens.offset), tokens.dtype, len(tokens))


def _open_bin(path: str, tokenizer: Tokenizer) -> Stream:
    """A stream with nothing before it, as of nanoGPT: two bytes a token, or four if the vocabulary
    is too large for that; or one with llm.c's header.
    """
    size = os.path.getsize(path)
    if size >= _LLM_C_HEADER:
        magic, version, count = np.frombuffer(read_part(path, 0, 12), "<i4")
        if magic == _LLM_C:
            kind = np.dtype("<u4" if version == 7 else "<u2")
            there = (size - _LLM_C_HEADER) // kind.itemsize
            check(
                count == there,
                f"{path} has {there:,} tokens after its header, which says {count:,}: it is cut"
                f" off, or damaged.",
            )
            return Stream(path, _LLM_C_HEADER, kind, there)
    kind = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    check(
        size % kind.itemsize == 0,
        f"{path} has {size:,} bytes, which is no whole number of tokens of {kind.itemsize} bytes"
        f" each (--data.tokenizer has {tokenizer.vocab_size:,} tokens).",
    )
    return Stream(path, 0, kind, size // kind.itemsize)


def _read_megatron(path: str, index: str) -> tuple[Stream, np.ndarray]:
    """The tokens of Megatron's `.bin`, and the documents of the `.idx` beside it."""
    damaged = f"{index} is no index of Megatron's, or damaged"
    with open(index, "rb") as file:
        head = file.read(34)
        check(head.startswith(_MEGATRON) and len(head) == 34, f"{damaged}.")
        kind = _MEGATRON_TYPES.get(head[17])
        check(kind is not None, f"{damaged}: its tokens are of type {head[17]}.")
        sequences, marks = (int(n) for n in np.frombuffer(head[18:], "<u8"))
        size = 34 + 12 * sequences + 8 * marks
        check(os.path.getsize(index) >= size, f"{damaged}: {size:,} bytes would be needed.")
        lengths = np.fromfile(file, "<i4", sequences)
        begins = np.fromfile(file, "<i8", sequences)
        documents = np.fromfile(file, "<i8", marks)
    stream = Stream(path, 0, np.dtype(kind), os.path.getsize(path) // np.dtype(kind).itemsize)
    ends = np.append(0, np.cumsum(lengths, dtype=np.int64))
    in_order = bool(sequences) and np.array_equal(begins, ends[:-1] * stream.kind.itemsize)
    check(in_order, f"{damaged}: its sequences do not lie one after the other.")
    said = int(ends[-1])
    check(said == stream.tokens, f"{path} has {stream.tokens:,} tokens, {index} says {said:,}.")
    inside = marks > 1 and documents[0] == 0 and documents[-1] == sequences
    check(bool(inside and (np.diff(documents) >= 0).all()), f"{damaged}: its documents.")
    return stream, ends[documents]


def _find_ends(stream: Stream, tokenizer: Tokenizer) -> np.ndarray:
    """After which tokens documents end, int64. Where none ends, before which ones they begin."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    edges, size = tokenizer.edges, tokenizer.vocab_size
    for begin in range(0, stream.tokens, _BLOCK):
        tokens = _read(stream, begin, min(stream.tokens, begin + _BLOCK))
        wrong = np.flatnonzero((tokens < 0) | (tokens >= size))
        if len(wrong):
            raise ConfigError(
                f"{stream.path} has the token {tokens[wrong[0]]} at {begin + wrong[0]:,}, but"
                f" --data.tokenizer has the tokens 0 to {size - 1}: give the tokenizer that made"
                f" it."
            )
        found[0].append(begin + np.flatnonzero(tokens == edges.end) + 1)
        found[1].append(begin + np.flatnonzero(tokens == edges.before_document[0]))
    ends, begins = (np.concatenate([np.zeros(0, np.int64), *places]) for places in found)
    return ends if len(ends) else begins


def _split(stream: Stream, places: np.ndarray) -> np.ndarray:
    """The edges of the documents of a stream, given those inside it."""
    if not len(places):
        places = np.arange(LONGEST, stream.tokens, LONGEST)
    return np.unique(np.concatenate([[0], places, [stream.tokens]])).astype(np.int64)


def _read(stream: Stream, begin: int, end: int) -> np.ndarray:
    width = stream.kind.itemsize
    data = read_part(stream.path, stream.begin + width * begin, width * (end - begin))
    return np.frombuffer(data, stream.kind)
