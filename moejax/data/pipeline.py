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

from moejax.config import DataConfig, check
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

    def __getitem__(self, index: int) -> Piece:
        start, stop = index * self._length, (index + 1) * self._length
        return Piece(self._tokens[start : stop + 1], self._target_bytes[start:stop])


class _CutDocuments(grain.experimental.FlatMapTransform):
    """Documents to pieces."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self._length = length

    def flat_map(self, element: bytes) -> Pieces:
        return Pieces(element, self._tokenizer, self._length)


def _columns(piece: Piece) -> dict[str, np.ndarray]:
    """Inputs, targets and bytes side by side: one array packs faster than three."""
    columns = np.empty((len(piece.target_bytes), 3), np.int32)
    columns[:, 0] = piece.tokens[:-1]
    columns[:, 1] = piece.tokens[1:]
    columns[:, 2] = piece.target_bytes
    return {"piece": columns}


def _batch(rows: dict[str, np.ndarray]) -> Batch:
    """Packed rows, stacked, to the named arrays of a batch."""
    inputs, targets, target_bytes = np.ascontiguousarray(np.moveaxis(rows["piece"], -1, 0))
    return {
        "inputs": inputs,
        "targets": targets,
        "segments": rows["piece_segment_ids"],
        "positions": rows["piece_positions"],
        "bytes": target_bytes,
    }


def _pieces(documents: grain.MapDataset, tokenizer: Tokenizer, length: int) -> grain.IterDataset:
    # One thread does everything: the prefetch thread behind the last stage.
    read = documents.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return grain.experimental.FlatMapIterDataset(read, _CutDocuments(tokenizer, length))


def _packed(pieces: grain.IterDataset, length: int) -> grain.IterDataset:
    return grain.experimental.FirstFitPackIterDataset(
        pieces.map(_columns),
        length_struct={"piece": length},
        num_packing_bins=_ROWS_PACKED_TOGETHER,
        shuffle_bins=False,
    )


class TrainBatches:
    """An endless iterator over training batches that can be resumed exactly."""

    def __init__(self, batches: grain.IterDataset, layout: dict[str, Any]) -> None:
        self._layout = layout
        self._iterator = iter(batches)
        # Grain's iterators must be gone before the interpreter takes modules apart.
        weakref.finalize(self, self.__dict__.clear)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """A small JSON-able dict: the place after the batches handed out so far."""
        return {"layout": dict(self._layout), "grain": self._iterator.get_state()}

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
        self._iterator.set_state(state["grain"])

    def close(self) -> None:
        """Stop the background thread."""
        self._iterator.close()


def train_batches(
    source: Documents,
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    batch_size: int,
    shard: int = 0,
    shards: int = 1,
) -> TrainBatches:
    """Training batches of one process: ``batch_size`` rows each, without end.

    Process ``shard`` of ``shards`` takes every ``shards``-th document, shuffles them anew in every
    epoch, and shuffles the pieces of ``config.shuffle_window`` neighbours among each other. Raises
    ``ConfigError`` if there are fewer documents than processes.
    """
    check(
        len(source) >= shards,
        f"{len(source)} training documents do not go round {shards} processes: each needs one.",
    )
    length = config.sequence_length
    documents = grain.MapDataset.source(source)[shard::shards].shuffle(config.seed).repeat()
    pieces = grain.experimental.WindowShuffleIterDataset(
        _pieces(documents, tokenizer, length), window_size=config.shuffle_window, seed=config.seed
    )
    batches = _packed(pieces, length).batch(batch_size, drop_remainder=True).map(_batch)
    layout = {
        "shards": shards,
        "shard": shard,
        "sequence_length": length,
        "batch_size": batch_size,
        "seed": config.seed,
        "shuffle_window": config.shuffle_window,
        "tokenizer": tokenizer.fingerprint,
        "documents": len(source),
    }
    prefetched = grain.experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=config.prefetch
    )
    return TrainBatches(prefetched, layout)


def validation_batches(
    source: Documents,
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    batch_size: int,
    shard: int = 0,
    shards: int = 1,
    limit: int | None = None,
) -> list[Batch]:
    """The held-out text in order: one process' rows of every batch of ``batch_size`` rows.

    All processes pack the same rows and take theirs, so that all have equally many batches. The
    last batch is filled up with rows of padding. ``limit`` keeps the first so many batches. Raises
    ``ConfigError`` if ``batch_size`` does not divide by ``shards``.
    """
    check(
        batch_size % shards == 0,
        f"--data.eval-batch-size {batch_size} is not divisible by the {shards} processes.",
    )
    pieces = _pieces(grain.MapDataset.source(source), tokenizer, config.sequence_length)
    packed = iter(_packed(pieces, config.sequence_length).batch(batch_size))
    first = itertools.islice(packed, limit)
    return [_share(_batch(rows), batch_size, shard, shards) for rows in first]


def _share(batch: Batch, batch_size: int, shard: int, shards: int) -> Batch:
    """The rows of one process, after filling the batch up with padding."""
    own = slice(shard * batch_size // shards, (shard + 1) * batch_size // shards)
    missing = batch_size - len(batch["inputs"])
    return {name: np.pad(x_BN, ((0, missing), (0, 0)))[own] for name, x_BN in batch.items()}
