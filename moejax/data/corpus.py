"""A corpus: the documents to train on and those held out, and words about them."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from moejax.data.documents import Documents
from moejax.data.find_files import FoundFile, count_words
from moejax.data.fingerprint import Mark, mark_documents


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The documents to train on and those held out."""

    train: Documents
    validation: Documents
    description: str
    """One line: what it is and how large."""
    take_marks: Callable[[], list[Mark]]
    """Reads a fingerprint of the text."""
    stamp: str = ""
    """Where the files are and when they were written, for what is made of them."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was left out, or cut, for every line of metrics."""
    bad: str | None = None
    """What is wrong with the first document that cannot be read."""
    files: tuple[Sequence[FoundFile], Sequence[FoundFile]] = ((), ())
    """Of the documents to train on; those that are held out alone."""
    sources: "Mapping[str, Corpus]" = field(default_factory=dict)
    """Of a mixture: its sources by name, of which it is put together."""


def mark_sides(train: Documents, validation: Documents) -> list[Mark]:
    """The fingerprint of a data set."""
    return mark_documents("the training text", train) + mark_documents(
        "the held-out text", validation
    )


def name_others(others: Sequence[str]) -> str:
    """What lies in a folder and is no text: ``; 2 other files left out, logo.png, a.gz``."""
    if not others:
        return ""
    names = ", ".join(os.path.basename(path) for path in others[:3])
    more = ", ..." * (len(others) > 3)
    return f"; {count_words(len(others), 'other file')} left out as no text, {names}{more}"


def describe_sides(train: Collection[int], validation: Collection[int]) -> str:
    """``581 documents (9.57 MB) to train on, 25 documents (335 kB) held out``, from their sizes."""
    return (
        f"{count_words(len(train), 'document')} ({format_bytes(sum(train))}) to train on,"
        f" {count_words(len(validation), 'document')} ({format_bytes(sum(validation))}) held out"
    )


def format_bytes(count: float) -> str:
    """``335 kB``: three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
