"""What a tokenizer loses of a text: what does not come back when its tokens are decoded."""

import unicodedata
from collections import Counter
from typing import Any

from moejax.data.tokenizer import Tokenizer, split_characters


class LostText:
    """Counts over documents as they are read."""

    def __init__(self) -> None:
        self.all_bytes, self.lost_bytes = 0, 0

    def add(self, document: bytes, ids: Any, tokenizer: Tokenizer) -> None:
        """Count one document, whose tokens are ``ids`` (int32 [n])."""
        self.all_bytes += len(document)
        self.lost_bytes += count_lost(document, ids, tokenizer)

    @property
    def share(self) -> float:
        """The share of all bytes that are lost."""
        return self.lost_bytes / max(1, self.all_bytes)


def count_lost(document: bytes, ids: Any, tokenizer: Tokenizer) -> int:
    """The bytes of characters in a document that its tokens, decoded, do not have.

    Characters are counted, not their places. Those that Unicode calls the same are (NFC); bytes
    that are no UTF-8 are U+FFFD before and after; and one space at the beginning is nothing, as
    many tokenizers add one there and take it away.
    """
    if tokenizer.is_lossless:
        return 0
    text = split_characters(document)[0].removeprefix(" ")
    back = tokenizer.decode(ids).removeprefix(" ")
    if text == back:
        return 0
    text, back = (unicodedata.normalize("NFC", one) for one in (text, back))
    missing = Counter(text) - Counter(back)
    return sum(len(character.encode()) * n for character, n in missing.items())
