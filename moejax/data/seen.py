"""What a model sees in the rows of a batch: texts, and which of their tokens are learned."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from moejax.data.batches import Batch
from moejax.data.mixed_rows import SOURCES
from moejax.data.tokenizer import Tokenizer


class Part(NamedTuple):
    """Neighbouring tokens that are all learned, or all read alone."""

    text: str
    """With the names of control tokens; what no terminal should get is U+FFFD."""
    tokens: int
    learned: bool


class Row(NamedTuple):
    """One row of a batch."""

    texts: list[list[Part]]
    """The pieces that are packed into it."""
    positions: int
    padding: int
    source: str = ""
    """Of a mixture: which source it is of."""

    @property
    def learned(self) -> int:
        """Targets that are learned."""
        return sum(part.tokens for text in self.texts for part in text if part.learned)


def list_rows(batch: Batch, tokenizer: Tokenizer, names: Sequence[str] = ()) -> Iterator[Row]:
    """What is in the rows of a batch, of a mixture of the sources of these names. The first token
    of a text is read, and no target.
    """
    known = SOURCES in batch
    sources = [names[i] for i in batch[SOURCES]] if known else [""] * len(batch["segments"])
    for source, segments, inputs, targets, counted in zip(
        sources,
        batch["segments"],
        batch["inputs"],
        batch["targets"],
        batch.get("counted", np.ones_like(batch["segments"])),
        strict=True,
    ):
        texts = []
        for segment in range(1, int(segments.max(initial=0)) + 1):
            here = segments == segment
            ids, learned = [inputs[here][0], *targets[here]], [0, *counted[here]]
            pairs = groupby(zip(ids, learned, strict=True), key=lambda pair: bool(pair[1]))
            runs = [(flag, [int(token) for token, _ in group]) for flag, group in pairs]
            texts.append([Part(_make_visible(tokenizer.show(r)), len(r), flag) for flag, r in runs])
        yield Row(texts, len(segments), int((segments == 0).sum()), source)


def _make_visible(text: str) -> str:
    """Letters that would move the cursor, or colour a terminal, are replaced."""
    kept = (c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return "".join(kept)
