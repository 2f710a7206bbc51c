"""Where documents come from: the standard library, a TFDS data set, or local files.

A document is raw bytes. Both sides of a corpus are random-access, so that they can be shuffled
globally and split over processes without being read first.
"""

import os
import platform
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from moejax.config.checks import check
from moejax.config.data import DataConfig
from moejax.config.errors import ConfigError
from moejax.data.documents import Documents
from moejax.data.find_files import FoundFiles, count_words, find_files
from moejax.data.fingerprint import Mark, mark_documents, mark_files
from moejax.data.text_files import TextFiles, split_by_name, split_each_file, take_whole


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The documents to train on and those held out."""

    train: Documents
    validation: Documents
    description: str
    """One line: what it is and how large."""
    take_marks: Callable[[], list[Mark]]
    """Reads a fingerprint of the text."""


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
        description=f"TFDS {config.tfds_name}: {count_words(len(train), 'document')} to train on,"
        f" {count_words(len(validation), 'document')} held out",
        take_marks=partial(_mark_sides, train, validation),
    )


def open_text(what: str, *, split: str, field: str, directory: str | None) -> tuple[Documents, str]:
    """The documents that ``--data`` names, all to be evaluated on, and one line about them.

    ``stdlib`` is the held-out part of the standard library, ``tfds:NAME`` the ``split`` of a TFDS
    data set, whose feature ``field`` is the text, and all else a file, a folder or a glob. Prepared
    data sets are kept in ``directory``, by default TFDS's own. Raises ``ConfigError`` if it cannot
    be had.
    """
    if what == "stdlib":
        documents = _open_stdlib(DataConfig(directory=directory)).validation
        about = (
            f"{count_words(len(documents), 'document')} of the standard library that are held out"
        )
        return documents, about
    if not what.startswith("tfds:"):
        found = find_files("--data", what)
        size = _format_bytes(sum(file.size for file in found.files))
        about = f"{what}: {count_words(len(found.files), 'file')} ({size}){_name_others(found)}"
        return TextFiles([file.path for file in found.files]), about
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
    return documents, f"TFDS {name}, {split}: {count_words(len(documents), 'document')}"


def _open_stdlib(config: DataConfig) -> Corpus:
    from moejax.data.stdlib_corpus import prepare_stdlib
    from moejax.data.tfds_source import TextField

    builder, files = prepare_stdlib(config.directory)
    size = {split: [f.size for f in files if f.split == split] for split in builder.info.splits}
    train = TextField(builder.as_data_source("train"), "text", "path")
    validation = TextField(builder.as_data_source("validation"), "text", "path")
    return Corpus(
        train=train,
        validation=validation,
        description=f"the standard library of Python {platform.python_version()}:"
        f" {_describe_sides(size['train'], size['validation'])}",
        take_marks=partial(_mark_sides, train, validation),
    )


def _mark_sides(train: Documents, validation: Documents) -> list[Mark]:
    """The fingerprint of a data set."""
    return mark_documents("the training text", train) + mark_documents(
        "the held-out text", validation
    )


def _open_files(config: DataConfig) -> Corpus:
    assert config.files is not None  # as DataConfig demands of this source
    found = find_files("--data.files", config.files)
    words = config.files if isinstance(config.files, str) else ", ".join(config.files)
    if config.validation_files is None:
        files, percent = list(found.files), config.validation_percent
        sides = split_by_name(files, percent) or split_each_file(files, percent)
        if sides is None:
            raise ConfigError(
                f"the {count_words(len(files), 'file')} of --data.files {words} cannot be cut in"
                f" two, to hold out the last part. Give --data.validation-files."
            )
    else:
        held_out = find_files("--data.validation-files", config.validation_files)
        # One glob may contain the other: what is held out is never trained on.
        identities = {file.identity for file in held_out.files}
        kept = [file for file in found.files if file.identity not in identities]
        check(
            bool(kept),
            f"every file of --data.files {words} is among --data.validation-files"
            f" {config.validation_files}: nothing is left to train on.",
        )
        files = [*kept, *held_out.files]
        roles = ["train"] * len(kept) + ["held out"] * len(held_out.files)
        sides = take_whole(kept, held_out.files, roles)
    return Corpus(
        train=sides.train,
        validation=sides.validation,
        description=f"{words}: {_describe_sides(sides.train_sizes, sides.validation_sizes)}"
        f"{sides.note}{_name_others(found)}",
        take_marks=lambda: mark_files(files, sides.roles),
    )


def _name_others(found: FoundFiles) -> str:
    """What lies in a folder and is no text: ``; 2 other files left out, logo.png, a.gz``."""
    if not found.others:
        return ""
    names = ", ".join(os.path.basename(path) for path in found.others[:3])
    more = ", ..." * (len(found.others) > 3)
    return f"; {count_words(len(found.others), 'other file')} left out as no text, {names}{more}"


def _describe_sides(train: Collection[int], validation: Collection[int]) -> str:
    """``581 documents (9.57 MB) to train on, 25 documents (335 kB) held out``, from their sizes."""
    return (
        f"{count_words(len(train), 'document')} ({_format_bytes(sum(train))}) to train on,"
        f" {count_words(len(validation), 'document')} ({_format_bytes(sum(validation))}) held out"
    )


def _format_bytes(count: float) -> str:
    """``335 kB``: three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
