"""Where documents come from: the standard library, a TFDS data set, or local files.

A document is raw bytes, or tokens that were made earlier. Both sides of a corpus are random-access,
so that they can be shuffled globally and split over processes without being read first.
"""

import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from moejax.config.checks import check
from moejax.config.data import TFDS, DataConfig, names_stdlib, names_tfds
from moejax.config.errors import ConfigError
from moejax.data.chat.choose import choose_format, place_docstrings, tell_long
from moejax.data.corpus import Corpus, describe_sides, format_bytes, mark_sides, name_others
from moejax.data.documents import Documents
from moejax.data.find_files import count_words, find_files, join_given
from moejax.data.fingerprint import mark_files, stamp_files
from moejax.data.hold_out import hold_out
from moejax.data.kinds.table import Options
from moejax.data.open_given import open_given
from moejax.data.stdlib_parts import ModuleParts
from moejax.data.text_files import split_by_name, split_each_file, take_whole
from moejax.data.tokenizer import Tokenizer


def open_documents(
    config: DataConfig, tokenizer: Tokenizer | None = None, models: Sequence[Path] = ()
) -> Corpus:
    """The corpus that ``config.train`` or ``config.source`` names, prepared first if that is
    needed. Files of tokens need the ``tokenizer`` that made them. The chat template ``auto`` may
    lie beside it, or in one of the ``models`` (``choose.list_models``).

    Raises ``ConfigError`` if it cannot be had, or if one side of it is empty. Of a mixture it opens
    no source: ``mixed_corpus.open_corpus`` does.
    """
    assert config.mixture is None
    if config.train is not None:
        return _open_train(config, tokenizer, models)
    if config.source == "stdlib":
        return _open_stdlib(config)
    if config.source == "files":
        return _open_files(config)
    return _open_tfds(config)


def _open_tfds(config: DataConfig) -> Corpus:
    from moejax.data.tfds_source import open_tfds

    train, validation = open_tfds(config)
    return Corpus(
        train=train,
        validation=validation,
        description=f"TFDS {config.tfds_name}: {count_words(len(train), 'document')} to train on,"
        f" {count_words(len(validation), 'document')} held out",
        take_marks=partial(mark_sides, train, validation),
    )


def open_text(
    what: str,
    *,
    split: str,
    field: str,
    directory: str | None,
    tokenizer: Tokenizer | None = None,
) -> tuple[Documents, str]:
    """The documents that ``--data`` names, all to be evaluated on, and one line about them.

    ``stdlib`` is the held-out part of the standard library, ``tfds:NAME`` the ``split`` of a TFDS
    data set, and all else a file, a folder or a glob, of any format; ``field`` is where a document
    has its text. Prepared data sets are kept in ``directory``. Files of tokens need the
    ``tokenizer`` that made them. Raises ``ConfigError`` if it cannot be had.
    """
    if what == "stdlib":
        documents = _open_stdlib(DataConfig(directory=directory)).validation
        about = (
            f"{count_words(len(documents), 'document')} of the standard library that are held out"
        )
        return documents, about
    if not what.startswith(TFDS):
        options = Options(field=field, directory=directory, tokenizer=tokenizer)
        found = open_given("--data", what, options)
        about = f"{what}: {count_words(len(found.files), 'file')} ({format_bytes(found.size)})"
        if len(found.documents) != len(found.files):
            about += f", {count_words(len(found.documents), 'document')}"
        return found.documents, about + name_others(found.others)
    from moejax.data.tfds_source import open_tfds

    name = what.removeprefix(TFDS)
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
        names = {
            f"--data.tfds-name {name}": f"--data {what}",
            "--data.tfds-validation-split": "--split",
            "--data.tfds-train-split": "--split",
            "--data.tfds-text-field": "--text-field",
        }
        raise ConfigError(_in_words_of(names, error)) from error
    return documents, f"TFDS {name}, {split}: {count_words(len(documents), 'document')}"


def _open_stdlib(config: DataConfig, part: str = "") -> Corpus:
    """The standard library, or a ``part`` of it (``config.data.STDLIB_PARTS``)."""
    from moejax.data.stdlib_corpus import prepare_stdlib
    from moejax.data.tfds_source import TextField

    builder, files = prepare_stdlib(config.directory)
    size = {split: [f.size for f in files if f.split == split] for split in builder.info.splits}
    train = TextField(builder.as_data_source("train"), "text", "path")
    validation = TextField(builder.as_data_source("validation"), "text", "path")
    corpus = Corpus(
        train=train,
        validation=validation,
        description=f"the standard library of Python {platform.python_version()}:"
        f" {describe_sides(size['train'], size['validation'])}",
        take_marks=partial(mark_sides, train, validation),
    )
    if not part:
        return corpus
    return replace(
        corpus,
        train=ModuleParts(train, part),
        validation=ModuleParts(validation, part),
        description=f"the {part} of {corpus.description}",
        stamp=part,
    )


