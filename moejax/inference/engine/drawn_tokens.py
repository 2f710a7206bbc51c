"""The tokens of a call, and what is told of each.

Letters: P: modules that make drafts; X: the best tokens that scores are given of.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from moejax.inference.engine.calls import Drawn
from moejax.inference.engine.requests import Token
from moejax.inference.engine.texts import Text


class DrawnTokens:
    """What a call tells of its tokens, read from the device where it is asked for."""

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn
        self._there: dict[str, Any] = {}
        self.have_drafts = drawn.draft_BP is not None
        self._token_B1 = np.asarray(drawn.token_B1).tolist()

    def _array(self, name: str) -> np.ndarray:
        if name not in self._there:
            self._there[name] = np.asarray(getattr(self._drawn, name))
        return self._there[name]

    def read(self, row: int, place: int, last: int, text: Text) -> Token:
        """The token of a text's row at one of the places at which tokens were drawn, which is after
        the row's token ``last``.
        """
        token = self._token_B1[row][place]
        if text.plain:
            return _plain(token)
        request = text.request
        logprob: float | None = None
        best: tuple[tuple[int, float], ...] = ()
        routes = {}
        if request.logprobs is not None:
            at = row, place
            logprob = float(self._array("logprob_B1")[at])
            ids = self._array("best_B1X")[at][: request.logprobs].tolist()
            best = tuple(zip(ids, self._array("best_logprob_B1X")[at].tolist(), strict=False))
        if request.routes:
            routes = {
                "expert_LK": self._array("expert_BNLK")[row, last].copy(),
                "weight_LK": self._array("weight_BNLK")[row, last].copy(),
            }
        return Token(id=token, logprob=logprob, best=best, **routes)

    def drafts(self, row: int) -> list[int]:
        """What modules of the model guess to come after the last token of a row."""
        return self._array("draft_BP")[row].tolist()


@lru_cache(maxsize=2**16)
def _plain(token: int) -> Token:
    """A token of which nothing else is told: made once, as many texts have the same ones."""
    return Token(id=token)
