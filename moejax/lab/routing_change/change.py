"""What the tokens of one text choose in a model before and after it was trained on.

A choice is kept if the same token chose the same expert in the same layer before: router saturation
(Muennighoff et al. 2024, OLMoE, section 5.1), here by layer, by expert and by class of token.

Letters: Y: classes of tokens; Z: shifts of the classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moejax.lab.specialisation.association import (
    Choices,
    Counted,
    count_choices,
    mutual_information,
    shifted_counts,
    z_scores,
)
from moejax.lab.specialisation.sample import Labels
from moejax.moe import balance


@dataclass(frozen=True, eq=False, kw_only=True)
class Side(Counted):
    """The routing of one of the two models."""

    description: str

    @property
    def load_LE(self) -> np.ndarray:
        """Choices of each expert."""
        return self.counts_LEY.sum(-1)

    @property
    def violation_L(self) -> np.ndarray:
        """The largest load over the mean, less 1."""
        return np.asarray(balance.max_violation(self.load_LE))

    @property
    def dead(self) -> int:
        """Experts that no token chose."""
        return balance.dead_experts(self.load_LE)


@dataclass(frozen=True, eq=False)
class Change:
    """All that the page shows."""

    before: Side
    after: Side
    data: str
    """One line about the text."""
    tokens: int
    documents: int
    layers: tuple[int, ...]
    """Their numbers in the model."""
    experts: tuple[str, ...]
    classes: tuple[str, ...]
    python: bool
    """Whether the classes are those of Python, or else the most frequent tokens."""
    entropy: float
    """Bits that it takes to tell the class of a token."""
    kept_LEY: np.ndarray
    """Choices that were made before, too."""

    @property
    def agreement_L(self) -> np.ndarray:
        """The share of the choices before that is kept."""
        return share(self.kept_LEY.sum((1, 2)), self.before.load_LE.sum(1))

    @property
    def chance_L(self) -> np.ndarray:
        """That share if both chose apart, each with the loads that it has."""
        before_LE, after_LE = self.before.load_LE, self.after.load_LE
        return share((before_LE * after_LE).sum(1), self.tokens * before_LE.sum(1))

    @property
    def agreement(self) -> float:
        """That share over all layers."""
        return float(self.kept_LEY.sum() / max(1, self.before.load_LE.sum()))

    @property
    def chance(self) -> float:
        """The share by chance over all layers, which have as many choices each."""
        return float(self.chance_L.mean())

    @property
    def kept_of_expert_LE(self) -> np.ndarray:
        """The share of the tokens of each expert that it has kept; 0 of none."""
        return share(self.kept_LEY.sum(2), self.before.load_LE)

    @property
    def kept_of_class_LY(self) -> np.ndarray:
        """The share of the choices of each class that is kept."""
        return share(self.kept_LEY.sum(1), self.before.counts_LEY.sum(1))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """A part of a whole; 0 where there is nothing."""
    return part / np.maximum(whole, 1)


def look_at_side(description: str, choices: Choices, labels: Labels, shifts: Sequence[int]) -> Side:
    """The routing of one model on a text whose tokens have these classes; the classes are shifted
    against the routing to learn what chance gives.
    """
    found, Y = [], len(labels.names)
    for chosen_TE in choices:
        counts_EY = count_choices(chosen_TE, labels.label_T, Y)
        null_ZEY = shifted_counts(chosen_TE, labels.label_T, Y, shifts)
        bits, chance = mutual_information(counts_EY), mutual_information(null_ZEY).mean()
        found.append((counts_EY, z_scores(counts_EY, null_ZEY), bits, chance))
    counts_LEY, z_LEY, bits_L, chance_L = (np.stack(x) for x in zip(*found, strict=True))
    return Side(
        description=description,
        counts_LEY=counts_LEY,
        z_LEY=z_LEY,
        bits_L=bits_L,
        chance_L=chance_L,
    )


def count_kept(before: Choices, after: Choices, labels: Labels) -> np.ndarray:
    """The choices that both make, by expert and class: ``kept_LEY``."""
    both = zip(before, after, strict=True)
    Y = len(labels.names)
    return np.stack([count_choices(one & other, labels.label_T, Y) for one, other in both])
