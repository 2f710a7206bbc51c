"""Tokens that a model can work with: some, and none beyond its embedding."""

from collections.abc import Iterable

import numpy as np

from moejax.config.errors import ConfigError
from moejax.data.documents import Document, Documents
from moejax.data.tokenizer import Tokenizer, encode_document

_BEGINNING = 2**16
"""Bytes of a document that are tokenized first."""


def check_some_tokens(
    documents: Documents, numbers: Iterable[int], tokenizer: Tokenizer, what: str
) -> None:
    """Raise ``ConfigError`` if none of the documents of these numbers has a token; ``what`` they
    are begins the message. Reads them up to the first that has.
    """
    if not any(has_tokens(documents[number], tokenizer) for number in numbers):
        raise ConfigError(
            f"{what} gives no token: all of it is blank to the tokenizer, so that there is nothing"
            f" to predict. Give other text, or another --data.tokenizer."
        )


def check_known(ids: np.ndarray, vocab_size: int, tokenizer: Tokenizer) -> None:
    """Raise ``ConfigError`` for a token (int32, any shape) beyond the ``vocab_size`` rows of a
    model's embedding: what it stands for would be no number.
    """
    highest = int(ids.max(initial=0))
    if highest >= vocab_size:
        raise ConfigError(
            f"the tokenizer makes the token {highest} {tokenizer.decode([highest])!r}, but the"
            f" model's embedding has {vocab_size} rows, for the tokens 0 to {vocab_size - 1}: put"
            f" the model's own tokenizer.json beside it."
        )


def has_tokens(document: Document, tokenizer: Tokenizer) -> bool:
    """Whether a document has a token; most often its beginning tells."""
    if not isinstance(document, bytes):
        return len(encode_document(document, tokenizer)[0]) > 0
    end = _BEGINNING
    while end < len(document) and document[end] & 0xC0 == 0x80:  # inside a character of UTF-8
        end += 1
    return len(tokenizer.encode(document[:end])[0]) > 0 or (
        end < len(document) and len(tokenizer.encode(document)[0]) > 0
    )
