"""How far experts specialise: what their choices tell of the class of a token.

``counts_EY`` counts choices: how often a token of class y (Y of them) asked for expert e. P below
is the distribution of these choices. Muennighoff et al. 2024 (OLMoE), section 5, and Jiang et al.
2024 (Mixtral), section 5, show the share of a domain's, or of a token's, choices that each expert
gets; lift is that share over the expert's share of all choices.

To find what chance would give, the classes are shifted against the routing, in a circle. This keeps
the lengths of the runs, in which neighbouring tokens share a class or an expert. A plain
permutation would destroy the runs, and almost everything would look significant.

Letters: Y: classes of tokens; Z: shifts of the classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moejax.runs.lift import SURE, lift


def count_choices(chosen_TE: np.ndarray, class_T: np.ndarray, classes: int) -> np.ndarray:
    """``counts_EY`` (int64) of the tokens that chose each expert; exact up to 2^24 tokens."""
    return next(_count_by_shift(chosen_TE, class_T, classes, [0]))


def shifted_counts(
    chosen_TE: np.ndarray, class_T: np.ndarray, classes: int, shifts: Sequence[int]
) -> np.ndarray:
    """``counts_ZEY``: the counts after moving the classes by each of the shifts, in a circle."""
    return np.stack([*_count_by_shift(chosen_TE, class_T, classes, shifts)])


def _count_by_shift(
    chosen_TE: np.ndarray, class_T: np.ndarray, classes: int, shifts: Sequence[int]
) -> Iterator[np.ndarray]:
    chosen_ET = np.ascontiguousarray(chosen_TE.T, np.float32)
    one_hot_TY = np.eye(classes, dtype=np.float32)[class_T]
    return ((chosen_ET @ np.roll(one_hot_TY, by, 0)).astype(np.int64) for by in shifts)


def draw_shifts(tokens: int, least: int, count: int, seed: int = 0) -> list[int]:
    """Random shifts of a circle of ``tokens`` tokens. Each is by at least ``least`` tokens, or by a
    quarter of the circle if that is less, in both directions.
    """
    least = min(least, tokens // 4)
    return np.random.default_rng(seed).integers(least, tokens - least + 1, count).tolist()


def z_scores(counts_EY: np.ndarray, null_ZEY: np.ndarray) -> np.ndarray:
    """Distance of the counts from the mean of the shifted counts, in standard deviations of the
    shifted counts; 0 where these are all the same.
    """
    sd_EY = null_ZEY.std(0, ddof=1)
    away_EY = counts_EY - null_ZEY.mean(0)
    return np.divide(away_EY, sd_EY, out=np.zeros(sd_EY.shape), where=sd_EY > 0)


def contributions(counts_EY: np.ndarray) -> np.ndarray:
    """P(e, y) log2 lift, ``bits_EY``: what each cell adds to ``mutual_information``."""
    share_EY = counts_EY / np.maximum(counts_EY.sum((-2, -1), keepdims=True), 1)
    return share_EY * np.log2(np.where(counts_EY > 0, lift(counts_EY), 1))


def mutual_information(counts_EY: np.ndarray) -> np.ndarray:
    """Bits that one choice of a token tells of its class: sum of P(e, y) log2 lift. Leading
    dimensions are kept. It is too large for few tokens; the shifted classes show by how much.
    """
    return contributions(counts_EY).sum((-2, -1))


def entropy(count_Y: np.ndarray) -> float:
    """Bits that it takes to tell the class of a token: no routing can tell more."""
    share_Y = count_Y[count_Y > 0] / count_Y.sum()
    return float(-(share_Y * np.log2(share_Y)).sum())


@dataclass(frozen=True, eq=False)
class Choices:
    """The experts that each token chose in each layer: a bit for each expert."""

    packed_LTE: np.ndarray
    """uint8; eight experts in a byte."""
    experts: int

    def __len__(self) -> int:
        return len(self.packed_LTE)

    def __iter__(self) -> Iterator[np.ndarray]:
        """``chosen_TE`` (bool) of each layer."""
        return map(self.layer, range(len(self)))

    def layer(self, index: int) -> np.ndarray:
        """``chosen_TE`` (bool) of a layer."""
        return np.unpackbits(self.packed_LTE[index], axis=-1, count=self.experts).astype(bool)


@dataclass(frozen=True, eq=False, kw_only=True)
class Counted:
    """Which experts take which classes of tokens; L are the routed layers."""

    counts_LEY: np.ndarray
    """Choices of each expert by tokens of each class."""
    z_LEY: np.ndarray
    """How far these are from chance, in standard deviations."""
    bits_L: np.ndarray
    """Mutual information of expert and class: what a choice tells of the class of its token."""
    chance_L: np.ndarray
    """Its mean over the shifts."""

    @property
    def lift_LEY(self) -> np.ndarray:
        """P(expert | class) / P(expert)."""
        return lift(self.counts_LEY)

    @property
    def sure_LEY(self) -> np.ndarray:
        """Whether a cell differs from chance."""
        return np.abs(self.z_LEY) >= SURE


@dataclass(frozen=True, eq=False, kw_only=True)
class Association(Counted):
    """How the routing depends on one kind of class."""

    names: tuple[str, ...]
    """The names of the classes (Y)."""
    chance_sd_L: np.ndarray
    """Its standard deviation over the shifts."""
    shuffled_L: np.ndarray
    """The same for the shuffled text: what tokens tell without their order."""
    entropy: float
    """Entropy of the class of a token, in bits."""


def associate(
    choices: Choices,
    shuffled: Choices,
    class_T: np.ndarray,
    order_T: np.ndarray,
    names: Sequence[str],
    shifts: Sequence[int],
) -> Association:
    """Compare the choices of a text's tokens with their classes. Token t of the shuffled text is
    token ``order_T[t]`` of the text.
    """
    Y, found = len(names), []
    for chosen_TE, moved_TE in zip(choices, shuffled, strict=True):
        own_EY = count_choices(chosen_TE, class_T, Y)
        null_ZEY = shifted_counts(chosen_TE, class_T, Y, shifts)
        chance_Z = mutual_information(null_ZEY)
        moved_EY = count_choices(moved_TE, class_T[order_T], Y)
        found.append(
            (
                own_EY,
                z_scores(own_EY, null_ZEY),
                mutual_information(own_EY),
                chance_Z.mean(),
                chance_Z.std(ddof=1),
                mutual_information(moved_EY),
            )
        )
    stacked = [np.stack(values) for values in zip(*found, strict=True)]
    counts_LEY, z_LEY, bits_L, chance_L, chance_sd_L, shuffled_L = stacked
    return Association(
        names=tuple(names),
        counts_LEY=counts_LEY,
        z_LEY=z_LEY,
        bits_L=bits_L,
        chance_L=chance_L,
        chance_sd_L=chance_sd_L,
        shuffled_L=shuffled_L,
        entropy=entropy(np.bincount(class_T, minlength=Y)),
    )


@dataclass(frozen=True)
class Cell:
    """An expert, and a class of which it takes more than its share."""

    layer: int
    """Index among the routed layers."""
    expert: int
    label: int
    lift: float
    z: float
    bits: float
    """What it adds to the mutual information."""
    of_class: float
    """The part of the class's choices that goes to the expert."""
    of_expert: float
    """The part of the expert's choices that comes from the class."""


def strongest_cells(association: Association, count: int) -> list[Cell]:
    """Of the cells that differ from chance and have more than their share: those that add most to
    the mutual information of their layer.
    """
    bits_LEY, lift_LEY = contributions(association.counts_LEY), association.lift_LEY
    worth_LEY = np.where(association.z_LEY >= SURE, bits_LEY, 0)
    best = np.argsort(-worth_LEY, axis=None, kind="stable")[:count]
    places = zip(*np.unravel_index(best, worth_LEY.shape), strict=True)
    found = []
    for layer, expert, label in (map(int, place) for place in places):
        at, counted_EY = (layer, expert, label), association.counts_LEY[layer]
        if worth_LEY[at] > 0:
            count_ = counted_EY[expert, label]
            shares = count_ / counted_EY[:, label].sum(), count_ / counted_EY[expert].sum()
            values = (x_LEY[at] for x_LEY in (lift_LEY, association.z_LEY, bits_LEY))
            found.append(Cell(*at, *map(float, values), *map(float, shares)))
    return found
