"""Long texts in parts: what a part needs of memory, a text of any length needs."""

from collections.abc import Callable

import numpy as np

STRETCH, OVERLAP = 2**18, 2**12
"""Bytes that are tokenised together, and those that are tokenised with both neighbours. The library
needs 125 bytes of memory for each byte of a text.
"""
_ALIKE = 16
"""Tokens after a place that must be the same on both sides, for the two to be joined there."""

Tokens = tuple[np.ndarray, np.ndarray]
"""Ids, and the bytes that each stands for, both int32 [n]."""


def encode_in_stretches(encode: Callable[[bytes], Tokens], text: bytes) -> Tokens:
    """What ``encode`` makes of a text, of which it gets at most ``STRETCH`` bytes at a time.

    Neighbouring stretches overlap, and are joined where both have the same tokens: how a text is
    cut into tokens at some place depends on what is near. Where they agree nowhere (a word of 4096
    letters), the tokens of the first one end with it.
    """
    if len(text) <= STRETCH:
        return encode(text)
    parts: list[Tokens] = []
    done = _find_edge(text, STRETCH)
    last = encode(text[:done])
    while done < len(text):
        begin = _find_edge(text, done - OVERLAP)
        end = _find_edge(text, begin + STRETCH)
        new = encode(text[begin:end])
        join = _find_join(last, new, done - begin)
        if join is None:
            join, new = (len(last[0]), 0), encode(text[done:end])
        parts.append((last[0][: join[0]], last[1][: join[0]]))
        last, done = (new[0][join[1] :], new[1][join[1] :]), end
    ids, counts = (np.concatenate(both) for both in zip(*parts, last, strict=True))
    if len(ids):
        counts[-1] += len(text) - counts.sum()  # a stretch that gives no token at all
    return ids, counts


def _find_join(one: Tokens, other: Tokens, shared: int) -> tuple[int, int] | None:
    """How many tokens of ``one`` come before those of ``other``, and how many of ``other`` are left
    out, where the last ``shared`` bytes of the one are the first of the other: near the middle of
    these. None if there is no such place.
    """
    ends = np.cumsum(one[1]) - one[1].sum() + shared
    other_ends = np.cumsum(other[1])
    common = np.intersect1d(ends[ends > 0], other_ends[other_ends < shared])
    for place in common[np.argsort(np.abs(common - shared // 2), kind="stable")]:
        i = int(np.searchsorted(ends, place, side="right"))
        j = int(np.searchsorted(other_ends, place, side="right"))
        near = one[0][i : i + _ALIKE]
        if len(near) == _ALIKE and np.array_equal(near, other[0][j : j + _ALIKE]):
            return i, j
    return None


def _find_edge(text: bytes, place: int) -> int:
    """The first place from ``place`` on at which no character of UTF-8 is cut, or the end."""
    for at in range(place, place + 4):
        if at >= len(text) or text[at] & 0xC0 != 0x80:
            return min(at, len(text))
    return place
