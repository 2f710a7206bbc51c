"""Which documents are held out, by their numbers: the same ones in every format."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from moejax.data.documents import Conversation, Document, Documents, find_path
from moejax.data.text_files import find_cut_of_text


class Side:
    """The documents of one side. Of every 100 / ``percent`` neighbours one is held out, at a place
    that a hash chooses: so the sides need no memory, and stay as they are when documents are added
    at the end.
    """

    def __init__(self, documents: Documents, percent: float, held_out: bool) -> None:
        self._documents, self._stretch, self._held_out = documents, 100 / percent, held_out
        self._groups = count_groups(len(documents), percent)

    def __len__(self) -> int:
        return self._groups if self._held_out else len(self._documents) - self._groups

    def __getitem__(self, index: int) -> Document:
        return self._documents[self.find_number(index)]

    def path(self, index: int) -> str | None:
        """The path of the file that a document was."""
        return find_path(self._documents, self.find_number(index))

    def find_number(self, index: int) -> int:
        """The number of a document of this side among all."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._held_out:
            return self._find_held_out(index)
        # Before the documents of group g lie `begin(g) - g` that are trained on.
        group = int(index / (self._stretch - 1)) if self._stretch > 1 else 0
        group = min(group, self._groups)
        while group and self._begin(group) - group > index:
            group -= 1
        while group < self._groups and self._begin(group + 1) - (group + 1) <= index:
            group += 1
        number = index + group
        return number + (group < self._groups and number >= self._find_held_out(group))

    def _begin(self, group: int) -> int:
        return int(group * self._stretch)

    def _find_held_out(self, group: int) -> int:
        begin = self._begin(group)
        digest = hashlib.blake2b(str(group).encode(), digest_size=8).digest()
        return begin + int.from_bytes(digest, "big") % (self._begin(group + 1) - begin)


def count_groups(count: int, percent: float) -> int:
    """How many of ``count`` documents are held out: one of each whole group."""
    groups = int(count * percent / 100) + 1
    while groups and int(groups * (100 / percent)) > count:
        groups -= 1
    return groups


class Cut:
    """One side of documents of which the last part is held out, each cut at its own place."""

    def __init__(
        self, documents: Documents, cuts: Sequence[tuple[int, int]], side: Literal["train", "held"]
    ) -> None:
        """``cuts``: the numbers of documents and where they are cut, in bytes or tokens."""
        self._documents, self._cuts, self._side = documents, cuts, side

    def __len__(self) -> int:
        return len(self._cuts)

    def __getitem__(self, index: int) -> Document:
        number, at = self._cuts[index]
        document = self._documents[number]
        assert isinstance(document, bytes | np.ndarray)  # others are made of what was cut
        return document[:at] if self._side == "train" else document[at:]

    def path(self, index: int) -> str | None:
        """The path of the file that a document was."""
        return find_path(self._documents, self._cuts[index][0])


def hold_out(documents: Documents, percent: float) -> tuple[Documents, Documents, str] | None:
    """What is trained on, what is held out, and what to say of it. None if nothing can be cut."""
    if count_groups(len(documents), percent) and 0 < percent < 100:
        train = Side(documents, percent, held_out=False)
        if len(train):
            return train, Side(documents, percent, held_out=True), ""
    if isinstance(documents[0], Conversation):
        return None  # half of one has no end
    cuts, lengths = [], []
    for i in range(len(documents)):
        document = documents[i]
        cuts.append((i, _find_cut(document, percent)))
        lengths.append(len(document))
    held = [cut for cut, length in zip(cuts, lengths, strict=True) if cut[1] < length]
    if not held:
        return None
    whose = "its" if len(cuts) == 1 else "of each document the"
    note = f": {whose} last {percent:g} %"
    return Cut(documents, cuts, "train"), Cut(documents, held, "held"), note


def _find_cut(document: Document, percent: float) -> int:
    if not isinstance(document, bytes):
        at = round(len(document) * (1 - percent / 100))
        return max(1, min(len(document) - 1, at)) if len(document) > 1 else len(document)
    return find_cut_of_text(document, percent)
