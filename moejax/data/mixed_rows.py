"""The rows of several sources as one stream, in the order of a mixture."""

from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from moejax.data.mixture import Plan

SOURCES = "sources_B"
"""In a batch of a mixture: the source of each row, its number in the order of names."""


class MixedRows(grain.IterDataset):
    """Takes each row from the source that ``plan`` draws for it, without end."""

    def __init__(
        self,
        sources: Mapping[int, grain.IterDataset],
        plan: Plan,
        part: slice,
        size: int,
        seed: int,
    ) -> None:
        """``sources``: the rows of each by its number, of those of which any are taken; ``part``:
        which rows of batches of ``size`` the stream fills.
        """
        super().__init__(list(sources.values()))
        self.numbers = list(sources)
        self.plan, self.part, self.size, self.seed = plan, part, size, seed

    def __iter__(self) -> grain.DatasetIterator:
        return _MixedIterator(self, [iter(source) for source in self.parents])


class _MixedIterator(grain.DatasetIterator):
    def __init__(self, rows: MixedRows, sources: Sequence[grain.DatasetIterator]) -> None:
        super().__init__(sources)
        self._rows = rows
        self._sources = dict(zip(rows.numbers, sources, strict=True))
        self._taken = 0
        self._batch, self._drawn = -1, np.zeros(0, np.int32)

    def __next__(self) -> dict[str, np.ndarray]:
        rows = self._rows
        batch, place = divmod(self._taken, rows.part.stop - rows.part.start)
        if batch != self._batch:
            drawn_B = rows.plan.draw(batch, rows.size, rows.seed)
            self._batch, self._drawn = batch, drawn_B[rows.part]
        source = self._drawn[place]
        row = next(self._sources[int(source)])
        self._taken += 1
        return row | {SOURCES: source}

    def get_state(self) -> dict[str, Any]:
        sources = {name: source.get_state() for name, source in self._by_name()}
        return {"taken": self._taken, "sources": sources}

    def set_state(self, state: dict[str, Any]) -> None:
        self._taken = state["taken"]
        for name, source in self._by_name():
            source.set_state(state["sources"][name])

    def _by_name(self) -> list[tuple[str, grain.DatasetIterator]]:
        return [(self._rows.plan.names[n], source) for n, source in self._sources.items()]
