"""From records to the tokens of conversations, and which of them the assistant has said."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from moejax.config.errors import ConfigError
from moejax.data.characters import split_characters
from moejax.data.chat.messages import Talk, find_messages, find_talk, list_texts
from moejax.data.chat.template import Rendered, Template, TemplateError
from moejax.data.documents import Conversation
from moejax.data.kinds.prepared import PreparedFile
from moejax.data.kinds.records import Bad, Record
from moejax.data.tokenizer import Tokenizer

_VERSION = 2
"""Of what is kept of conversations."""
_WIDTH = 8
"""Bytes of a token there."""


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """How conversations become tokens."""

    template: Template
    tokenizer: Tokenizer
    field: str | None
    """Where a record has its messages; None: where they usually are."""
    length: int
    """Targets that a conversation may have (N)."""
    too_long: Literal["cut", "drop"]

    @cached_property
    def fingerprint(self) -> str:
        """Differs between formats that give different tokens; the length is no matter."""
        said = [_VERSION, self.template.source, sorted(self.template.names.items()), self.field]
        return hashlib.sha256(repr([*said, self.tokenizer.fingerprint]).encode()).hexdigest()[:32]

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        return match_control(self.tokenizer)

    def read(self, records: Iterable[Record]) -> Iterator[Record]:
        """The conversations in records that were read whole, as bytes (``unpack``)."""
        for record in records:
            if isinstance(record.value, Bad):
                yield record
                continue
            place, value = _open_whole(record)
            for found in self.encode_value(value, place):
                data = found if isinstance(found, Bad) else pack(found)
                yield record._replace(value=data)

    def encode_value(self, value: object, place: str) -> list[Conversation] | list[Bad]:
        """The texts of one record: one, or of some templates one for each of the assistant's turns
        (``Template.render_talk``).
        """
        talk = find_messages(value, self.field, place)
        if isinstance(talk, Bad):
            return [talk]
        if (wrong := find_problem(talk, self._control)) is not None:
            return [Bad(place, wrong)]
        try:
            found = [encode(one, self.tokenizer) for one in self.template.render_talk(talk)]
        except TemplateError as error:
            return [Bad(place, f"has no text: the chat template ({self.template.at}) {error}")]
        if not all(one.spoken[1:].any() for one in found):
            wrong = f"has nothing to learn: the chat template ({self.template.at}) writes nothing"
            return [Bad(place, f"{wrong} for the assistant.")]
        return found


def _open_whole(record: Record) -> tuple[str, object]:
    """The place of a record that was read whole, and what it is."""
    assert isinstance(record.value, bytes)  # as `records.keep_whole` gives it
    place, value = json.loads(record.value)
    return place, value


def read_talks(records: Iterable[Record]) -> Iterator[tuple[Talk, str]]:
    """The conversations in records that were read whole, whoever speaks in them, and their places.
    Raises ``ConfigError`` for a record that is none.
    """
    for record in records:
        if isinstance(record.value, Bad):
            raise ConfigError(str(record.value))
        place, value = _open_whole(record)
        talk = find_talk(value, None, place)
        if isinstance(talk, Bad):
            raise ConfigError(str(talk))
        yield talk, place


def match_control(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """What finds the names of control tokens in a text; None if there are none."""
    names = sorted(tokenizer.control, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


def find_problem(talk: Talk, control: re.Pattern[str] | None) -> str | None:
    """What is wrong with the texts of a conversation: they would be no texts among tokens."""
    for text in list_texts([talk.messages, talk.tools]):
        name = control and control.search(text)
        if name:
            return (
                f"has the name of a control token in a message, {name[0]}, which would become that"
                " token."
            )
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            return "has half of a pair of surrogates, which is no character."
    return None


def encode(rendered: Rendered, tokenizer: Tokenizer) -> Conversation:
    """The tokens of a conversation. As in transformers, a token is the assistant's if some of its
    characters are.
    """
    ids, places = tokenizer.encode_rendered(rendered.text)
    spoken = np.zeros(len(ids), bool)
    for begin, end in rendered.spoken:
        spoken |= (places[:, 0] < end) & (places[:, 1] > begin)
    byte_ends = split_characters(rendered.text.encode())[1]
    last = np.maximum.accumulate(places[:, 1])
    counts = np.diff(byte_ends[last], prepend=0)
    counts[np.isin(ids, list(tokenizer.control.values()))] = 0
    return Conversation(ids, counts.astype(np.int32), spoken.astype(np.int32))


def pack(one: Conversation) -> bytes:
    """A conversation as bytes."""
    return np.stack([one.ids, 2 * one.target_bytes + one.spoken]).astype("<i4").tobytes()


def unpack(data: bytes) -> Conversation:
    """The inverse of ``pack``."""
    ids, both = np.frombuffer(data, "<i4").reshape(2, -1)
    return Conversation(ids.astype(np.int32), both // 2, both % 2)


class ChatFile:
    """The conversations of one file, of which too long ones are cut or left out."""

    def __init__(self, found: PreparedFile, chat: ChatFormat) -> None:
        self._found, self._most = found, chat.length + 1
        self.size, self.bad_count, self.bad = found.size, found.bad_count, found.bad
        long = np.flatnonzero(found.read_sizes() > self._most * _WIDTH)
        self.long_count = len(long)
        """Conversations that are longer than a sequence."""
        gone = long
        if chat.too_long == "cut":
            heard = [bool(self._read(int(i)).spoken[1:].any()) for i in long]
            gone = long[~np.asarray(heard, bool)]
        self.gone_count = len(gone)
        """Of them those that are left out: all, or those whose cut text has nothing to learn."""
        self._kept = np.delete(np.arange(len(found)), gone) if len(gone) else None

    def __len__(self) -> int:
        return len(self._found) - self.gone_count

    def __getitem__(self, index: int) -> Conversation:
        return self._read(index if self._kept is None else int(self._kept[index]))

    def _read(self, number: int) -> Conversation:
        data = self._found[number]
        assert isinstance(data, bytes)
        ids, target_bytes, spoken = unpack(data)
        most = self._most
        return Conversation(ids[:most], target_bytes[:most], spoken[:most])
