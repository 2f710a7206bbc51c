"""Tokenizers that account for every byte: raw bytes, or a Hugging Face ``tokenizer.json``.

Losses in bits per byte compare across tokenizers only if each token knows how many bytes of the
text it stands for, so ``encode`` returns those counts beside the ids.
"""

import hashlib
import json
from pathlib import Path
from typing import Protocol

import numpy as np

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.config.model import ModelConfig
from moejax.config.paths import expand_home

# Tokens that separate documents in released tokenizers; the first that exists is the boundary.
_BOUNDARIES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<s>",
    "<bos>",
    "[BOS]",
    "[SEP]",
)


class Tokenizer(Protocol):
    """What the pipeline and the generator ask of a tokenizer."""

    vocab_size: int
    """One more than the largest id, the boundary included (V)."""
    boundary: int
    """The id that both begins and ends a document."""
    beginning: tuple[int, ...]
    """What the released model wants before every text."""
    fingerprint: str
    """Differs between tokenizers that give different ids."""

    def encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Ids and the bytes each stands for, both int32[n]; the bytes sum to ``len(text)``.

        The boundary is not added. Text that gives no token at all gives two empty arrays.
        """
        ...

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` without boundaries; what is not UTF-8 becomes U+FFFD."""
        ...


class ByteTokenizer:
    """Ids 0..255 are the bytes themselves, 256 is the boundary."""

    vocab_size = 257
    boundary = 256
    beginning: tuple[int, ...] = (256,)
    fingerprint = "bytes"

    def encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Ids and the bytes each stands for (always 1), both int32[n]."""
        ids = np.frombuffer(text, np.uint8).astype(np.int32)
        return ids, np.ones(len(ids), np.int32)

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` without boundaries; what is not UTF-8 becomes U+FFFD."""
        return bytes(int(i) for i in ids if 0 <= i < self.boundary).decode("utf-8", "replace")


def make_byte_tokenizer_files() -> dict[str, dict]:
    """The ``ByteTokenizer`` in the files of a Hugging Face tokenizer, by name: the same ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    # GPT-2's names of bytes: themselves where they can be printed, else from 256 on.
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    names = {b: chr(b) if b in printed else chr(next(others)) for b in range(256)}
    backend = Tokenizer(models.BPE({name: b for b, name in names.items()}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    end = _BOUNDARIES[0]
    backend.add_special_tokens([AddedToken(end, normalized=False, special=True)])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, ByteTokenizer.boundary)]
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

    The boundary is its own end-of-text token, or one id past its vocabulary if it has none.
    Special tokens spelled out in the text are encoded as ordinary text, never as boundaries.
    Raises ``ConfigError`` if the file is not a tokenizer.
    """

    def __init__(self, path: str | Path) -> None:
        from tokenizers import Tokenizer as Backend

        self._path = Path(path)
        try:
            data = self._path.read_bytes()
            self._backend = Backend.from_buffer(data)
        except Exception as error:  # the library raises bare Exceptions
            raise ConfigError(
                f"--data.tokenizer {path} is not a Hugging Face tokenizer.json: {error}."
            ) from error
        # Whatever the file asks for, a document is encoded whole and as it stands.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True

        known = self._backend.get_vocab(with_added_tokens=True)
        check(bool(known), f"--data.tokenizer {path} has an empty vocabulary.")
        past_the_end = max(known.values()) + 1
        name = next((token for token in _BOUNDARIES if token in known), None)
        self.boundary = past_the_end if name is None else known[name]
        self.vocab_size = max(past_the_end, self.boundary + 1)
        self.beginning = tuple(self._backend.encode("", add_special_tokens=True).ids)
        self.fingerprint = f"tokenizer.json {hashlib.sha256(data).hexdigest()[:16]}"

    def encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Ids and the bytes each stands for, both int32[n]; the bytes sum to ``len(text)``.

        A character split over several tokens counts for the first of them. Text that the
        tokenizer drops (a normalizer may strip spaces) counts for the token after it, or at the
        end of the document for the last one.
        """
        letters, byte_ends = split_characters(text)
        encoding = self._backend.encode(letters, add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.int32)
        if not len(ids):
            return ids, ids.copy()
        # Offsets count characters, and some tokenizers let them step back: never count twice.
        last = np.maximum.accumulate(np.asarray(encoding.offsets, np.int64)[:, 1])
        counts = np.diff(byte_ends[last], prepend=0)
        counts[-1] += len(text) - counts.sum()
        return ids, counts.astype(np.int32)

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` without boundaries; ids outside the vocabulary are left out."""
        size = self.vocab_size
        kept = [int(i) for i in ids if 0 <= i < size and i != self.boundary]
        return self._backend.decode(kept, skip_special_tokens=True)


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
