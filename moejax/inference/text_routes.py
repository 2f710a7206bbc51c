"""The routes of texts while they are generated."""

from collections.abc import Sequence

import jax
import numpy as np

from moejax.inference.growing_text import GrowingText


class TextRoutes:
    """The routes of a batch of texts, whose prompts end in slot ``read``.

    Those of a text are int32 [T, L, K]: its tokens, prompt first, by layer and by choice. A token
    that the model has not read has -1: the last one, where a text is as long as was asked for.
    """

    def __init__(self, texts: list[GrowingText], read: int) -> None:
        self._texts, self._read = texts, read
        self._parts: list[list[np.ndarray]] = [[] for _ in texts]

    def add_prompts(self, routes: Sequence[jax.Array]) -> None:
        """Add what was chosen while the prompts were read: ``routes_BNLK``, or nothing."""
        for routes_BNLK in map(np.asarray, routes):
            for row, text in enumerate(self._texts):
                self._parts[row].append(routes_BNLK[row, self._read - len(text.prompt) :])

    def add(self, routes: Sequence[jax.Array], rows: list[int]) -> None:
        """Add what the next token of these rows chose: ``routes_B1LK``, or nothing."""
        for routes_B1LK in map(np.asarray, routes):
            for row in rows:
                self._parts[row].append(routes_B1LK[row])

    def finish(self) -> list[np.ndarray]:
        """The routes of each text, when all have ended."""
        return [self._join(row) for row in range(len(self._texts))]

    def _join(self, row: int) -> np.ndarray:
        routes_TLK = np.concatenate(self._parts[row])
        left = self._texts[row].length - len(routes_TLK)
        return np.pad(routes_TLK, ((0, left), (0, 0), (0, 0)), constant_values=-1)
