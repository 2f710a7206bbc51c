"""A text while it is generated."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moejax.data.text_stream import TextStream
from moejax.data.tokenizer import Tokenizer
from moejax.inference.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What was generated after one prompt."""

    text: str
    ids: list[int]
    """The tokens, with those of a stop string, without the one that ended the text."""
    ended: Literal["end", "stop", "length"]
    """A token that ends texts came, or a stop string, or all the tokens asked for."""


class GrowingText:
    """One prompt and what comes after it, as it grows."""

    def __init__(
        self,
        prompt: np.ndarray,
        sampling: Sampling,
        ends: frozenset[int],
        tokenizer: Tokenizer,
    ) -> None:
        self.ended: Literal["end", "stop", "length"] | None = None
        self.ids: list[int] = []
        """The tokens after the prompt so far, without the one that ended the text."""
        self._stream = TextStream(tokenizer, prompt.tolist(), sampling.stop)
        self._ends, self._tokens = ends, sampling.tokens

    def add(self, token: int) -> str:
        """Add a token, before the end: the text that is certain with it."""
        new = ""
        if token in self._ends:
            self.ended = "end"
        else:
            self.ids.append(token)
            new = self._stream.push(token)
            if len(self.ids) == self._tokens:
                self.ended = "length"
        if self.ended and not self._stream.stopped:
            new += self._stream.finish()
        if self._stream.stopped:
            self.ended = "stop"
        return new
