"""JSON lines, and files of JSON: a list, one value, or several one after the other."""

import json
from collections.abc import Iterator
from typing import IO

from moejax.config.errors import ConfigError
from moejax.data.documents import Document
from moejax.data.kinds.records import Bad, Record, pick_document
from moejax.data.text_format import BYTE_ORDER_MARK

_BLOCK = 2**20
_WHITE = " \t\r\n"
_DECODER = json.JSONDecoder()


def read_lines(file: IO[bytes], name: str, field: str) -> Iterator[Record]:
    """The documents of JSON lines; blank lines are none."""
    end = 0
    for number, line in enumerate(file, 1):
        begin, end = end, end + len(line)
        if number == 1 and line.startswith(BYTE_ORDER_MARK):
            begin, line = begin + len(BYTE_ORDER_MARK), line.removeprefix(BYTE_ORDER_MARK)
        if line.strip():
            yield Record(begin, end, parse_document(line, field, f"{name}:{number}"))


def parse_document(text: bytes, field: str, place: str) -> Document | Bad:
    """The document in a text of JSON."""
    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Bad(place, f"is not UTF-8 (byte {error.start + 1:,} of the line): convert it.")
    except (ValueError, RecursionError) as error:
        at = f" (column {error.colno:,})" if isinstance(error, json.JSONDecodeError) else ""
        return Bad(place, f"is not JSON: {_shorten_reason(error)}{at}.")
    return pick_document(value, field, place)


def read_values(file: IO[bytes], name: str, field: str) -> Iterator[Record]:
    """The documents of a JSON file: the members of a list, or values one after the other (JSON
    lines are such a file, too). Of a file that is no JSON at some place, nothing after it can be
    read.
    """
    values = _Values(file, name)
    listed = values.skip("[")
    first = True
    while not values.ended() and not (listed and values.skip("]")):
        if listed and not first and not values.skip(","):
            yield values.fail("a comma or ] is missing")
            return
        line, begin = values.line, values.place
        value = values.take()
        if isinstance(value, Bad):
            yield Record(begin, values.place, value)
            return
        first = False
        found = pick_document(value[0], field, f"{name}:{line}")
        yield Record(begin, values.place, found)
    if listed and values.ended() and not values.closed:
        yield values.fail("the list does not end: the file is cut off")
    elif listed and not values.ended():
        yield values.fail("something follows the list")


class _Values:
    """Reads values from a file, block by block: a value is in memory as a whole, not the file."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._text, self._at = "", 0
        self._rest = b""
        """The first bytes of a character, whose others are in the next block."""
        self.place, self.line, self.closed = 0, 1, False
        if self._read() and self._text.startswith("\ufeff"):
            self._move(1)

    def ended(self) -> bool:
        """Whether nothing but white space is left."""
        while True:
            begin = self._at
            while begin < len(self._text) and self._text[begin] in _WHITE:
                begin += 1
            self._move(begin)
            if self._at < len(self._text):
                return False
            if not self._read():
                return True

    def skip(self, sign: str) -> bool:
        """Go past a sign, if it comes next."""
        if self.ended() or self._text[self._at] != sign:
            return False
        self._move(self._at + 1)
        self.closed = sign == "]"
        return True

    def take(self) -> tuple[object] | Bad:
        """The next value."""
        while True:
            try:
                if self.ended():
                    raise ValueError("a value is missing: the file is cut off")
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if self._may_go_on(error) and self._read():
                    continue
                return Bad(f"{self._name}:{self.line}", f"is not JSON: {_shorten_reason(error)}.")
            if end < len(self._text) or not self._read():  # a number may go on
                self._move(end)
                return (value,)

    def fail(self, why: str) -> Record:
        """What is wrong here."""
        return Record(
            self.place, self.place, Bad(f"{self._name}:{self.line}", f"is not JSON: {why}.")
        )

    def _may_go_on(self, error: Exception) -> bool:
        """Whether it may be for the end of the block that a value is none."""
        if not isinstance(error, json.JSONDecodeError):
            return not isinstance(error, RecursionError)
        return error.msg.startswith("Unterminated") or error.pos >= len(self._text) - 16

    def _move(self, to: int) -> None:
        passed = self._text[self._at : to]
        self.place += len(passed.encode("utf-8"))
        self.line += passed.count("\n")
        self._at = to

    def _read(self) -> bool:
        """Read on: as much again as there is, so that a long value is not tried too often."""
        block = self._file.read(max(_BLOCK, len(self._text) - self._at))
        if not block:
            return False
        data = self._rest + block
        try:
            text, self._rest = data.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            if error.end < len(data) or len(data) - error.start > 3:
                raise ConfigError(
                    f"{self._name}:{self.line} or soon after is not UTF-8: convert it."
                ) from error
            text, self._rest = data[: error.start].decode("utf-8"), data[error.start :]
        self._text, self._at = self._text[self._at :] + text, 0
        return True


def _shorten_reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return str(error).removesuffix(".")[:200]
