"""How many bytes each token stands for, by a table of the vocabulary: quicker than by the places
that the library tells. It can be so for tokenizers of bytes (GPT-2's kind) that leave a text as it
is, which most released ones do.
"""

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

from moejax.data.token_bytes import TokenBytes

_PRE_TOKENIZERS = {"ByteLevel", "Split", "Digits", "Punctuation", "Sequence"}
_REMOVED = "Removed"


class TokenLengths:
    """Counts the bytes of tokens by a table."""

    def __init__(self, lengths_V: np.ndarray, *, composed: bool) -> None:
        """``composed``: whether the tokenizer first composes characters (Unicode's NFC)."""
        self._lengths_V, self._composed = lengths_V, composed

    def leaves(self, text: str) -> bool:
        """Whether the tokenizer reads this very text."""
        return not self._composed or unicodedata.is_normalized("NFC", text)

    def count(self, ids: np.ndarray, text: bytes) -> np.ndarray | None:
        """The bytes of ``text`` that each of its tokens stands for, int32[n]; a character split
        over several tokens counts for the first of them. None if the tokens are not all of it.
        """
        ends = np.cumsum(self._lengths_V[ids])
        if int(ends[-1]) != len(text):
            return None
        # An end inside a character goes to the end of that, at most three bytes further.
        bytes_ = np.frombuffer(text, np.uint8)
        for _ in range(3):
            inside = np.flatnonzero(bytes_[np.minimum(ends, len(text) - 1)] & 0xC0 == 0x80)
            inside = inside[ends[inside] < len(text)]
            if not len(inside):
                break
            ends[inside] += 1
        return np.diff(ends, prepend=0).astype(np.int32)


def find_lengths(backend: Any, known: Mapping[str, int]) -> TokenLengths | None:
    """The table of a ``tokenizers.Tokenizer`` that knows the tokens ``known``; None for kinds whose
    tokens alone do not tell it.
    """
    data = json.loads(backend.to_str())
    normalizer, before = data["normalizer"], data["pre_tokenizer"]
    if normalizer not in (None, {"type": "NFC"}) or before is None:
        return None
    stages = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    model, added = data["model"], data["added_tokens"]
    fits = (
        model["type"] == "BPE"
        and "ByteLevel" in {stage["type"] for stage in stages}
        and all(_keeps_text(stage) for stage in stages)
        and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        and not any(one["lstrip"] or one["rstrip"] for one in added)
    )
    if not fits:
        return None
    table = TokenBytes(known, frozenset(), "ByteLevel")
    lengths_V = np.asarray([len(table.spell(i)) for i in range(max(known.values()) + 1)])
    for one in added:  # these are found in the text as they are
        lengths_V[one["id"]] = len(one["content"].encode("utf-8", "surrogatepass"))
    return TokenLengths(lengths_V, composed=normalizer is not None)


def _keeps_text(stage: Mapping[str, Any]) -> bool:
    return (
        stage["type"] in _PRE_TOKENIZERS
        and not stage.get("add_prefix_space", False)
        and stage.get("behavior") != _REMOVED
    )
