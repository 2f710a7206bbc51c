"""Which part of a model an operation belongs to, by the path of the JAX operation it is from.

The parts are named as in ``counts.forward_flops``, and further ones as what they do.
"""

import re

from moejax.runtime.targets import COLLECTIVES

PATTERNS: tuple[tuple[str, str], ...] = (
    (r"\b(optimizer|gradient_norm)\b", "optimizer"),
    (r"\battention_scores\b", "attention_scores"),
    (r"\b(attention|delta)/", "attention"),
    (r"_norm\b|\._norm_", "norms"),
    (r"\bmoe(\.run)?/(.*/)?shared/", "shared_experts"),
    (r"moe\._experts/(.*/)?feed_forward\b", "experts"),
    (r"moe\._experts/.*->", "dispatch"),
    (r"moe\._experts/(.*/)?(dot_general|ragged_dot\w*|pallas_call|t?gmm)\b", "experts"),
    (r"moe\._experts\b", "dispatch"),
    (r"\bmoe\b", "routers"),
    (r"\bfeed_forward\b", "dense_feed_forward"),
    (r"\bhead\b", "head"),
    (r"\bnext_tokens\b", "next_tokens"),
    (r"\w+\._run/(gather|scatter\S*|take)", "embedding"),
)
"""The first that is found decides: a pattern in the path, and the part."""


def find_part(source: str, kind: str = "") -> str:
    """The part of the model that an operation of this source and kind belongs to; ``exchange`` for
    what travels between devices, ``other`` for what has no name.
    """
    if kind.removesuffix("-start").removesuffix("-done") in COLLECTIVES:
        return "exchange"
    return next((part for pattern, part in PATTERNS if re.search(pattern, source)), "other")
