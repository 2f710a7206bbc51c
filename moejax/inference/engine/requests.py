"""What is asked of the engine, and what it gives.

Letters: K: experts a token chooses; L: routed layers.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from moejax.inference.sampling import Sampling

Ended = Literal["end", "stop", "length"]
"""A token that ends texts came, or a stop string, or all the tokens asked for."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be continued."""

    prompt: np.ndarray
    """Its tokens, int32 [n], n >= 1."""
    sampling: Sampling
    number: int = 0
    """The number of the prompt: with the seed and the position it makes the key of each draw, so
    that a text does not depend on what runs beside it."""
    logprobs: int | None = None
    """With each token, its logarithmic probability (of the logits as they are, before temperature)
    and those of this many of the best tokens."""
    routes: bool = False
    """With each token, the experts of the position from which it was drawn, and their weights."""
    ends: frozenset[int] | None = None
    """The tokens that end the text; None: those of the model. An answer in a conversation has
    others, and with none at all the text has as many tokens as are asked for."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of a text."""

    id: int
    logprob: float | None = None
    best: tuple[tuple[int, float], ...] = ()
    """The best tokens with their logarithmic probabilities, the best first."""
    expert_LK: np.ndarray | None = None
    """The experts of the position from which this token was drawn (-1: none)."""
    weight_LK: np.ndarray | None = None


class Piece(NamedTuple):
    """What came since the last piece. The texts of all pieces, put together, are the text."""

    text: str
    """What no later token can change; often empty for a token whose characters are not whole."""
    tokens: tuple[Token, ...]
    """Tokens, with those of a stop string, without the one that ended the text."""
    ended: Ended | None = None
    """On the last piece: why the text ended."""
