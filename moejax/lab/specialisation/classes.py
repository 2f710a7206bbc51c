"""Classes of the bytes and tokens of a text: keyword, name, string and so on.

Python's own tokenizer gives the class of each byte of a Python file. The class of a token is that
of its first byte that is not a space, since many tokens begin with the space before a word. In
other texts, the most frequent tokens are the classes.
"""

import builtins
import io
import keyword
import os
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from token import EXACT_TOKEN_TYPES

import numpy as np

from moejax.data.characters import split_characters

CLASSES = (
    "keyword",
    "builtin",
    "name",
    "string",
    "comment",
    "number",
    "operator",
    "line",
    "space",
    "other",
)
"""`builtin`: a built-in name that does not follow a dot; `line`: ends of lines, and the indentation
after them; `other`: text that Python cannot read."""
OTHER = CLASSES.index("other")
REST = "the rest"
"""The label of all that is not among the most frequent."""

_BY_TYPE = {
    "STRING": "string",
    "COMMENT": "comment",
    "NUMBER": "number",
    "OP": "operator",
    "ERRORTOKEN": "other",
}
_BUILTINS = frozenset(dir(builtins))
_OPENING = ("FSTRING_START", "TSTRING_START")
_CLOSING = ("FSTRING_END", "TSTRING_END")
_BOM = "\ufeff"

Place = tuple[int, int]
"""Row, from 1, and column, from 0, in characters."""


def classify_python(text: bytes) -> np.ndarray | None:
    """The class of each byte of a Python file, as an index into ``CLASSES`` (uint8 [n]); None if
    the text is not Python.

    A string is one class from its prefix to its last quote, also where Python 3.12 and later see
    the expressions in an f-string. White space is what no token covers; its place on the line makes
    it `line` or `space`. Bytes that are not UTF-8 do no harm inside strings and comments.
    """
    letters, byte_ends = split_characters(text)
    lines = letters.removeprefix(_BOM).split("\n")
    starts = np.cumsum([letters.startswith(_BOM), *(len(line) + 1 for line in lines)])
    class_of_letter = _white_space(letters)
    try:
        for name, (row, column), (end_row, end_column) in _spans(lines):
            span = slice(starts[row - 1] + column, starts[end_row - 1] + end_column)
            class_of_letter[span] = CLASSES.index(name)
    except (tokenize.TokenError, SyntaxError, IndexError):
        return None
    return np.repeat(class_of_letter, np.diff(byte_ends))


def _white_space(letters: str) -> np.ndarray:
    """`line` for ends of lines (also continued ones) and for the white space that begins a line;
    `space` for everything else.
    """
    code = np.frombuffer(letters.encode("utf-32-le"), np.uint32)
    ends = np.isin(code, [ord(letter) for letter in "\r\n\\"])
    solid = ~np.isin(code, [ord(letter) for letter in " \t\f"])
    # Indentation follows the end of a line, or begins the text.
    last = np.maximum.accumulate(np.where(solid, np.arange(code.size), -1), dtype=np.int64)
    begins = (last < 0) | (code[np.maximum(last, 0)] == ord("\n"))
    line, space = (np.uint8(CLASSES.index(name)) for name in ("line", "space"))
    return np.where(ends | begins, line, space)


def _spans(lines: Sequence[str]) -> Iterator[tuple[str, Place, Place]]:
    """(class, begin, end) of everything but white space; places are (row, column)."""
    readline = io.StringIO("\n".join(lines), newline="\n").readline
    depth, begin, before = 0, (0, 0), ""
    for token in tokenize.generate_tokens(readline):
        kind = tokenize.tok_name[token.type]
        if kind in _OPENING:
            begin, depth = begin if depth else token.start, depth + 1
        elif kind in _CLOSING:
            depth -= 1
            if not depth:
                yield "string", begin, token.end
        elif not depth and kind == "NAME":
            yield _classify_name(token.string, before), token.start, token.end
        elif not depth and kind in _BY_TYPE:
            real = kind != "OP" or token.string in EXACT_TOKEN_TYPES  # a stray `$` is one in 3.12
            yield _BY_TYPE[kind] if real else "other", token.start, token.end
        before = token.string


def _classify_name(name: str, before: str) -> str:
    if keyword.iskeyword(name):
        return "keyword"
    return "builtin" if name in _BUILTINS and before != "." else "name"


def classify_tokens(
    class_of_byte: np.ndarray, text: bytes, begin_T: np.ndarray, end_T: np.ndarray
) -> np.ndarray:
    """The class of each token, which has the bytes ``begin_T`` to ``end_T`` of the text: the class
    of its first byte that is not a space, or of its first byte if all are spaces. If several tokens
    share a character, all but the first have no bytes; they have the class of the byte before.
    """
    solid = np.flatnonzero(np.frombuffer(text, np.uint8) != ord(" "))
    next_T = np.append(solid, len(text))[np.searchsorted(solid, begin_T)]
    at_T = np.where(next_T < end_T, next_T, begin_T - (begin_T == end_T))
    return class_of_byte[np.maximum(at_T, 0)]


def domains(paths: Sequence[str], alone: str) -> list[str]:
    """The first folder of each path below the common root; ``alone`` for files without a folder."""
    folders = [os.path.dirname(path) for path in paths]
    root = os.path.commonpath(folders) if all(folders) else ""
    below = [os.path.relpath(folder or ".", root or ".") for folder in folders]
    return [alone if folder == "." else folder.split(os.sep)[0] for folder in below]


def most_frequent(labels: Sequence, most: int) -> tuple[np.ndarray, list]:
    """The index of each label among the ``most`` frequent labels, and the list of these, the most
    frequent first. All other labels have the index after the last.
    """
    kept = [label for label, _ in Counter(labels).most_common(most)]
    index = {label: i for i, label in enumerate(kept)}
    return np.array([index.get(label, len(kept)) for label in labels], np.int32), kept


def visible_label(token: bytes) -> str:
    """A token as a label, with visible white space and with control characters as numbers."""
    letters = token.decode("utf-8", "backslashreplace")
    visible = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    return "".join(
        visible.get(letter) or (letter if letter.isprintable() else ascii(letter)[1:-1])
        for letter in letters
    )