def _open_files(config: DataConfig) -> Corpus:
    assert config.files is not None  # as DataConfig demands of this source
    found = find_files("--data.files", config.files)
    words = join_given(config.files)
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
        description=f"{words}: {describe_sides(sides.train_sizes, sides.validation_sizes)}"
        f"{sides.note}{name_others(found.others)}",
        take_marks=lambda: mark_files(files, sides.roles),
        stamp=stamp_files(files),
    )


def _open_train(config: DataConfig, tokenizer: Tokenizer | None, models: Sequence[Path]) -> Corpus:
    """The documents of ``--data.train``, in whatever format."""
    assert config.train is not None
    if isinstance(config.train, str) and names_stdlib(config.train):
        return _open_stdlib(config, config.train.partition(":")[2])
    if names_tfds(config.train) or (config.validation and names_tfds(config.validation)):
        return _open_named_tfds(config)
    words, note = join_given(config.train), ""
    config = place_docstrings(config)
    assert config.train is not None
    options = Options(
        field=config.field,
        skip_bad=config.skip_bad,
        directory=config.directory,
        tokenizer=tokenizer,
    )
    if config.chat_template is not None:
        if tokenizer is None:
            raise ConfigError("--data.chat-template needs the tokenizer of the model.")
        options = replace(options, chat=choose_format(config, tokenizer, models))
    held_out = config.validation and open_given("--data.validation", config.validation, options)
    given = open_given("--data.train", config.train, options, held_out.files if held_out else ())
    if held_out:
        train, validation = given.documents, held_out.documents
        files, roles = (*given.files, *held_out.files), ["train"] * len(given.files)
        roles += ["held out"] * len(held_out.files)
    else:
        sides = hold_out(given.documents, config.validation_percent)
        if sides is None:
            raise ConfigError(
                f"the {count_words(len(given.documents), 'document')} of --data.train {words}"
                f" cannot be cut in two, to hold out the last part. Give --data.validation."
            )
        train, validation, note = sides
        files, roles = given.files, [f"{config.validation_percent:g} %"] * len(given.files)
    both = [given, held_out] if held_out else [given]
    bad_count = sum(one.bad_count for one in both)
    size = format_bytes(sum(one.size for one in both))
    counts = {"bad_documents": bad_count} if config.skip_bad else {}
    if options.chat is not None:
        counts["long_conversations"] = sum(one.long_count for one in both)
        counts["lost_conversations"] = sum(one.gone_count for one in both)
    skipped = f"; {count_words(bad_count, 'bad document')} left out" * bool(bad_count)
    made_by = config.field if options.chat is None else options.chat.fingerprint
    return Corpus(
        train=train,
        validation=validation,
        description=f"{words} ({size}): {count_words(len(train), 'document')} to train on,"
        f" {count_words(len(validation), 'document')} held out{note}{skipped}"
        f"{tell_long(config, counts)}{name_others(given.others)}",
        take_marks=lambda: mark_files(files, [f"{role} {made_by}" for role in roles]),
        stamp=stamp_files(files),
        files=(given.files, held_out.files if held_out else ()),
        counts=counts,
        bad=next((one.bad for one in both if one.bad), None),
    )


def _open_named_tfds(config: DataConfig) -> Corpus:
    """The two splits of the data set that ``--data.train tfds:NAME`` names."""
    same = config.validation in (None, config.train)
    check(
        isinstance(config.train, str) and names_tfds(config.train) and same,
        f"--data.train {config.train} and --data.validation {config.validation}: both sides of a"
        f" data set of TFDS are splits of one: give --data.tfds-validation-split.",
    )
    assert isinstance(config.train, str)
    name = config.train.removeprefix(TFDS)
    check(bool(name), f"--data.train {config.train} names no data set: write tfds:lm1b, say.")
    changes: dict[str, Any] = {"source": "tfds", "tfds_name": name, "tfds_text_field": config.field}
    try:
        return _open_tfds(replace(config, train=None, validation=None, **changes))
    except ConfigError as error:
        names = {
            f"--data.tfds-name {name}": f"--data.train {config.train}",
            "--data.tfds-text-field": "--data.field",
        }
        raise ConfigError(_in_words_of(names, error)) from error


def _in_words_of(names: dict[str, str], error: ConfigError) -> str:
    """What is wrong, by the flags that were written; ``names`` has them by those of the source,
    first that of the data set.
    """
    said = str(error)
    for name, written in names.items():
        said = said.replace(name, written)
    first = next(iter(names.values()))
    return said if said.startswith(first) else f"{first}: {said}"
