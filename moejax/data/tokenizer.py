"""Tokenizers that account for every byte: raw bytes, or a Hugging Face ``tokenizer.json``.

Losses in bits per byte compare across tokenizers only if each token knows how many bytes of the
text it stands for, so ``encode`` returns those counts beside the ids.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moejax.config.checks import LARGEST, check, shorten
from moejax.config.errors import ConfigError
from moejax.config.model import ModelConfig
from moejax.config.paths import expand_home
from moejax.data.documents import Document, Encoded
from moejax.data.plain_text import hide_control_tokens
from moejax.data.rust_failures import explain_failure
from moejax.data.text_edges import END_NAMES, TextEdges, find_edges, find_template, make_edges
from moejax.data.token_bytes import TokenBytes, name_bytes
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

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` without control tokens; what is not UTF-8 becomes U+FFFD."""
        ...


class ByteTokenizer:
    """Ids 0..255 are the bytes themselves, 256 begins and ends documents."""

    vocab_size = 257
    edges = make_edges(256, "the tokenizer of bytes")
    is_lossless = True
    fingerprint = "bytes"

    def encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Ids and the bytes each stands for (always 1), both int32[n]."""
        ids = np.frombuffer(text, np.uint8).astype(np.int32)
        return ids, np.ones(len(ids), np.int32)

    def count_bytes(self, ids: np.ndarray) -> np.ndarray:
        """One each, int32[n]; none of the token that begins and ends documents."""
        return (ids < 256).astype(np.int32)

    def encode_with_names(self, text: str) -> np.ndarray:
        """Raises ``ConfigError``: there is no name to look for."""
        raise ConfigError(
            "--special-tokens True: this model reads bytes, among which no control token has a"
            " name: leave it out."
        )

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` without control tokens; what is not UTF-8 becomes U+FFFD."""
        return bytes(int(i) for i in ids if 0 <= i < 256).decode("utf-8", "replace")


def make_byte_tokenizer_files() -> dict[str, dict]:
    """The ``ByteTokenizer`` in the files of a Hugging Face tokenizer, by name: the same ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    backend = Tokenizer(models.BPE(dict(sorted(name_bytes().items(), key=lambda one: one[1])), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    end = END_NAMES[0]
    backend.add_special_tokens([AddedToken(end, normalized=False, special=True)])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, ByteTokenizer.edges.end)]
    )
    return {
        "tokenizer.json": json.loads(backend.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end,
            "eos_token": end,
        },
    }


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
        folder = self._path.parent if self._path.name == "tokenizer.json" else None
        self.edges = find_edges(known, special, template, folder)
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

    def _encode(self, backend: Any, text: str, *, special_tokens: bool) -> Any:
        self._growth.check(text)
        backend.encode_special_tokens = not special_tokens
        with explain_failure(f"the tokenizer {self._path} fails on the text {shorten(text)}"):
            return backend.encode(text, add_special_tokens=False)

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` without control tokens; ids outside the vocabulary are left out."""
        size, left_out = self._past_the_end, {*self.edges.before_document, self.edges.end}
        kept = [int(i) for i in ids if 0 <= i < size and int(i) not in left_out]
        with explain_failure(f"the tokenizer {self._path} fails on the tokens {shorten(kept)}"):
            return self._backend.decode(kept, skip_special_tokens=True)


def encode_document(document: Document, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a document, and the bytes that each stands for, both int32[n]. Of tokens that were
    made earlier, those that begin and end a document are left out: the pipeline puts them there.
    Raises ``ConfigError`` for one that the tokenizer has not.
    """
    if isinstance(document, bytes):
        return tokenizer.encode(document)
    if isinstance(document, Encoded):
        return document
    highest, before = int(document.max(initial=0)), tokenizer.edges.before_document
    check(
        highest < tokenizer.vocab_size,
        f"a document of the data has the token {highest}, but --data.tokenizer has the tokens 0 to"
        f" {tokenizer.vocab_size - 1}: give the tokenizer that made them.",
    )
    ids = document[len(before) :] if tuple(document[: len(before)]) == before else document
    ids = ids[:-1] if len(ids) and ids[-1] == tokenizer.edges.end else ids
    return ids, tokenizer.count_bytes(ids)


def split_characters(text: bytes) -> tuple[str, np.ndarray]:
    """The characters of ``text``, and for each count of characters the bytes they take up.

    Each byte that is not UTF-8 becomes one U+FFFD that counts as one byte.
    """
    escaped = text.decode("utf-8", "surrogateescape")
    codes = np.frombuffer(escaped.encode("utf-32-le", "surrogatepass"), np.uint32)
    # Valid UTF-8 holds no surrogates: each one here is an escaped byte.
    invalid = (codes >= 0xDC80) & (codes <= 0xDCFF)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800).astype(np.int64) + (codes >= 0x10000)
    widths[invalid] = 1
    if invalid.any():
        escaped = np.where(invalid, 0xFFFD, codes).astype("<u4").tobytes().decode("utf-32-le")
    return escaped, np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])


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
