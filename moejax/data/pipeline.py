"""From documents to packed batches, by Grain.

A document of tokens t_0 .. t_{n-1} is read as the inputs ``[beginning, t_0, ..., t_{n-1}]`` with
the targets ``[t_0, ..., t_{n-1}, end]``, so that every target of every document is predicted
exactly once; ``text_edges`` says which tokens begin and end it. It is cut into pieces of at most N
positions, and whole pieces are packed into rows.

A batch is a dict of int32 arrays [B, N]:

``inputs``, ``targets``  ids of tokens; 0 where there is padding
``segments``             0 for padding, 1, 2, ... for the pieces packed into a row
``positions``            position within the piece
``bytes``                bytes of text that the target stands for; 0 for beginnings, ends, padding
``counted``              of conversations: 1 for targets that are learned, the assistant's; others 0

A conversation has its beginning and its end in its template: its inputs are all its tokens but the
last, its targets all but the first. ``bytes`` of targets that are not learned are 0.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from moejax.config.data import DataConfig
from moejax.data.batches import (
    Batch,
    TrainBatches,
    pad_batch,
    prefetch,
    read_in_order,
    split_rows_by_stream,
)
from moejax.data.check_tokens import check_some_tokens
from moejax.data.documents import Conversation, Document, Documents
from moejax.data.lost_text import LostText
from moejax.data.tokenizer import Tokenizer, encode_document

# Rows that pieces are packed into together: more rows, less padding, a longer resume.
_ROWS_PACKED_TOGETHER = 64


class Piece(NamedTuple):
    """At most N targets of one document, as views of it."""

    tokens: np.ndarray
    """One more than the targets: the inputs are all but the last, the targets all but the first."""
    target_bytes: np.ndarray
    counted: np.ndarray | None = None
    """Which targets are learned, int32 of 0 and 1; None: all."""


class Pieces(Sequence[Piece]):
    """The pieces of one document, cut when asked for."""

    def __init__(self, document: Document, tokenizer: Tokenizer, length: int) -> None:
        ids, counts = encode_document(document, tokenizer)
        self.ids = ids
        self.before = 0
        """Tokens before the text; the first of all is no target."""
        self._counted = None
        if isinstance(document, Conversation):
            self._tokens, self._counted = ids, document.spoken[1:]
            self._target_bytes = counts[1:] * self._counted
        else:
            before, end = tokenizer.edges.before_document, tokenizer.edges.end
            self.before = len(before)
            self._tokens = np.concatenate([before, ids, [end]]).astype(np.int32)
            self._target_bytes = np.pad(counts, (self.before - 1, 1))
        self._length = length
        # A document without tokens has nothing to predict.
        self._count = -(-len(self._target_bytes) // length) if len(ids) else 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Piece:  # type: ignore[override] # never a slice
        start, stop = index * self._length, (index + 1) * self._length
        counted = None if self._counted is None else self._counted[start:stop]
        return Piece(self._tokens[start : stop + 1], self._target_bytes[start:stop], counted)


class _CutDocuments(grain.experimental.FlatMapTransform):
    """Documents to pieces."""

    def __init__(self, tokenizer: Tokenizer, length: int, lost: LostText | None) -> None:
        self._tokenizer = tokenizer
        self._length = length
        self._lost = lost

    def flat_map(self, element: Document) -> Pieces:
        pieces = Pieces(element, self._tokenizer, self._length)
        if self._lost is not None:
            self._lost.add(element, pieces.ids, self._tokenizer)
        return pieces


def _stack_columns(piece: Piece) -> dict[str, np.ndarray]:
    """Inputs, targets and bytes side by side: one array packs faster than three."""
    count = 3 if piece.counted is None else 4
    columns = np.empty((len(piece.target_bytes), count), np.int32)
    columns[:, 0] = piece.tokens[:-1]
    columns[:, 1] = piece.tokens[1:]
    columns[:, 2] = piece.target_bytes
    if piece.counted is not None:
        columns[:, 3] = piece.counted
    return {"piece": columns}


def _make_batch(rows: dict[str, np.ndarray]) -> Batch:
    """Packed rows, stacked, to the named arrays of a batch."""
    inputs, targets, target_bytes, *counted = np.ascontiguousarray(
        np.moveaxis(rows["piece"], -1, 0)
    )
    return {
        "inputs": inputs,
        "targets": targets,
        "segments": rows["piece_segment_ids"],
        "positions": rows["piece_positions"],
        "bytes": target_bytes,
        **({"counted": counted[0]} if counted else {}),
    }


def _cut_pieces(
    documents: grain.MapDataset, tokenizer: Tokenizer, length: int, lost: LostText | None = None
) -> grain.IterDataset:
    cut = _CutDocuments(tokenizer, length, lost)
    return grain.experimental.FlatMapIterDataset(read_in_order(documents), cut)


def _pack_rows(pieces: grain.IterDataset, length: int) -> grain.IterDataset:
    return grain.experimental.FirstFitPackIterDataset(
        pieces.map(_stack_columns),
        length_struct={"piece": length},
        num_packing_bins=_ROWS_PACKED_TOGETHER,
        shuffle_bins=False,
    )


def train_batches(
    source: Documents,
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
) -> TrainBatches:
    """Training batches of ``batch_size`` rows, without end; of each, the ``rows`` (indices,
    ascending) of one process, by default all.

    The text is read as ``config.shards`` streams. Stream s takes the documents s, s + shards, ...,
    shuffles them anew in every epoch, shuffles the pieces of ``config.shuffle_window`` neighbours
    among each other, and fills the s-th part of every batch. Only streams that have some of
    ``rows`` are read. Raises ``ConfigError`` if there are fewer documents than streams, or if the
    documents of a stream have no token.
    """
    shards = config.shards
    own_rows = split_rows_by_stream(len(source), shards, batch_size, rows)
    for number in own_rows:
        own, numbers = "", range(number, len(source), shards)
        if shards > 1:
            own = f" of stream {number} of --data.shards {shards} (every document"
            own += f" {number} + n * {shards})"
        check_some_tokens(source, numbers, tokenizer, f"the training text{own}")
    part = batch_size // shards
    layout = {
        "shards": shards,
        "sequence_length": config.sequence_length,
        "batch_size": batch_size,
        "seed": config.seed,
        "shuffle_window": config.shuffle_window,
        "tokenizer": tokenizer.fingerprint,
        "documents": len(source),
    }
    if config.chat_template is not None:
        layout |= {"chat_template": config.chat_template, "too_long": config.too_long}
    streams = {number: _open_stream(source, tokenizer, config, number, part) for number in own_rows}
    return TrainBatches(streams, own_rows, layout)


def _open_stream(
    source: Documents, tokenizer: Tokenizer, config: DataConfig, number: int, rows: int
) -> grain.IterDataset:
    """One stream of the training text, ``rows`` rows at a time."""
    length = config.sequence_length
    documents = grain.MapDataset.source(source)[number :: config.shards]
    pieces = grain.experimental.WindowShuffleIterDataset(
        _cut_pieces(documents.shuffle(config.seed).repeat(), tokenizer, length),
        window_size=config.shuffle_window,
        seed=config.seed,
    )
    batches = _pack_rows(pieces, length).batch(rows, drop_remainder=True).map(_make_batch)
    return prefetch(batches, config.prefetch)


def validation_batches(
    source: Documents,
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
    limit: int | None = None,
    lost: LostText | None = None,
) -> Iterator[Batch]:
    """The held-out text in order, in batches of ``batch_size`` rows; of each, the ``rows``
    (indices) of one process, by default all. They are made when they are asked for.

    All processes pack the same rows and take theirs, so that all have equally many batches. The
    last batch is filled up with rows of padding. ``limit`` ends it after the first so many batches.
    ``lost`` counts what the tokenizer loses of the documents that are read.
    """
    documents = grain.MapDataset.source(source)
    pieces = _cut_pieces(documents, tokenizer, config.sequence_length, lost)
    packed = iter(_pack_rows(pieces, config.sequence_length).batch(batch_size))
    own = slice(None) if rows is None else rows
    for packed_rows in itertools.islice(packed, limit):
        batch = pad_batch(_make_batch(packed_rows), batch_size)
        yield {name: x_BN[own] for name, x_BN in batch.items()}
