"""A value of a table or of JSON as a document: its field found, its kind checked."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from moejax.config.checks import LARGEST, shorten
from moejax.config.json_files import DEEPEST, measure_depth
from moejax.data.documents import Document

_NAMED = 12
"""Fields that a message lists."""


class Bad(NamedTuple):
    """A document that cannot be read."""

    place: str
    """The file, and where in it."""
    why: str

    def __str__(self) -> str:
        return f"{self.place} {self.why}"


class Record(NamedTuple):
    """A document as it is found in a file."""

    begin: int
    """Where it begins in the (unpacked) file, in bytes; 0 where that means nothing."""
    end: int
    value: Document | Bad


WHOLE = ""
"""As the name of a field: the record as it is, with its place, as ``keep_whole`` writes them."""


def keep_whole(value: Any, place: str) -> bytes:
    """A record and its place as JSON: a conversation is more than one field."""
    return json.dumps([place, value], default=str).encode()


def pick_document(value: Any, field: str, place: str) -> Document | Bad:
    """The document in a value of JSON: that of its ``field``, or the value itself if it is text."""
    if field == WHOLE:
        if measure_depth(value) > DEEPEST:
            return Bad(place, f"is nested more than {DEEPEST} deep.")
        return keep_whole(value, place)
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if not isinstance(value, dict):
        return Bad(place, f"is {shorten(value)}: an object with a field `{field}` is needed.")
    try:
        found = find_field(value, field)
    except KeyError:
        there = f"It has: {name_fields(value)}.{_hint(value)}"
        return Bad(place, f"has no field `{field}` (--data.field). {there}")
    return make_document(found, f"{place}, field `{field}`,")


def _hint(value: dict[str, Any]) -> str:
    """What to do about conversations that were taken for texts."""
    usual = {"messages", "conversations", "completion"} & value.keys()
    return " Of conversations, give --data.chat-template auto." if usual else ""


def make_document(value: Any, place: str) -> Document | Bad:
    """A text or a list of tokens as a document."""
    if isinstance(value, str):
        # A half of a pair of surrogates is no character: its bytes are no UTF-8.
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, list) and all(type(i) is int and 0 <= i <= LARGEST for i in value):
        return np.asarray(value, np.int32)
    return Bad(place, f"is {shorten(value)}, not a text, nor a list of tokens.")


def find_field(value: dict[str, Any], field: str) -> Any:
    """The value at a field, whose dots lead into inner objects unless a name has them. Raises
    ``KeyError``.
    """
    if field in value:
        return value[field]
    first, dot, rest = field.partition(".")
    inner = value[first] if dot else None
    if not isinstance(inner, dict):
        raise KeyError(field)
    return find_field(inner, rest)


def name_fields(value: dict[str, Any]) -> str:
    """The fields that there are, those of inner objects with dots."""
    names = list(_walk(value, ""))
    more = f", ... ({len(names)})" * (len(names) > _NAMED)
    return ", ".join(names[:_NAMED]) + more if names else "none"


def _walk(value: dict[str, Any], before: str) -> Iterator[str]:
    for name, inner in value.items():
        if isinstance(inner, dict) and inner and before.count(".") < 2:
            yield from _walk(inner, f"{before}{name}.")
        else:
            yield before + name
