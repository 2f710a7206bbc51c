"""Batches of texts or of images: streams that can be resumed, and whose rows are whose."""

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from moejax.config.checks import check

Batch = dict[str, np.ndarray]


def pick_rows(
    read: Callable[[], Iterable[Batch]], count: int, rows: np.ndarray, size: int
) -> list[Batch]:
    """``count`` batches of rows that are spread evenly over all batches that ``read`` gives, in
    order; all of them where there are no more. They are read twice: first they are counted.
    ``rows``: the indices of this process's rows in batches of ``size``.
    """
    total = sum(1 for _ in read())
    if total <= count:
        return list(read())
    source_CB = np.arange(count * size).reshape(count, size)[:, rows] * total // (count * size)
    picked: list[dict[str, list[np.ndarray]]] = [{} for _ in range(count)]
    for number, batch in enumerate(itertools.islice(read(), int(source_CB.max()) + 1)):
        for c, i in np.argwhere(source_CB == number):
            for name, x_BN in batch.items():
                picked[c].setdefault(name, []).append(x_BN[i].copy())
    return [{name: np.stack(found) for name, found in one.items()} for one in picked]


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


def read_in_order(examples: grain.MapDataset) -> grain.IterDataset:
    """The examples one after the other. One thread does everything: that of ``prefetch``."""
    return examples.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def prefetch(batches: grain.IterDataset, count: int) -> grain.IterDataset:
    """The batches, of which a thread makes the next ``count`` ahead."""
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=count)


def pad_batch(batch: Batch, batch_size: int) -> Batch:
    """The batch, filled up with rows of padding."""
    missing = batch_size - len(batch["segments"])
    return {name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for name, x in batch.items()}
