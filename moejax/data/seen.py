"""What a model sees in the rows of a batch: texts, and which of their tokens are learned."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np

from moejax.data.batches import Batch
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

    @property
    def learned(self) -> int:
        """Targets that are learned."""
        return sum(part.tokens for text in self.texts for part in text if part.learned)


def list_rows(batch: Batch, tokenizer: Tokenizer) -> Iterator[Row]:
    """What is in the rows of a batch. The first token of a text is read, and no target."""
    for segments, inputs, targets, counted in zip(
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
        yield Row(texts, len(segments), int((segments == 0).sum()))


def _make_visible(text: str) -> str:
    """Letters that would move the cursor, or colour a terminal, are replaced."""
    kept = (c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return "".join(kept)
