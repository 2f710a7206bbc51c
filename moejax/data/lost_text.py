"""What a tokenizer loses of a text: what does not come back when its tokens are decoded."""

import unicodedata
from collections import Counter
from typing import Any

from moejax.data.characters import split_characters
from moejax.data.documents import Document, Documents
from moejax.data.tokenizer import Tokenizer, encode_document


class LostText:
    """Counts over documents as they are read."""

    def __init__(self) -> None:
        self.all_bytes, self.lost_bytes = 0, 0

    def add(self, document: Document, ids: Any, tokenizer: Tokenizer) -> None:
        """Count one document, whose tokens are ``ids`` (int32 [n]). What tokens that were made
        earlier have lost, nobody can say.
        """
        if not isinstance(document, bytes):
            self.all_bytes += int(tokenizer.count_bytes(ids).sum())
            return
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


def measure_loss(documents: Documents, tokenizer: Tokenizer, enough: int = 2**20) -> float:
    """The share that a tokenizer loses of the first documents, about ``enough`` bytes of them."""
    lost = LostText()
    for number in range(0 if tokenizer.is_lossless else len(documents)):
        document = documents[number]
        lost.add(document, encode_document(document, tokenizer)[0], tokenizer)
        if lost.all_bytes >= enough:
            break
    return lost.share


def describe_share(share: float) -> str:
    """A share above 0, in percent."""
    return f"{share:.2%}" if share >= 0.0001 else "less than 0.01%"
