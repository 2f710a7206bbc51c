"""How many bytes of text the tokens stand for that were made earlier, without their text."""

from collections.abc import Mapping
from typing import Any

import numpy as np

_WORD_BEGINS = "\u2581"
"""SentencePiece's sign for a space."""


def name_bytes() -> dict[str, int]:
    """GPT-2's names of bytes: themselves where they can be printed, else from 256 on."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {chr(b) if b in printed else chr(next(others)): b for b in range(256)}


class TokenBytes:
    """The text of each token of a vocabulary, as far as a token alone tells it.

    It tells it exactly for tokenizers of bytes (GPT-2's kind), and to a byte or two of a document
    for SentencePiece's. Others (WordPiece) do not say where there were spaces: their counts are
    those of the letters.
    """

    def __init__(self, known: Mapping[str, int], control: frozenset[int], decoder: Any) -> None:
        """``known``: the ids of tokens by name; ``control``: those that stand for no text;
        ``decoder``: that of the library.
        """
        by_bytes = "ByteLevel" in str(decoder)
        names = name_bytes()
        self._text = [b""] * (max(known.values()) + 1)
        for name, token in known.items():
            if token in control:
                continue
            if by_bytes and all(letter in names for letter in name):
                self._text[token] = bytes(names[letter] for letter in name)
            elif len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
                self._text[token] = bytes([int(name[3:5], 16)])
            else:
                name = name.replace(_WORD_BEGINS, " ").removeprefix("##")
                self._text[token] = name.encode("utf-8", "surrogatepass")

    def spell(self, token: int) -> bytes:
        """The bytes of one token; none for a control token, or one that is not known."""
        return self._text[token] if token < len(self._text) else b""

    def count(self, ids: np.ndarray) -> np.ndarray:
        """The bytes that each id stands for, int32 [n]. A character split over several tokens
        counts for the first of them.
        """
        texts = [self.spell(i) for i in ids.tolist()]
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        whole = np.frombuffer(b"".join(texts), np.uint8)
        # A byte inside a character belongs to the token that has the character's first one.
        starts = (whole & 0xC0) != 0x80
        starts[:1] = True
        token = np.repeat(np.arange(len(texts)), lengths)
        first = np.maximum.accumulate(np.where(starts, np.arange(len(whole)), 0))
        return np.bincount(token[first], minlength=len(texts)).astype(np.int32)
