"""A text while it is generated."""

from collections.abc import Callable
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
        give_out: Callable[[str], None],
    ) -> None:
        self.prompt = prompt
        self.ended: Literal["end", "stop", "length"] | None = None
        self.ids: list[int] = []
        """The tokens after the prompt so far, without the one that ended the text."""
        self._pieces: list[str] = []
        self._stream = TextStream(tokenizer, prompt.tolist(), sampling.stop)
        self._ends, self._tokens, self._give_out = ends, sampling.tokens, give_out

    def add(self, token: int) -> None:
        """Add a token; after the end it is ignored."""
        if self.ended:
            return
        if token in self._ends:
            self.ended = "end"
        else:
            self.ids.append(token)
            self._give(self._stream.push(token))
            if len(self.ids) == self._tokens:
                self.ended = "length"
        if self.ended and not self._stream.stopped:
            self._give(self._stream.finish())
        if self._stream.stopped:
            self.ended = "stop"

    @property
    def length(self) -> int:
        """Tokens of the prompt and of what came after it so far."""
        return len(self.prompt) + len(self.ids)

    def _give(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            self._give_out(piece)

    def continuation(self) -> Continuation:
        """All that came after the prompt, when it has ended."""
        assert self.ended is not None
        return Continuation(text="".join(self._pieces), ids=self.ids, ended=self.ended)
