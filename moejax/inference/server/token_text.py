"""How single tokens are written, beside their logarithmic probabilities."""

import math
from codecs import getincrementaldecoder
from typing import Any

import numpy as np

from moejax.data.tokenizer import Tokenizer
from moejax.inference.engine.requests import Token

LEAST_LOGPROB = -9999.0
"""What stands for minus infinity, which JSON has not, as OpenAI does it."""


def write_token(token: int, tokenizer: Tokenizer) -> str:
    """A token's text. One that is a part of a character is written by its bytes, as OpenAI does it:
    ``bytes:\\xe2\\x82``.
    """
    data = tokenizer.spell(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def write_routes(tokens: tuple[Token, ...], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Tokens with their experts and weights, [L][K]; -1 stands for no expert."""
    return [
        {
            "token": write_token(token.id, tokenizer),
            "bytes": list(tokenizer.spell(token.id)),
            "experts": _list(token.expert_LK),
            "weights": [[float(f"{w:.4g}") for w in row] for row in _list(token.weight_LK)],
        }
        for token in tokens
    ]


def _list(array_LK: np.ndarray | None) -> list[list]:
    return [] if array_LK is None else array_LK.tolist()


def bound(logprob: float | None) -> float:
    """A logarithmic probability as JSON can have it."""
    return logprob if logprob is not None and math.isfinite(logprob) else LEAST_LOGPROB


def write_lists(
    tokens: tuple[Token, ...], best: int, tokenizer: Tokenizer, offset: int
) -> dict[str, Any]:
    """The ``logprobs`` of a completion; ``offset`` is the place of the first token in the text. A
    character belongs to the last of its tokens.
    """
    names = [write_token(token.id, tokenizer) for token in tokens]
    offsets, decoder = [], getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        offsets.append(offset)
        offset += len(decoder.decode(tokenizer.spell(token.id)))
    return {
        "tokens": names,
        "token_logprobs": [bound(token.logprob) for token in tokens],
        "top_logprobs": [
            {write_token(one, tokenizer): bound(p) for one, p in token.best[:best]}
            | {name: bound(token.logprob)}
            for name, token in zip(names, tokens, strict=True)
        ]
        if best
        else None,
        "text_offset": offsets,
    }


def write_content(tokens: tuple[Token, ...], best: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The ``logprobs`` of an answer in a conversation."""

    def describe(token: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": write_token(token, tokenizer),
            "logprob": bound(logprob),
            "bytes": list(tokenizer.spell(token)),
        }

    content = [
        describe(token.id, token.logprob)
        | {"top_logprobs": [describe(*one) for one in token.best[:best]]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}
