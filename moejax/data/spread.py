"""A sample of a text: pieces of documents, spread evenly over all of them."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from moejax.data.documents import Documents
from moejax.data.pipeline import Pieces
from moejax.data.tokenizer import Tokenizer, encode_document


class Excerpt(NamedTuple):
    """A piece of a document, cut where ``pipeline`` cuts it."""

    document: int
    text: bytes
    """The whole document."""
    inputs_N: np.ndarray
    """Tokens as a model reads them."""
    is_text_N: np.ndarray
    """False for the tokens before a document."""
    begin_N: np.ndarray
    end_N: np.ndarray
    """The bytes of the document that each stands for."""


def order_evenly(count: int) -> list[int]:
    """The numbers from 0 to ``count`` - 1 in an order whose first few, however many, are spread
    evenly: steps of about the golden ratio around a circle.
    """
    step = max(1, round(count * 0.618))
    while math.gcd(step, count) > 1:
        step += 1
    return [i * step % count for i in range(count)]


def share_pieces(lengths: Sequence[int], length: int, tokens: int) -> list[int]:
    """How many pieces of at most ``length`` tokens to take of each document, whose tokens are
    ``lengths``: one of each document in turn, as long as it has more, until they hold ``tokens``.
    """
    taken, total = [0] * len(lengths), 0
    for begin in range(0, max(lengths, default=0), length):
        for i, count in enumerate(lengths):
            if begin < count and total < tokens:
                taken[i] += 1
                total += min(length, count - begin)
    return taken


def draw_excerpts(
    documents: Documents, tokenizer: Tokenizer, length: int, tokens: int
) -> Iterator[Excerpt]:
    """Pieces with about ``tokens`` tokens, in the order of the text: equally many of each document
    as far as it has them, and spread evenly over it.

    Documents are read until a piece of each would do, or there are no more; those that are used,
    twice.
    """
    lengths: dict[int, int] = {}
    enough = 0
    for index in order_evenly(len(documents)):
        lengths[index] = len(_join_target_bytes(Pieces(documents[index], tokenizer, length)))
        enough += min(length, lengths[index])
        if enough >= tokens:
            break
    taken = dict(zip(lengths, share_pieces([*lengths.values()], length, tokens), strict=True))
    for index in sorted(taken):
        if taken[index]:
            document = documents[index]
            if not isinstance(document, bytes):  # tokens: their text
                document = tokenizer.decode(encode_document(document, tokenizer)[0]).encode()
            yield from _cut_excerpts(index, document, tokenizer, length, taken[index])


def _cut_excerpts(
    index: int, text: bytes, tokenizer: Tokenizer, length: int, count: int
) -> Iterator[Excerpt]:
    pieces = Pieces(text, tokenizer, length)
    # Inputs are the targets one place later; what is before the text stands for nothing.
    ends = np.cumsum(np.append(0, _join_target_bytes(pieces)))
    begins = np.append(0, ends[:-1])
    for i in range(count):
        number = (2 * i + 1) * len(pieces) // (2 * count)
        inputs = pieces[number].tokens[:-1]
        place = number * length + np.arange(len(inputs))
        yield Excerpt(index, text, inputs, place >= pieces.before, begins[place], ends[place])


def _join_target_bytes(pieces: Pieces) -> np.ndarray:
    """The bytes of all targets of a document; empty if it has no pieces."""
    found = [pieces[i].target_bytes for i in range(len(pieces))]
    return np.concatenate([np.zeros(0, np.int32), *found])
