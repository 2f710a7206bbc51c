"""What a corpus is made of."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Encoded(NamedTuple):
    """A text with its tokens."""

    ids: np.ndarray
    """int32 [n]."""
    target_bytes: np.ndarray
    """The bytes that each stands for, int32 [n]."""


class Conversation(NamedTuple):
    """The tokens of a conversation, all of them: it begins and ends as its template says."""

    ids: np.ndarray
    """int32 [n]."""
    target_bytes: np.ndarray
    """The bytes of text that each stands for, int32 [n]; 0 for control tokens."""
    spoken: np.ndarray
    """Which are the assistant's, int32 [n] of 0 and 1: these are learned."""


Document = bytes | np.ndarray | Encoded | Conversation
"""Raw text, ids of tokens (int32 [n]) that were made of it earlier, what a tokenizer says of it, or
the tokens of a conversation.
"""


class Documents(Protocol):
    """Random access to documents, each read when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Document: ...


def find_path(documents: Documents, index: int) -> str | None:
    """The path of the file that a document is or was; None if it was no file."""
    path = getattr(documents, "path", None)
    return None if path is None else path(index)


class Joined:
    """Several groups of documents, one after the other."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Document:
        part, inside = self._find(index)
        return part[inside]

    def path(self, index: int) -> str | None:
        """The path of the file that a document was; None if it was none of its own."""
        return find_path(*self._find(index))

    def _find(self, index: int) -> tuple[Documents, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number], index - (int(self._ends[number - 1]) if number else 0)
