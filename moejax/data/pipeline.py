"""From documents to packed batches, by Grain.

A document of tokens t_0 .. t_{n-1} is read as the inputs ``[boundary, t_0, ..., t_{n-1}]`` with the
targets ``[t_0, ..., t_{n-1}, boundary]``, so that every target of every document is predicted
exactly once. It is cut into pieces of at most N positions, and whole pieces are packed into rows.

A batch is a dict of int32 arrays [B, N]:

``inputs``, ``targets``  ids of tokens; 0 where there is padding
``segments``             0 for padding, 1, 2, ... for the pieces packed into a row
``positions``            position within the piece
``bytes``                bytes of text that the target stands for; 0 for boundaries and padding
"""

import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from moejax.config.checks import check
from moejax.config.data import DataConfig
from moejax.data.sources import Documents
from moejax.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]

# Rows that pieces are packed into together: more rows, less padding, a longer resume.
_ROWS_PACKED_TOGETHER = 64


class Piece(NamedTuple):
    """At most N targets of one document, as views of it."""

    tokens: np.ndarray
    """One more than the targets: the inputs are all but the last, the targets all but the first."""
    target_bytes: np.ndarray


class Pieces(Sequence[Piece]):
    """The pieces of one document, cut when asked for."""

    def __init__(self, document: bytes, tokenizer: Tokenizer, length: int) -> None:
        ids, counts = tokenizer.encode(document)
        edge = np.array([tokenizer.boundary], np.int32)
        self._tokens = np.concatenate([edge, ids, edge])
        self._target_bytes = np.append(counts, np.int32(0))
        self._length = length
        # A document without tokens has nothing to predict.
        self._count = -(-len(self._target_bytes) // length) if len(ids) else 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Piece:  # type: ignore[override] # never a slice
        start, stop = index * self._length, (index + 1) * self._length
        return Piece(self._tokens[start : stop + 1], self._target_bytes[start:stop])


class _CutDocuments(grain.experimental.FlatMapTransform):
    """Documents to pieces."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self._length = length

    def flat_map(self, element: bytes) -> Pieces:
        return Pieces(element, self._tokenizer, self._length)


def _stack_columns(piece: Piece) -> dict[str, np.ndarray]:
    """Inputs, targets and bytes side by side: one array packs faster than three."""
    columns = np.empty((len(piece.target_bytes), 3), np.int32)
    columns[:, 0] = piece.tokens[:-1]
    columns[:, 1] = piece.tokens[1:]
    columns[:, 2] = piece.target_bytes
    return {"piece": columns}


def _make_batch(rows: dict[str, np.ndarray]) -> Batch:
    """Packed rows, stacked, to the named arrays of a batch."""
    inputs, targets, target_bytes = np.ascontiguousarray(np.moveaxis(rows["piece"], -1, 0))
    return {
        "inputs": inputs,
        "targets": targets,
        "segments": rows["piece_segment_ids"],
        "positions": rows["piece_positions"],
        "bytes": target_bytes,
    }


def _cut_pieces(
    documents: grain.MapDataset, tokenizer: Tokenizer, length: int
) -> grain.IterDataset:
    # One thread does everything: the prefetch thread behind the last stage.
    read = documents.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return grain.experimental.FlatMapIterDataset(read, _CutDocuments(tokenizer, length))


def _pack_rows(pieces: grain.IterDataset, length: int) -> grain.IterDataset:
    return grain.experimental.FirstFitPackIterDataset(
        pieces.map(_stack_columns),
        length_struct={"piece": length},
        num_packing_bins=_ROWS_PACKED_TOGETHER,
        shuffle_bins=False,
    )


class TrainBatches:
    """An endless iterator over the rows that one process has of the training batches; it can be
    resumed exactly.
    """

    def __init__(
        self,
        streams: dict[int, grain.IterDataset],
        own_rows: dict[int, slice | np.ndarray],
        layout: dict[str, Any],
    ) -> None:
        """``own_rows``: which rows to take of each stream's part of a batch, by stream."""
        self._layout = layout
        self._own_rows = own_rows
        self._iterators = {number: iter(stream) for number, stream in streams.items()}
        # Grain's iterators must be gone before the interpreter takes modules apart.
        weakref.finalize(self, self.__dict__.clear)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        parts = [
            {name: x_BN[self._own_rows[number]] for name, x_BN in next(iterator).items()}
            for number, iterator in self._iterators.items()
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def get_state(self) -> dict[str, Any]:
        """A small JSON-able dict: the place after the batches handed out so far, in the streams
        that this process reads. ``join_states`` makes the whole one of those of all processes.
        """
        places = {str(number): it.get_state() for number, it in self._iterators.items()}
        return {"layout": dict(self._layout), "streams": places}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to the place of ``state``: the batches that follow are the ones that followed there.

        Raises ``ConfigError`` if the state is of a stream with other settings.
        """
        there = state.get("layout", {})
        changed = [name for name in self._layout if there.get(name) != self._layout[name]]
        check(
            not changed,
            "the place in the data belongs to another stream: "
            + ", ".join(
                f"{name} was {there.get(name)}, is {self._layout[name]}" for name in changed
            )
            + ". Resume with the same settings, or start a new run.",
        )
        # Runs that began when there was only one stream have its place under another name.
        places = state["streams"] if "streams" in state else {"0": state["grain"]}
        for number, iterator in self._iterators.items():
            iterator.set_state(places[str(number)])

    def close(self) -> None:
        """Stop the background threads."""
        for iterator in self._iterators.values():
            iterator.close()


def join_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The place in all streams, from ``TrainBatches.get_state()`` of all processes."""
    streams = {number: place for state in states for number, place in state["streams"].items()}
    return {"layout": states[0]["layout"], "streams": streams}


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
    ``rows`` are read. Raises ``ConfigError`` if there are fewer documents than streams.
    """
    shards = config.shards
    own_rows = split_rows_by_stream(len(source), shards, batch_size, rows)
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
    streams = {number: _open_stream(source, tokenizer, config, number, part) for number in own_rows}
    return TrainBatches(streams, own_rows, layout)


def split_rows_by_stream(
    count: int, shards: int, batch_size: int, rows: np.ndarray | None
) -> dict[int, slice | np.ndarray]:
    """Which rows of the part of each stream one process has; streams of which it has none are left
    out. Raises ``ConfigError`` if the ``count`` documents, or images, are fewer than the streams.
    """
    check(
        count >= shards,
        f"{count} training examples do not go round --data.shards {shards}: each stream needs one.",
    )
    part = batch_size // shards
    rows = np.arange(batch_size) if rows is None else rows
    own_rows = {int(number): rows[rows // part == number] % part for number in set(rows // part)}
    return {
        number: slice(None) if len(own) == part else own for number, own in sorted(own_rows.items())
    }


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
    return grain.experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=config.prefetch
    )


def validation_batches(
    source: Documents,
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
    limit: int | None = None,
) -> list[Batch]:
    """The held-out text in order, in batches of ``batch_size`` rows; of each, the ``rows``
    (indices) of one process, by default all.

    All processes pack the same rows and take theirs, so that all have equally many batches. The
    last batch is filled up with rows of padding. ``limit`` keeps the first so many batches.
    """
    pieces = _cut_pieces(grain.MapDataset.source(source), tokenizer, config.sequence_length)
    packed = iter(_pack_rows(pieces, config.sequence_length).batch(batch_size))
    own = slice(None) if rows is None else rows
    return [
        {name: x_BN[own] for name, x_BN in pad_batch(_make_batch(packed_rows), batch_size).items()}
        for packed_rows in itertools.islice(packed, limit)
    ]


def pad_batch(batch: Batch, batch_size: int) -> Batch:
    """The batch, filled up with rows of padding."""
    missing = batch_size - len(batch["segments"])
    return {name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for name, x in batch.items()}
