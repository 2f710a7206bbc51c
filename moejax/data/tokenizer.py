"""Tokenizers that account for every byte: raw bytes, or a Hugging Face ``tokenizer.json``.

Losses in bits per byte compare across tokenizers only if each token knows how many bytes of the
text it stands for, so ``encode`` returns those counts beside the ids.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moejax.config.checks import LARGEST, check, shorten
from moejax.config.errors import ConfigError
from moejax.config.model import ModelConfig
from moejax.config.paths import expand_home
from moejax.data.byte_tokenizer import ByteTokenizer
from moejax.data.characters import split_characters
from moejax.data.documents import Conversation, Document, Encoded
from moejax.data.long_texts import encode_in_stretches
from moejax.data.plain_text import hide_control_tokens
from moejax.data.rust_failures import explain_failure
from moejax.data.text_edges import END_NAMES, TextEdges, find_edges, find_template, make_edges
from moejax.data.token_bytes import TokenBytes
from moejax.data.token_lengths import find_lengths
from moejax.data.tokenizer_file import open_file

_BRACKETED = re.compile(r"[<\[].+[>\]]", re.DOTALL)
"""A name that looks like that of a control token."""


class Tokenizer(Protocol):
    """What the pipeline and the generator ask of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, those of ``edges`` included (V)."""
        ...

    edges: TextEdges
    """The tokens with which texts begin and end."""
    is_lossless: bool
    """Whether every text is known to come back when its tokens are decoded."""
    fingerprint: str
    """Differs between tokenizers that give different ids."""

    def encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Ids and the bytes each stands for, both int32[n]; the bytes sum to ``len(text)``.

        Nothing is put before or after. Text that gives no token at all gives two empty arrays.
        """
        ...

    def count_bytes(self, ids: np.ndarray) -> np.ndarray:
        """The bytes of text that tokens stand for which were made earlier, int32[n]."""
        ...

    def encode_with_names(self, text: str) -> np.ndarray:
        """Ids of a text, int32[n], in which the names of control tokens stand for these. Raises
        ``ConfigError`` if control tokens have no names.
        """
        ...

    def encode_rendered(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text in which the names of control tokens stand for these, int32[n], and the
        first character of each and the one after its last, int64[n, 2].
        """
        ...

    control: Mapping[str, int]
    """The control tokens by their names."""
    folder: Path | None
    """Where the other files of its model are."""

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` without control tokens; what is not UTF-8 becomes U+FFFD."""
        ...

    def show(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` with the names of control tokens."""
        ...

    def spell(self, token: int) -> bytes:
        """The text that a token alone stands for, which may be a part of a character; of a control
        token its name. Models may have tokens besides: of these nothing.
        """
        ...


class HuggingFaceTokenizer:
    """A tokenizer from the ``tokenizer.json`` that ships with a released model.

    How texts begin and end, the files beside it say, too (``text_edges``), if it has the name
    ``tokenizer.json``: a file of another name may stand beside those of another tokenizer. Without
    any end there, it is one id past the vocabulary. Names of control tokens that are spelled out in
    a text are ordinary text. Raises ``ConfigError`` if the file is not a tokenizer.
    """

    is_lossless = False

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        data, self._backend, self._growth = open_file(self._path)
        known = self._backend.get_vocab(with_added_tokens=True)
        check(bool(known), f"--data.tokenizer {path} has an empty vocabulary.")
        self._known, self._past_the_end = known, max(known.values()) + 1
        added = self._backend.get_added_tokens_decoder()
        special = {token.content: i for i, token in added.items() if token.special}
        try:
            template = find_template(self._backend.post_processor)
        except (LookupError, TypeError, ValueError) as error:
            raise ConfigError(
                f"--data.tokenizer {path} has a post-processor that cannot be: {error!r}."
            ) from error
        self.folder = self._path.parent if self._path.name == "tokenizer.json" else None
        self.control: Mapping[str, int] = special
        self.edges = find_edges(known, special, template, self.folder)
        self.fingerprint = f"tokenizer.json {hashlib.sha256(data).hexdigest()[:16]}"
        check(
            self.vocab_size <= LARGEST,
            f"--data.tokenizer {path} has ids up to {self.vocab_size - 1:,}: they must be less"
            f" than {LARGEST:,}.",
        )
        names = self._list_control_names(special)
        with explain_failure(f"the tokenizer {path} fails on the names of its control tokens"):
            for name in names:
                self._growth.check(f" {name} a{name}b")
            self._plain = hide_control_tokens(self._backend, names)
            self._lengths = find_lengths(self._plain, known)

    def _list_control_names(self, special: Iterable[str]) -> list[str]:
        """The names that mean nothing in a text; those of bytes (`<0x0A>`) do."""
        edges = {*self.edges.before_document, *self.edges.ends}
        marked = [
            name
            for name, token in self._known.items()
            if token in edges and _BRACKETED.fullmatch(name)
        ]
        return [name for name in {*special, *marked} if not name.startswith("<0x")]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, those of ``edges`` included (V)."""
        return max(self._past_the_end, self.edges.highest + 1)

    @property
    def edges_of_older_runs(self) -> TextEdges:
        """Runs of earlier versions: one token begins and ends documents, chosen by its name."""
        name = next((name for name in END_NAMES if name in self._known), None)
        token = self._past_the_end if name is None else self._known[name]
        return make_edges(token, "an earlier version of moejax")

    def encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Ids and the bytes each stands for, both int32[n]; the bytes sum to ``len(text)``.

        A character split over several tokens counts for the first of them. Text that the
        tokenizer drops (a normalizer may strip spaces) counts for the token after it, or at the
        end of the document for the last one.
        """
        return encode_in_stretches(self._encode_stretch, text)

    def _encode_stretch(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The same of a text of some length."""
        return self._encode_by_table(text) or self._encode_by_places(text)

    def _encode_by_table(self, text: bytes) -> tuple[np.ndarray, np.ndarray] | None:
        """Ids and bytes without the places of tokens in the text; None if it cannot be so."""
        if self._lengths is None or not text:
            return None
        try:
            letters = text.decode("utf-8")
        except UnicodeDecodeError:
            return None
        if not self._lengths.leaves(letters):
            return None
        encoding = self._encode(self._plain, letters, special_tokens=False, places=False)
        ids = np.asarray(encoding.ids, np.int32)
        counts = self._lengths.count(ids, text) if len(ids) else None
        return None if counts is None else (ids, counts)

    def _encode_by_places(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        letters, byte_ends = split_characters(text)
        encoding = self._encode(self._plain, letters, special_tokens=False)
        ids = np.asarray(encoding.ids, np.int32)
        if not len(ids):
            return ids, ids.copy()
        # Offsets count characters, and some tokenizers let them step back: never count twice.
        last = np.maximum.accumulate(np.asarray(encoding.offsets, np.int64)[:, 1])
        counts = np.diff(byte_ends[last], prepend=0)
        counts[-1] += len(text) - counts.sum()
        return ids, counts.astype(np.int32)

    def count_bytes(self, ids: np.ndarray) -> np.ndarray:
        """The bytes that tokens made earlier stand for, int32[n], as ``TokenBytes`` tells them."""
        return self._token_bytes.count(ids)

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        edges = frozenset({*self.edges.before_document, self.edges.end})
        return TokenBytes(self._known, edges, self._backend.decoder)

    def encode_with_names(self, text: str) -> np.ndarray:
        """Ids of a text, int32[n], in which the names of control tokens stand for these."""
        return np.asarray(self._encode(self._backend, text, special_tokens=True).ids, np.int32)

    def encode_rendered(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text with the names of control tokens, int32[n], and the characters that each is
        of, int64[n, 2].
        """
        found = self._encode(self._backend, text, special_tokens=True)
        places = np.asarray(found.offsets, np.int64).reshape(-1, 2)
        return np.asarray(found.ids, np.int32), places

    def _encode(self, backend: Any, text: str, *, special_tokens: bool, places: bool = True) -> Any:
        """What the library says of a text; without ``places`` it is quicker."""
        self._growth.check(text)
        backend.encode_special_tokens = not special_tokens
        with explain_failure(f"the tokenizer {self._path} fails on the text {shorten(text)}"):
            if places:
                return backend.encode(text, add_special_tokens=False)
            return backend.encode_batch_fast([text], add_special_tokens=False)[0]

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` without control tokens; ids outside the vocabulary are left out."""
        size, left_out = self._past_the_end, {*self.edges.before_document, self.edges.end}
        kept = [int(i) for i in ids if 0 <= i < size and int(i) not in left_out]
        with explain_failure(f"the tokenizer {self._path} fails on the tokens {shorten(kept)}"):
            return self._backend.decode(kept, skip_special_tokens=True)

    def show(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` with the names of control tokens."""
        with explain_failure(f"the tokenizer {self._path} fails on some tokens"):
            return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def spell(self, token: int) -> bytes:
        """The text that a token alone stands for, or its name."""
        return self._token_bytes.spell(token) or self.show([token]).encode()


def encode_document(document: Document, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a document, and the bytes that each stands for, both int32[n]. Of tokens that were
    made earlier, those that begin and end a document are left out: the pipeline puts them there.
    Raises ``ConfigError`` for one that the tokenizer has not.
    """
    if isinstance(document, bytes):
        return tokenizer.encode(document)
    if isinstance(document, Encoded):
        return document
    if isinstance(document, Conversation):
        return document.ids, document.target_bytes
    highest, before = int(document.max(initial=0)), tokenizer.edges.before_document
    check(
        highest < tokenizer.vocab_size,
        f"a document of the data has the token {highest}, but --data.tokenizer has the tokens 0 to"
        f" {tokenizer.vocab_size - 1}: give the tokenizer that made them.",
    )
    ids = document[len(before) :] if tuple(document[: len(before)]) == before else document
    ids = ids[:-1] if len(ids) and ids[-1] == tokenizer.edges.end else ids
    return ids, tokenizer.count_bytes(ids)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of ``--data.tokenizer``: ``bytes``, or the path of a ``tokenizer.json``.

    A folder that holds a ``tokenizer.json`` will do, too. Raises ``ConfigError`` if there is no
    such file, or it is not a tokenizer.
    """
    if name == "bytes":
        return ByteTokenizer()
    path = Path(expand_home("--data.tokenizer", name))
    if path.is_dir():
        path = path / "tokenizer.json"
    check(
        path.is_file(),
        f"--data.tokenizer: there is no file {path}. Write `bytes`, or the path of a Hugging Face"
        f" tokenizer.json (released models ship one).",
    )
    return HuggingFaceTokenizer(path)


def choose_vocab_size(config: ModelConfig, tokenizer: Tokenizer) -> int:
    """The size of a model's vocabulary: the config's, or the tokenizer's."""
    size = config.vocab_size or tokenizer.vocab_size
    check(
        size >= tokenizer.vocab_size,
        f"--model.vocab-size {size} is smaller than the tokenizer's, {tokenizer.vocab_size}.",
    )
    return size
