"""Files as documents, and which of their text is held out."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from moejax.config.errors import ConfigError
from moejax.data.find_files import FoundFile
from moejax.data.text_format import BYTE_ORDER_MARK

_REACH = 2**20
"""Bytes on each side of a cut that are searched for a better place."""


class TextFiles:
    """Files, or parts of them, as documents; each is read when it is asked for. A byte-order mark
    before the text is left out.
    """

    def __init__(self, paths: Sequence[str], parts: Sequence[tuple[int, int]] | None = None):
        """``parts``: of each file, from which byte to which; by default all of it."""
        self.paths = tuple(paths)
        self._parts = parts

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> bytes:
        begin, end = (0, None) if self._parts is None else self._parts[index]
        try:
            with open(self.paths[index], "rb") as file:
                file.seek(begin)
                text = file.read() if end is None else file.read(end - begin)
        except OSError as error:
            raise ConfigError(f"cannot read {self.paths[index]}: {error.strerror}.") from error
        return text if begin else text.removeprefix(BYTE_ORDER_MARK)

    def path(self, index: int) -> str:
        """The path of a document."""
        return self.paths[index]


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What is trained on and what is held out; of each document its size in bytes."""

    train: TextFiles
    train_sizes: list[int]
    validation: TextFiles
    validation_sizes: list[int]
    roles: list[str]
    """What becomes of each file, in their order."""
    note: str = ""
    """What the description says beside, with a colon before it."""


def split_by_name(files: Sequence[FoundFile], percent: float) -> Sides | None:
    """Whole files on each side, by a hash of their names: the same ones each time and on every
    machine. None if one side would be empty.
    """
    held_out = [is_held_out(file.name, percent) for file in files]
    if all(held_out) or not any(held_out):
        return None
    train = [file for file, held in zip(files, held_out, strict=True) if not held]
    validation = [file for file, held in zip(files, held_out, strict=True) if held]
    return take_whole(train, validation, ["held out" if held else "train" for held in held_out])


def take_whole(
    train: Sequence[FoundFile], validation: Sequence[FoundFile], roles: list[str]
) -> Sides:
    """Whole files on each side."""
    return Sides(
        train=TextFiles([file.path for file in train]),
        train_sizes=[file.size for file in train],
        validation=TextFiles([file.path for file in validation]),
        validation_sizes=[file.size for file in validation],
        roles=roles,
    )


def is_held_out(name: str, percent: float) -> bool:
    """Whether the file of this name is one of the ``percent`` that are held out."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return int(digest[:12], 16) * 100 < percent * 16**12


def split_each_file(files: Sequence[FoundFile], percent: float) -> Sides | None:
    """The last ``percent`` of each file are held out; a file too small to be cut is trained on.
    None if none can be cut.
    """
    cuts = [find_cut(file, percent) for file in files]
    cut = [(file, at) for file, at in zip(files, cuts, strict=True) if at < file.size]
    if not cut:
        return None
    whose = "its" if len(files) == 1 else "of each file the"
    return Sides(
        train=TextFiles([file.path for file in files], [(0, at) for at in cuts]),
        train_sizes=cuts,
        validation=TextFiles([f.path for f, _ in cut], [(at, f.size) for f, at in cut]),
        validation_sizes=[file.size - at for file, at in cut],
        roles=[f"cut at {at}" for at in cuts],
        note=f": {whose} last {percent:g} %",
    )


def find_cut(file: FoundFile, percent: float) -> int:
    """Where the last ``percent`` of a file begin, as ``find_cut_of_text`` has it; only what is near
    that place is read.
    """
    target = _aim(file.size, percent)
    begin = max(0, target - _REACH)
    with open(file.path, "rb") as opened:
        opened.seek(begin)
        text = opened.read(target + _REACH - begin)
    return _choose_cut(text, begin, file.size, percent)


def find_cut_of_text(text: bytes, percent: float) -> int:
    """Where the last ``percent`` of a text begin: between two paragraphs if that makes it at most
    twice as much or as little, else between two lines that hold out at most half, else between two
    characters. Its size if it cannot be cut.
    """
    begin = max(0, _aim(len(text), percent) - _REACH)
    near = text[begin : _aim(len(text), percent) + _REACH]
    return _choose_cut(near, begin, len(text), percent)


def _aim(size: int, percent: float) -> int:
    return max(1, min(size - 1, round(size * (1 - percent / 100))))


def _choose_cut(text: bytes, begin: int, size: int, percent: float) -> int:
    """The cut of a text of so many bytes, of which ``text`` lies at ``begin``."""
    target = _aim(size, percent)
    share = size - target
    for border, least, most in (
        (rb"\n[ \t\r]*\n+", max(1, share / 2), share * 2),
        (rb"\n", 1, max(size / 2, share * 2)),
    ):
        places = (begin + found.end() for found in re.finditer(border, text))
        allowed = [at for at in places if 0 < at < size and least <= size - at <= most]
        if allowed:
            return min(allowed, key=lambda at: abs(at - target))
    starts = [
        i for i in range(max(1, target - 3), target + 4) if _begins_character(text, i - begin)
    ]
    return min(starts, key=lambda at: abs(at - target), default=size)


def _begins_character(text: bytes, place: int) -> bool:
    """Whether a character of UTF-8 may begin at ``place``: a byte that is no UTF-8 does, too."""
    return place < len(text) and text[place] & 0xC0 != 0x80
