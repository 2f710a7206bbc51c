"""The tokenizer of raw bytes, and the same in the files that Hugging Face's tools read."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moejax.config.errors import ConfigError
from moejax.data.characters import split_characters
from moejax.data.text_edges import END_NAMES, make_edges
from moejax.data.token_bytes import name_bytes


class ByteTokenizer:
    """Ids 0..255 are the bytes themselves, 256 begins and ends documents."""

    vocab_size = 257
    edges = make_edges(256, "the tokenizer of bytes")
    is_lossless = True
    fingerprint = "bytes"
    control: Mapping[str, int] = {END_NAMES[0]: 256}
    folder: Path | None = None

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
            "--special-tokens: this model reads bytes, among which no control token has a"
            " name: leave it out."
        )

    def encode_rendered(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int32[n], and the characters that they are of, int64[n, 2]; the name of the token
        that begins and ends documents is that token.
        """
        ids, places, at = [], [], 0
        for part in re.split(f"({re.escape(END_NAMES[0])})", text):
            if part == END_NAMES[0]:
                ids.append(np.asarray([256], np.int32))
                places.append(np.asarray([[at, at + len(part)]]))
            else:
                data = part.encode("utf-8")
                byte_ends = split_characters(data)[1]
                begins = at + np.repeat(np.arange(len(part)), np.diff(byte_ends))
                ids.append(np.frombuffer(data, np.uint8).astype(np.int32))
                places.append(np.stack([begins, begins + 1], 1))
            at += len(part)
        return np.concatenate(ids), np.concatenate(places)

    def show(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` with the name of the token that begins and ends documents."""
        data = b"".join(END_NAMES[0].encode() if i == 256 else bytes([int(i)]) for i in ids)
        return data.decode("utf-8", "replace")

    def spell(self, token: int) -> bytes:
        """The byte that a token is, or its name; nothing for one that a model has besides."""
        return END_NAMES[0].encode() if token == 256 else bytes([token] * (token < 256))

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ``ids`` without control tokens; what is not UTF-8 becomes U+FFFD."""
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        try:
            data = bytes(ids)
        except ValueError:  # there is something else among them
            data = bytes(i for i in ids if 0 <= i < 256)
        return data.decode("utf-8", "replace")


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
