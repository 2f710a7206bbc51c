"""A sample of a text, with the class of each token and the domain that it is from."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moejax.config.checks import check
from moejax.data.documents import Documents, find_path
from moejax.data.spread import Excerpt, draw_excerpts
from moejax.data.tokenizer import Tokenizer
from moejax.lab.specialisation.classes import (
    CLASSES,
    OTHER,
    REST,
    classify_python,
    classify_tokens,
    domains,
    most_frequent,
    visible_label,
)

AROUND = 40
"""How many bytes of the text are kept on each side of a token."""
MOST_TOKENS = 2**24
MOST_LABELS = 30
"""How many tokens, or domains, are classes of their own."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The class of each token, as an index into the names of the classes."""

    label_T: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Sample:
    """T tokens of a text, in B pieces of at most N positions, without what begins documents."""

    inputs_BN: np.ndarray
    length_B: np.ndarray
    is_text_BN: np.ndarray
    """Which positions hold tokens of the text, in their order."""
    texts: tuple[bytes, ...]
    """The bytes of each piece, and up to ``AROUND`` more on either side."""
    begin_T: np.ndarray
    end_T: np.ndarray
    """The bytes of each token, in the text of its piece."""
    classes: Labels
    domains: Labels | None
    """None if they are unknown, or if there is only one."""
    documents: int
    """How many documents the pieces are from."""
    not_python: int | None
    """How many Python files Python cannot read (their class is `other`); None if the text is not
    Python."""

    @property
    def token_T(self) -> np.ndarray:
        """The id of each token."""
        return self.inputs_BN[self.is_text_BN]

    @property
    def row_T(self) -> np.ndarray:
        """The piece of each token."""
        return np.nonzero(self.is_text_BN)[0]

    def token_label(self, t: int) -> str:
        """Token t as a label."""
        return visible_label(self.texts[self.row_T[t]][self.begin_T[t] : self.end_T[t]])

    def shuffle(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The inputs with the tokens of each piece in random order, and this order: the new token t
        is token ``order_T[t]`` of the sample.
        """
        row_T = self.row_T
        order_T = np.lexsort((np.random.default_rng(seed).random(row_T.size), row_T))
        inputs_BN = self.inputs_BN.copy()
        inputs_BN[self.is_text_BN] = self.token_T[order_T]
        return inputs_BN, order_T


def check_tokens(tokens: int) -> None:
    """Raise ``ConfigError`` for more than can be counted in float32."""
    check(
        tokens <= MOST_TOKENS,
        f"--tokens {tokens} cannot be counted exactly: take {MOST_TOKENS:,} at most.",
    )


def draw_sample(
    documents: Documents, tokenizer: Tokenizer, length: int, tokens: int, whole: int = 1
) -> Sample:
    """Draw about ``tokens`` tokens in pieces of at most ``length``; see ``data.spread``. Rows are
    as long as the longest piece, rounded up to a multiple of ``whole``. Memory grows with
    ``tokens``, not with the text. Raises ``ConfigError`` for a text without tokens.
    """
    kept: list[_Kept] = []
    for _, group in itertools.groupby(
        draw_excerpts(documents, tokenizer, length, tokens), lambda excerpt: excerpt.document
    ):
        kept += _keep_excerpts([*group], documents)
    check(bool(kept), "the text gives no tokens: there is nothing to look at.")
    longest = max(len(one.inputs_N) for one in kept)
    N = -(-longest // whole) * whole
    inputs_BN, is_text_BN = (
        np.stack([np.pad(x_N, (0, N - len(x_N))) for x_N in arrays])
        for arrays in zip(*((one.inputs_N, one.is_text_N) for one in kept), strict=True)
    )
    begin_T, end_T = (
        np.concatenate(parts)
        for parts in zip(*((one.begin_T, one.end_T) for one in kept), strict=True)
    )
    sample = Sample(
        inputs_BN=inputs_BN,
        length_B=np.array([len(one.inputs_N) for one in kept]),
        is_text_BN=is_text_BN,
        texts=tuple(one.text for one in kept),
        begin_T=begin_T,
        end_T=end_T,
        documents=len({one.document for one in kept}),
        classes=Labels(np.zeros(0, int), ()),
        domains=None,
        not_python=None,
    )
    return replace(sample, domains=_label_domains(sample, kept), **_label_classes(sample, kept))


@dataclass(frozen=True, eq=False)
class _Kept:
    """What is kept of an excerpt: its tokens, their bytes and, for Python, their classes."""

    document: int
    path: str | None
    inputs_N: np.ndarray
    is_text_N: np.ndarray
    text: bytes
    begin_T: np.ndarray
    end_T: np.ndarray
    class_T: np.ndarray | None
    readable: bool


def _keep_excerpts(group: list[Excerpt], documents: Documents) -> list[_Kept]:
    """What is kept of the excerpts of one document."""
    index, text = group[0].document, group[0].text
    path = find_path(documents, index)
    is_python = path is not None and path.endswith(".py")
    class_of_byte = classify_python(text) if is_python else None
    readable = class_of_byte is not None
    if is_python and not readable:
        class_of_byte = np.full(len(text), OTHER, np.uint8)
    found = []
    for one in group:
        begin_T, end_T = one.begin_N[one.is_text_N], one.end_N[one.is_text_N]
        class_T = None
        if class_of_byte is not None:
            class_T = classify_tokens(class_of_byte, text, begin_T, end_T)
        low = max(0, int(one.begin_N[0]) - AROUND)
        own = text[low : int(one.end_N[-1]) + AROUND]
        places = (begin_T - low, end_T - low)
        found.append(
            _Kept(index, path, one.inputs_N, one.is_text_N, own, *places, class_T, readable)
        )
    return found


def _label_classes(sample: Sample, kept: Sequence[_Kept]) -> dict[str, Any]:
    """The classes of Python if all documents are Python, else the most frequent tokens."""
    if all(one.class_T is not None for one in kept):
        class_T = np.concatenate([one.class_T for one in kept])
        present, label_T = np.unique(class_T, return_inverse=True)
        names = tuple(CLASSES[i] for i in present)
        unreadable = len({one.document for one in kept if not one.readable})
        return {"classes": Labels(label_T, names), "not_python": unreadable}
    token_T = sample.token_T
    label_T, ids = most_frequent(token_T.tolist(), MOST_LABELS)
    firsts = [int(np.argmax(token_T == one)) for one in ids]
    return {"classes": _name_rest(label_T, [sample.token_label(t) for t in firsts])}


def _label_domains(sample: Sample, kept: Sequence[_Kept]) -> Labels | None:
    """The folders that the documents are from."""
    paths = [one.path for one in kept if one.path is not None]
    if len(paths) < len(kept):
        return None
    all_python = all(one.class_T is not None for one in kept)
    names = domains(paths, "(modules)" if all_python else "(files)")
    if len(set(names)) == 1:
        return None
    label_T, first = most_frequent([names[row] for row in sample.row_T.tolist()], MOST_LABELS)
    return _name_rest(label_T, first)


def _name_rest(label_T: np.ndarray, names: Sequence[str]) -> Labels:
    """The labels and their names; the label after the last name is called the rest."""
    return Labels(label_T, (*names, REST) if label_T.max() == len(names) else (*names,))
