"""The routes of texts while they are generated."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moejax.inference.engine.calls import Call, Drawn, Runner
from moejax.inference.growing_text import Continuation


class TextRoutes:
    """A runner that keeps the routes of the texts that it is called with, by the numbers of their
    prompts. Their tokens are read one behind another; behind drafts that were wrong, others come at
    the same positions.

    Those of a text are int32 [T, L, K]: its tokens, prompt first, by layer and by choice. A token
    after which none was drawn has -1: the last one, but where a token that ends texts came.
    """

    def __init__(self, runner: Runner) -> None:
        self.sizes, self._runner = runner.sizes, runner
        self._parts: dict[int, list[tuple[int, np.ndarray]]] = {}
        self._last: tuple[Call, Any] | None = None

    def extend(self, call: Call) -> Drawn:
        """As ``calls.Runner.extend``."""
        drawn = self._runner.extend(replace(call, routes=True))
        self._look()
        self._last = (call, drawn.expert_BNLK)
        return drawn

    def load_LE(self) -> np.ndarray | None:
        """As ``calls.Runner.load_LE``."""
        return self._runner.load_LE()

    def finish(
        self, prompts: Sequence[np.ndarray], texts: Sequence[Continuation]
    ) -> list[np.ndarray]:
        """The routes of each prompt and its text, when all have ended."""
        self._look()
        return [self._join(n, len(prompts[n]), text) for n, text in enumerate(texts)]

    def _look(self) -> None:
        """Read the routes of the last call, which may still be on its way."""
        if self._last is None:
            return
        (call, expert_BNLK), self._last = self._last, None
        expert_BNLK = np.asarray(expert_BNLK)
        for row in np.flatnonzero(call.count_B):
            part = (int(call.at_B[row]), expert_BNLK[row, : call.count_B[row]])
            self._parts.setdefault(int(call.draws["row_B"][row]), []).append(part)

    def _join(self, number: int, prompt: int, text: Continuation) -> np.ndarray:
        length = prompt + len(text.ids)
        # One call more may have been on its way when the text had ended.
        read = length - (text.ended != "end")
        parts = self._parts[number]
        routes_TLK = np.full((length, *parts[0][1].shape[1:]), -1, np.int32)
        for at, part in parts:
            routes_TLK[at : at + len(part)] = part[: max(0, length - at)]
        routes_TLK[read:] = -1
        return routes_TLK
