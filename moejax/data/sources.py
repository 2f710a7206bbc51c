"""Where documents come from: the standard library, a TFDS data set, or local files.

A document is raw bytes. Both sides of a corpus are random-access, so that they can be shuffled
globally and split over processes without being read first.
"""

import glob
import hashlib
import os
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moejax.config.checks import check
from moejax.config.data import DataConfig
from moejax.config.errors import ConfigError


class Documents(Protocol):
    """Random access to documents."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The documents to train on and those held out."""

    train: Documents
    validation: Documents
    description: str
    """One line: what it is and how large."""


def open_documents(config: DataConfig) -> Corpus:
    """The corpus that ``config.source`` names, prepared first if TFDS has to.

    Raises ``ConfigError`` if it cannot be had, or if one side of it is empty.
    """
    if config.source == "stdlib":
        return _open_stdlib(config)
    if config.source == "files":
        return _open_files(config)
    from moejax.data.tfds_source import open_tfds

    train, validation = open_tfds(config)
    return Corpus(
        train=train,
        validation=validation,
        description=f"TFDS {config.tfds_name}: {_format_count(len(train))} to train on,"
        f" {_format_count(len(validation))} held out",
    )


def open_text(what: str, *, split: str, field: str, directory: str | None) -> tuple[Documents, str]:
    """The documents that ``--data`` names, all to be evaluated on, and one line about them.

    ``stdlib`` is the held-out part of the standard library, ``tfds:NAME`` the ``split`` of a TFDS
    data set, whose feature ``field`` is the text, and all else a glob of files. Prepared data sets
    are kept in ``directory``, by default TFDS's own. Raises ``ConfigError`` if it cannot be had.
    """
    if what == "stdlib":
        documents = _open_stdlib(DataConfig(directory=directory)).validation
        about = f"{_format_count(len(documents))} of the standard library that are held out"
        return documents, about
    if not what.startswith("tfds:"):
        sizes = _find_sizes("--data", os.path.expanduser(what))
        about = (
            f"{what}: {_format_count(len(sizes), 'file')} ({_format_bytes(sum(sizes.values()))})"
        )
        return TextFiles(list(sizes)), about
    from moejax.data.tfds_source import open_tfds

    name = what.removeprefix("tfds:")
    check(bool(name), f"--data {what} names no data set: write tfds:lm1b, say.")
    config = DataConfig(
        source="tfds",
        tfds_name=name,
        tfds_text_field=field,
        tfds_train_split=split,
        tfds_validation_split=split,
        directory=directory,
    )
    try:
        documents, _ = open_tfds(config)
    except ConfigError as error:
        raise ConfigError(f"--data {what} --split {split} --text-field {field}: {error}") from error
    return documents, f"TFDS {name}, {split}: {_format_count(len(documents))}"


def _open_stdlib(config: DataConfig) -> Corpus:
    from moejax.data.stdlib_corpus import prepare_stdlib
    from moejax.data.tfds_source import TextField

    builder, files = prepare_stdlib(config.directory)
    size = {split: [f.size for f in files if f.split == split] for split in builder.info.splits}
    return Corpus(
        train=TextField(builder.as_data_source("train"), "text", "path"),
        validation=TextField(builder.as_data_source("validation"), "text", "path"),
        description=f"the standard library of Python {platform.python_version()}:"
        f" {_describe_sides(size['train'], size['validation'])}",
    )


class TextFiles:
    """Files as documents, each read when it is asked for."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> bytes:
        try:
            return Path(self.paths[index]).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {self.paths[index]}: {error.strerror}.") from error

    def path(self, index: int) -> str:
        """The path of a document."""
        return self.paths[index]


def find_path(documents: Documents, index: int) -> str | None:
    """The path of the file that a document is or was; None if it was no file."""
    path = getattr(documents, "path", None)
    return None if path is None else path(index)


def _open_files(config: DataConfig) -> Corpus:
    assert config.files is not None  # as DataConfig demands of this source
    pattern = os.path.expanduser(config.files)
    sizes = _find_sizes("--data.files", pattern)
    if config.validation_files is None:
        held_out = {path for path in sizes if _is_held_out(path, pattern, config)}
        train = {path: size for path, size in sizes.items() if path not in held_out}
        validation = {path: size for path, size in sizes.items() if path in held_out}
        check(
            bool(train and validation),
            f"of the {_format_count(len(sizes), 'file')} of --data.files {config.files},"
            f" {len(validation)} are held out at --data.validation-percent"
            f" {config.validation_percent:g}: each side needs one. Give --data.validation-files.",
        )
    else:
        validation = _find_sizes(
            "--data.validation-files", os.path.expanduser(config.validation_files)
        )
        # One glob may contain the other: what is held out is never trained on.
        held_out = {os.path.realpath(path) for path in validation}
        train = {p: size for p, size in sizes.items() if os.path.realpath(p) not in held_out}
        check(
            bool(train),
            f"every file of --data.files {config.files} is among --data.validation-files"
            f" {config.validation_files}: nothing is left to train on.",
        )
    return Corpus(
        train=TextFiles(list(train)),
        validation=TextFiles(list(validation)),
        description=f"{config.files}: {_describe_sides(train.values(), validation.values())}",
    )


def _find_sizes(flag: str, pattern: str) -> dict[str, int]:
    """Bytes of each non-empty file that matches, sorted by path; errors name the flag or file."""
    matches = (path for path in glob.iglob(pattern, recursive=True) if not os.path.isdir(path))
    paths = sorted(set(matches))
    check(
        bool(paths),
        f"{flag}: no file matches {pattern} in {os.getcwd()}. Quote the glob; ** spans folders.",
    )
    unreadable = [path for path in paths if not os.access(path, os.R_OK)]
    check(not unreadable, f"{flag}: cannot read {', '.join(unreadable[:3])}.")
    sizes = {path: os.path.getsize(path) for path in paths}
    sizes = {path: size for path, size in sizes.items() if size}
    check(bool(sizes), f"{flag}: all {_format_count(len(paths), 'file')} of {pattern} are empty.")
    return sizes


def _is_held_out(path: str, pattern: str, config: DataConfig) -> bool:
    """By a hash of the path below the glob's fixed part: a moved folder keeps its split."""
    fixed = glob.escape(pattern) == pattern
    start = os.path.dirname(pattern) if fixed else _find_fixed_part(pattern)
    relative = Path(os.path.relpath(path, start or ".")).as_posix()
    share = int(hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()[:12], 16)
    return share * 100 < config.validation_percent * 16**12


def _find_fixed_part(pattern: str) -> str:
    """The folders of a glob before its first wildcard."""
    first = next(i for i, character in enumerate(pattern) if character in "*?[")
    return os.path.dirname(pattern[:first])


def _describe_sides(train: Collection[int], validation: Collection[int]) -> str:
    """``581 documents (9.57 MB) to train on, 25 documents (335 kB) held out``, from their sizes."""
    return (
        f"{_format_count(len(train))} ({_format_bytes(sum(train))}) to train on,"
        f" {_format_count(len(validation))} ({_format_bytes(sum(validation))}) held out"
    )


def _format_count(count: int, what: str = "document") -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _format_bytes(count: float) -> str:
    """``335 kB``: three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
