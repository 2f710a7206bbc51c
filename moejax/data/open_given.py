"""What ``--data.train`` names: files of one format, or a data set that was saved to disk."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from moejax.config.checks import check
from moejax.config.paths import expand_home
from moejax.data.documents import Documents, Joined
from moejax.data.find_files import (
    FoundFile,
    FoundFiles,
    Wanted,
    count_words,
    find_files,
    join_given,
)
from moejax.data.kinds.columns import is_saved_by_datasets, list_saved
from moejax.data.kinds.compression import split_compression
from moejax.data.kinds.table import (
    ARROW,
    TEXT,
    TOKENS,
    FileDocuments,
    Options,
    check_one_kind,
    find_kind,
    find_problem,
    open_file,
)
from moejax.data.text_parts import open_texts


@dataclass(frozen=True, kw_only=True)
class Given:
    """What was found, opened."""

    documents: Documents
    files: tuple[FoundFile, ...]
    """Of which they are, in order."""
    others: tuple[str, ...] = ()
    """What lies in the folders given and is no text."""
    size: int
    """About how many bytes the documents are."""
    bad_count: int = 0
    """Documents that were left out."""
    bad: str | None = None
    """What is wrong with the first of them."""
    long_count: int = 0
    """Conversations that are too long ..."""
    gone_count: int = 0
    """... and those of them that are left out."""


def open_given(
    flag: str, given: str | tuple[str, ...], options: Options, without: Sequence[FoundFile] = ()
) -> Given:
    """The documents of what ``flag`` names, in the order of the paths, but for the files
    ``without``.

    Raises ``ConfigError``, naming the file and the place in it, if it cannot be read, if several
    formats are mixed, or if there is no document.
    """
    found, kind = _find(flag, given)
    identities = {file.identity for file in without}
    files = tuple(file for file in found.files if file.identity not in identities)
    words = join_given(given)
    check(
        bool(files),
        f"every file of {flag} {words} is among what is held out: nothing is left to train on.",
    )
    if options.chat is None and kind == TEXT and not any(map(_is_packed, files)):
        documents: Documents = open_texts([(file.path, file.size) for file in files])
        size = sum(file.size for file in files)
        return Given(documents=documents, files=files, others=found.others, size=size)
    opened: list[FileDocuments] = [open_file(file.path, kind, options) for file in files]
    bad = next((one.bad[0] for one in opened if one.bad), None)
    documents = Joined(opened) if len(opened) > 1 else opened[0]
    first = f" The first bad one: {bad}" if bad else ""
    check(
        len(documents) > 0,
        f"{flag}: there is no document in {words} ({count_words(len(files), 'file')}).{first}",
    )
    return Given(
        documents=documents,
        files=files,
        others=found.others,
        size=sum(one.size for one in opened),
        bad_count=sum(one.bad_count for one in opened),
        bad=bad,
        long_count=sum(getattr(one, "long_count", 0) for one in opened),
        gone_count=sum(getattr(one, "gone_count", 0) for one in opened),
    )


def _is_packed(file: FoundFile) -> bool:
    return split_compression(file.path)[1] is not None


def _find(flag: str, given: str | tuple[str, ...]) -> tuple[FoundFiles, str]:
    """The files and their format."""
    named = (given,) if isinstance(given, str) else given
    saved = {one for one in named if is_saved_by_datasets(expand_home(flag, one))}
    if saved:
        check(
            len(saved) == len(named),
            f"{flag} mixes data sets saved by `datasets` ({next(iter(saved))}) with files.",
        )
        files = [file for one in named for file in list_saved(expand_home(flag, one), flag)]
        return find_files(flag, tuple(files), _WANTED), ARROW
    found = find_files(flag, given, _WANTED)
    kind = check_one_kind(flag, [file.path for file in found.files])
    if kind != TOKENS:
        return found, kind
    # Megatron's index belongs to the file of the same name: either names both.
    paths = {_find_tokens(flag, file.path) for file in found.files}
    return find_files(flag, tuple(sorted(paths)), _WANTED), kind


def _find_tokens(flag: str, path: str) -> str:
    tokens = path.removesuffix(".idx") + ".bin" if path.endswith(".idx") else path
    check(os.path.isfile(tokens), f"{flag}: {path} is the index of {tokens}, which is not there.")
    return tokens


_WANTED = Wanted(
    find_problem=find_problem,
    may_lie_beside=lambda path: find_kind(path) == TEXT and split_compression(path)[1] is None,
)
