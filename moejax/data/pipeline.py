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
``sources_B``            of mixtures, [B]: the source of each row

A conversation has its beginning and its end in its template: its inputs are all its tokens but the
last, its targets all but the first. ``bytes`` of targets that are not learned are 0.
"""

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import grain
import numpy as np

from moejax.config.checks import check
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
from moejax.data.mixed_rows import SOURCES, MixedRows
from moejax.data.mixture import Plan
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


def _stack_columns(piece: Piece, learns_parts: bool) -> dict[str, np.ndarray]:
    """Inputs, targets and bytes side by side: one array packs faster than three. Where some sources
    are conversations, all targets of the others are learned.
    """
    count = 4 if learns_parts or piece.counted is not None else 3
    columns = np.ones((len(piece.target_bytes), count), np.int32)
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
        **({SOURCES: rows[SOURCES]} if SOURCES in rows else {}),
    }


def _cut_pieces(
    documents: grain.MapDataset, tokenizer: Tokenizer, length: int, lost: LostText | None = None
) -> grain.IterDataset:
    cut = _CutDocuments(tokenizer, length, lost)
    return grain.experimental.FlatMapIterDataset(read_in_order(documents), cut)


def _pack_rows(pieces: grain.IterDataset, config: DataConfig) -> grain.IterDataset:
    return grain.experimental.FirstFitPackIterDataset(
        pieces.map(partial(_stack_columns, learns_parts=config.learns_parts)),
        length_struct={"piece": config.sequence_length},
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
    own_rows = split_rows_by_stream(len(source), config.shards, batch_size, rows)
    _check_streams(source, tokenizer, config.shards, own_rows, "the training text")
    part = batch_size // config.shards
    layout = _describe_layout(tokenizer, config, batch_size) | {"documents": len(source)}
    streams = {
        number: _batch_rows(_open_rows(source, tokenizer, config, number), config, part)
        for number in own_rows
    }
    return TrainBatches(streams, own_rows, layout)


def mixed_train_batches(
    sources: Mapping[str, Documents],
    tokenizer: Tokenizer,
    config: DataConfig,
    plan: Plan,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
) -> TrainBatches:
    """Training batches of a mixture, as ``train_batches`` makes them of one source: each row is of
    the source that ``plan`` draws for it. Each source is shuffled and packed by itself.
    """
    shards = config.shards
    taken = {number: name for number, name in enumerate(plan.names) if plan.takes(number)}
    own_rows: dict[int, slice | np.ndarray] = {}
    layout = _describe_layout(tokenizer, config, batch_size)
    layout |= {f"source {name}": words for name, words in plan.describe().items()}
    for name in taken.values():
        documents, words = sources[name], f"the training text of source {name}"
        check(
            len(documents) >= shards,
            f"source {name} has {len(documents)} documents, which do not go round --data.shards"
            f" {shards}: each stream needs one.",
        )
        own_rows = split_rows_by_stream(len(documents), shards, batch_size, rows)
        _check_streams(documents, tokenizer, shards, own_rows, words)
        layout[f"documents of {name}"] = len(documents)
    part = batch_size // shards
    streams = {}
    for number in own_rows:
        parts = {
            i: _open_rows(sources[name], tokenizer, _with_own_seed(config, name), number)
            for i, name in taken.items()
        }
        place = slice(number * part, (number + 1) * part)
        mixed = MixedRows(parts, plan, place, batch_size, config.seed)
        streams[number] = _batch_rows(mixed, config, part)
    return TrainBatches(streams, own_rows, layout)


def _with_own_seed(config: DataConfig, name: str) -> DataConfig:
    """Sources of equally many documents are not shuffled alike."""
    return replace(config, seed=(config.seed ^ zlib.crc32(name.encode())) % 2**31)


def _check_streams(
    source: Documents, tokenizer: Tokenizer, shards: int, streams: Iterable[int], what: str
) -> None:
    for number in streams:
        own, numbers = "", range(number, len(source), shards)
        if shards > 1:
            own = f" of stream {number} of --data.shards {shards} (every document"
            own += f" {number} + n * {shards})"
        check_some_tokens(source, numbers, tokenizer, f"{what}{own}")


def _describe_layout(tokenizer: Tokenizer, config: DataConfig, batch_size: int) -> dict[str, Any]:
    """What a place in the stream belongs to."""
    layout: dict[str, Any] = {
        "shards": config.shards,
        "sequence_length": config.sequence_length,
        "batch_size": batch_size,
        "seed": config.seed,
        "shuffle_window": config.shuffle_window,
        "tokenizer": tokenizer.fingerprint,
    }
    if config.used_template is not None:
        layout |= {"chat_template": config.used_template, "too_long": config.too_long}
    return layout


def _open_rows(
    source: Documents, tokenizer: Tokenizer, config: DataConfig, number: int
) -> grain.IterDataset:
    """The rows of one stream of a training text."""
    documents = grain.MapDataset.source(source)[number :: config.shards]
    documents = documents.shuffle(config.seed).repeat()
    pieces = grain.experimental.WindowShuffleIterDataset(
        _cut_pieces(documents, tokenizer, config.sequence_length),
        window_size=config.shuffle_window,
        seed=config.seed,
    )
    return _pack_rows(pieces, config)


def _batch_rows(rows: grain.IterDataset, config: DataConfig, count: int) -> grain.IterDataset:
    """So many rows at a time, prepared ahead."""
    batches = rows.batch(count, drop_remainder=True).map(_make_batch)
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
    packed = iter(_pack_rows(pieces, config).batch(batch_size))
    own = slice(None) if rows is None else rows
    for packed_rows in itertools.islice(packed, limit):
        batch = pad_batch(_make_batch(packed_rows), batch_size)
        yield {name: x_BN[own] for name, x_BN in batch.items()}
