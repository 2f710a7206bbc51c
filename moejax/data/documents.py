"""What a corpus is made of."""

from typing import Protocol


class Documents(Protocol):
    """Random access to documents: raw bytes, each read when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


def find_path(documents: Documents, index: int) -> str | None:
    """The path of the file that a document is or was; None if it was no file."""
    path = getattr(documents, "path", None)
    return None if path is None else path(index)
