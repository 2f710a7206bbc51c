"""A portrait of an expert: its classes, its most frequent tokens, and places in the text.

Letters: Y: classes of tokens.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moejax.data.characters import split_characters
from moejax.lab.specialisation.association import Association, Choices, contributions
from moejax.lab.specialisation.sample import AROUND, Sample
from moejax.runs.lift import SURE

SNIPPETS = 6
TOKENS = 10
"""Snippets and tokens of each expert that is shown."""
CLASSES_SHOWN = 3

Snippet = tuple[tuple[str, int], ...]
"""A piece of text in parts, each with a number: 2 for the token that is shown, 1 for other tokens
that the expert takes, 0 for the rest."""


@dataclass(frozen=True)
class Portrait:
    """What one expert takes."""

    layer: int
    """Index among the routed layers."""
    expert: int
    choices: int
    bits: float
    """What it adds to the mutual information of the layer's experts and the classes."""
    classes: tuple[tuple[str, float], ...]
    """Classes of which it takes more than its share, not by chance, with their lift; the most
    important first."""
    tokens: tuple[tuple[str, float], ...]
    """Its most frequent tokens, each with the share of its occurrences that the expert takes."""
    snippets: tuple[Snippet, ...]


def draw_portraits(
    sample: Sample, choices: Choices, association: Association, most: int
) -> Iterator[Portrait]:
    """Portraits of the ``most`` experts of each layer that add most to its mutual information, in
    the order of their numbers. Snippets show the classes of which an expert takes more than its
    share, not by chance; if there are none, any class.
    """
    row_T = sample.row_T
    ids, first, which_T = np.unique(sample.token_T, return_index=True, return_inverse=True)
    of_token = np.bincount(which_T)
    for layer, chosen_TE in enumerate(choices):
        bits_EY, lift_EY = contributions(association.counts_LEY[layer]), association.lift_LEY[layer]
        bits_E = bits_EY.sum(-1)
        for expert in sorted(np.argsort(-bits_E, kind="stable")[:most].tolist()):
            chosen_T = chosen_TE[:, expert]
            sure_Y = association.z_LEY[layer, expert] >= SURE
            ranked = np.argsort(-np.where(sure_Y, bits_EY[expert], 0), kind="stable").tolist()
            labels = [y for y in ranked if sure_Y[y]][:CLASSES_SHOWN]
            taken = np.bincount(which_T[chosen_T], minlength=len(ids))
            tokens = [i for i in np.argsort(-taken, kind="stable")[:TOKENS].tolist() if taken[i]]
            places = [chosen_T & (sample.classes.label_T == y) for y in labels] or [chosen_T]
            yield Portrait(
                layer=layer,
                expert=expert,
                choices=int(chosen_T.sum()),
                bits=float(bits_E[expert]),
                classes=tuple((association.names[y], float(lift_EY[expert, y])) for y in labels),
                tokens=tuple(
                    (sample.token_label(first[i]), taken[i] / of_token[i]) for i in tokens
                ),
                snippets=tuple(
                    cut_snippet(sample, row_T, chosen_T, t)
                    for candidate_T in places
                    for t in pick_spread(candidate_T, row_T, SNIPPETS // len(places))
                ),
            )


def pick_spread(candidate_T: np.ndarray, row_T: np.ndarray, count: int) -> list[int]:
    """Pick up to ``count`` candidates, spread evenly over the pieces of the text: from a piece, the
    one in the middle.
    """
    found = np.flatnonzero(candidate_T)
    _, first, size = np.unique(row_T[found], return_index=True, return_counts=True)
    middle = found[first + size // 2]
    count = min(count, len(middle))
    return [int(middle[(2 * i + 1) * len(middle) // (2 * count)]) for i in range(count)]


def cut_snippet(sample: Sample, row_T: np.ndarray, chosen_T: np.ndarray, t: int) -> Snippet:
    """The text around token t, in which the tokens that the expert takes are marked."""
    row = row_T[t]
    text, begin, end = sample.texts[row], int(sample.begin_T[t]), int(sample.end_T[t])
    level = np.zeros(len(text), np.int8)
    for other in range(*np.searchsorted(row_T, [row, row + 1])):
        if chosen_T[other]:
            level[sample.begin_T[other] : sample.end_T[other]] = 1
    level[begin:end] = 2
    low, high = (_to_character(text, at) for at in (max(0, begin - AROUND), end + AROUND))
    letters, byte_ends = split_characters(text[low:high])
    parts = zip(letters, level[low:high][byte_ends[:-1]].tolist(), strict=True)
    groups = itertools.groupby(parts, lambda part: part[1])
    return tuple(("".join(letter for letter, _ in group), kind) for kind, group in groups)


def _to_character(text: bytes, at: int) -> int:
    """The first place from ``at`` on where a character of UTF-8 may begin."""
    return next((i for i in range(at, len(text)) if text[i] & 0xC0 != 0x80), len(text))
