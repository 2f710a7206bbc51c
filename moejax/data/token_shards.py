"""Tokens of documents on disk: a folder for each shard of neighbouring documents.

A shard has the files ``ids`` (two bytes a token, or four in a large vocabulary), ``bytes`` (one
byte a token: how much of the text it stands for), ``large`` (where that is 255 or more: the place
and the count, int64 each) and ``ends`` (after each document, the tokens so far, int64). It gets its
name when it is whole.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moejax.data.documents import Documents, Encoded
from moejax.data.kept import read_part
from moejax.data.tokenizer import Tokenizer, encode_document

MOST_SHARDS, MOST_DOCUMENTS = 256, 4096
"""So many shards, unless they would have more documents than that."""
_LARGE = 255
_UNFINISHED = ".making"


@dataclass(frozen=True, kw_only=True)
class Shards:
    """How documents are spread over shards, and where these lie. The same documents have the same
    shards, however many processes make them.
    """

    folder: Path
    documents: int
    wide: bool
    """Whether ids take four bytes."""

    @property
    def size(self) -> int:
        """Documents in a shard; the last one may have fewer."""
        return max(1, min(MOST_DOCUMENTS, -(-self.documents // MOST_SHARDS)))

    @property
    def count(self) -> int:
        """How many there are."""
        return -(-self.documents // self.size)

    @property
    def kind(self) -> np.dtype:
        """Of the ids on disk."""
        return np.dtype("<u4" if self.wide else "<u2")

    def place(self, number: int) -> Path:
        """The folder of a shard."""
        return self.folder / f"{number:08}"

    def is_whole(self, number: int) -> bool:
        """Whether a shard has been made."""
        return self.place(number).is_dir()

    def numbers(self, number: int) -> range:
        """The documents of a shard."""
        return range(number * self.size, min(self.documents, (number + 1) * self.size))


def write_shard(shards: Shards, number: int, documents: Documents, tokenizer: Tokenizer) -> None:
    """Make the tokens of one shard."""
    place = shards.place(number)
    # A process whose parent was killed may still be at the same shard, with another name.
    unfinished = place.with_name(f"{place.name}.{os.getpid()}{_UNFINISHED}")
    unfinished.mkdir(parents=True, exist_ok=True)
    total, ends = 0, []
    with (
        open(unfinished / "ids", "wb") as ids_file,
        open(unfinished / "bytes", "wb") as bytes_file,
        open(unfinished / "large", "wb") as large_file,
    ):
        for index in shards.numbers(number):
            ids, counts = encode_document(documents[index], tokenizer)
            ids_file.write(ids.astype(shards.kind).tobytes())
            bytes_file.write(np.minimum(counts, _LARGE).astype(np.uint8).tobytes())
            large = np.flatnonzero(counts >= _LARGE)
            large_file.write(np.stack([total + large, counts[large]], 1).astype("<i8").tobytes())
            total += len(ids)
            ends.append(total)
    (unfinished / "ends").write_bytes(np.asarray([0, *ends], "<i8").tobytes())
    try:
        os.replace(unfinished, place)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not place.is_dir():  # else that other process was faster
            raise


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left."""
    for left in folder.glob(f"*{_UNFINISHED}"):
        shutil.rmtree(left, ignore_errors=True)


class StoredTokens:
    """The documents of whole shards, as their tokens."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def __len__(self) -> int:
        return self._shards.documents

    def count(self) -> tuple[int, int]:
        """All tokens, and the documents that have any."""
        tokens = filled = 0
        for number in range(self._shards.count):
            ends = np.fromfile(self._shards.place(number) / "ends", "<i8")
            tokens += int(ends[-1])
            filled += int(np.count_nonzero(np.diff(ends)))
        return tokens, filled

    def __getitem__(self, index: int) -> Encoded:
        number, inside = divmod(index, self._shards.size)
        place, width = self._shards.place(number), self._shards.kind.itemsize
        edges = np.frombuffer(read_part(place / "ends", 8 * inside, 16), "<i8")
        begin, size = int(edges[0]), int(edges[1] - edges[0])
        ids = np.frombuffer(
            read_part(place / "ids", width * begin, width * size), self._shards.kind
        )
        stored = np.frombuffer(read_part(place / "bytes", begin, size), np.uint8)
        counts = stored.astype(np.int32)
        places = np.flatnonzero(stored == _LARGE)
        if len(places):
            large = np.fromfile(place / "large", "<i8").reshape(-1, 2)
            counts[places] = large[np.searchsorted(large[:, 0], begin + places), 1]
        return Encoded(ids.astype(np.int32), counts)
