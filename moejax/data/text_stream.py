"""Text from tokens that come one by one, given out as soon as it is certain."""

from collections.abc import Sequence

from moejax.data.tokenizer import Tokenizer

_BEFORE = 8
"""Tokens of the prompt that are decoded together with the first ones after it: what a token means
may depend on its neighbours (SentencePiece leaves out a space at the beginning)."""
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What the bytes of an unfinished character are decoded to."""


class TextStream:
    """The text of the tokens after a prompt, up to the first stop string.

    Held back until more is known: bytes that are not yet a whole UTF-8 character, and the beginning
    of what may become a stop string. All that is given out, put together, is the text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._ids = [int(i) for i in prompt[-_BEFORE:]]
        self._start, self._end = 0, len(self._ids)
        """Of the tokens whose text was decoded last: a whole number of characters."""
        self._held = ""
        self._stop = stop
        self.stopped = False
        """Whether a stop string has come."""

    def push(self, token: int) -> str:
        """The text that one more token makes certain; often, but not always, its own."""
        self._ids.append(int(token))
        new = self._decode_new(last=False)
        return self._give_out(new, last=False) if self._stop else new

    def finish(self) -> str:
        """What was still held back, when no more tokens come."""
        return self._give_out(self._decode_new(last=True), last=True)

    def _decode_new(self, last: bool) -> str:
        """The text of the tokens that were not decoded before, if it is whole."""
        ids, decode = self._ids[self._start :], self._tokenizer.decode
        before, both = decode(ids[: self._end - self._start]), decode(ids)
        if len(both) <= len(before) or (both.endswith(_UNFINISHED) and not last):
            return ""
        self._start, self._end = self._end, len(self._ids)
        return both[len(before) :]

    def _give_out(self, new: str, last: bool) -> str:
        if not self._stop:
            return new
        text = self._held + new
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = 0 if last else max((count_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def count_begun(text: str, stop: str) -> int:
    """How many of the last characters of ``text`` are the first ones of ``stop``, not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
