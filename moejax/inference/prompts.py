"""Prompts as a batch: they end in the same slot."""

from collections.abc import Sequence

import numpy as np

from moejax.config.checks import check

SLOTS = 64
"""Prompts and whole texts have a multiple of this many slots, so that few shapes are compiled."""


def round_up(slots: int) -> int:
    """The next multiple of ``SLOTS``."""
    return -(-slots // SLOTS) * SLOTS


def pad_prompts(prompts: Sequence[np.ndarray], rows: int, slots: int) -> tuple[np.ndarray, ...]:
    """Tokens, segments and positions of a batch (int32 [rows, slots]) whose prompts end in the last
    slot. Padding is 0 in all.
    """
    token_BN, segment_BN, position_BN = np.zeros((3, rows, slots), np.int32)
    for row, prompt in enumerate(prompts):
        begin = slots - len(prompt)
        token_BN[row, begin:] = prompt
        segment_BN[row, begin:] = 1
        position_BN[row, begin:] = np.arange(len(prompt))
    return token_BN, segment_BN, position_BN


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
