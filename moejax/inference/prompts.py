"""What prompts may be, and the shapes in which they are read."""

from collections.abc import Sequence

import numpy as np

from moejax.config.checks import check

SLOTS = 64
"""Prompts and whole texts have a multiple of this many slots, so that few shapes are compiled."""


def round_up(slots: int) -> int:
    """The next multiple of ``SLOTS``."""
    return -(-slots // SLOTS) * SLOTS


def check_prompts(prompts: Sequence[np.ndarray], window: int | None) -> None:
    """Raise ``ConfigError`` for a prompt without tokens, or longer than the window."""
    check(len(prompts) > 0, "there is no prompt.")
    for number, length in enumerate(map(len, prompts), 1):
        check(
            length > 0,
            f"prompt {number} is empty, and this model has no token that begins a text: give it"
            f" at least a word.",
        )
        check(
            window is None or length <= window,
            f"prompt {number} has {length} tokens, more than the {window} positions that the"
            f" model sees (by default as many as it was trained on): shorten it, or say"
            f" --window {length}.",
        )
