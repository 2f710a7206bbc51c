"""What a training came to, as a row of a scaling study: its size, its tokens, its cost, its loss.

Letters here are those of the papers: N: parameters; D: tokens; E: expansion; G: granularity.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moejax.config.config import Config
from moejax.lab.study.conditions import flops_per_token
from moejax.models.counts import active_parameters

NOT_COUNTED = ("embedding", "head", "routers")
"""Parts whose parameters are not in N, as in both papers: a dense model and its routed twins of
equal active size have the same N then."""
DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model of a study, whatever it is trained on."""

    form: str
    """`dense`, or the number of experts and of those that a token meets, and of those that all
    tokens share: `16 top 4`, `16 top 2 + 2 shared`."""
    size: str
    """Width and layers: `128x3`."""
    parameters: int
    """N: what a token meets, without ``NOT_COUNTED``."""
    expansion: float
    """E: the hidden width of all experts together, shared ones included, over that of the dense
    twin; 1 for dense."""
    granularity: float
    """G: the hidden width of the dense twin over that of an expert; 1 for dense. Where both have
    the same active size it is the number of experts that a token meets."""
    flops_per_step: int
    tokens_per_step: int

    @property
    def name(self) -> str:
        """Form and size."""
        return f"{self.form} {self.size}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A shape, trained with one seed."""

    shape: Shape
    steps: int
    seed: int
    loss: float
    """The measure of what is held out, at the end."""
    seconds: float = math.nan
    """Its steps times what one takes, measured apart; NaN where that is not known."""
    held_out: bool = False
    """Not fitted, but predicted."""

    @property
    def cell(self) -> tuple[str, int]:
        """What rows of different seeds share."""
        return self.shape.name, self.steps

    @property
    def tokens(self) -> int:
        """D: all tokens of the training."""
        return self.steps * self.shape.tokens_per_step

    @property
    def flops(self) -> int:
        """All FLOPs of the training, by ``counts.forward_flops``."""
        return self.steps * self.shape.flops_per_step


def describe_shape(config: Config) -> Shape:
    """The shape of a config's model, counted from its settings."""
    model, moe = config.model, config.model.moe
    counted = active_parameters(model, vocab_size=0)  # its embedding and head do not count
    routed = any(model.routed_blocks)
    tokens = config.data.batch_size * config.positions
    shared = f" + {moe.shared_experts} shared" if moe.shared_experts else ""
    widths = moe.num_experts * moe.hidden_size + moe.shared_width
    return Shape(
        form=f"{moe.num_experts} top {moe.top_k}{shared}" if routed else DENSE,
        size=f"{model.width}x{model.num_layers}",
        parameters=sum(n for part, n in counted.items() if part not in NOT_COUNTED),
        expansion=widths / model.dense_hidden if routed else 1.0,
        granularity=model.dense_hidden / moe.hidden_size if routed else 1.0,
        flops_per_step=tokens * flops_per_token(config),
        tokens_per_step=tokens,
    )


def select_form(rows: Sequence[Row], form: str) -> list[Row]:
    """The rows of one form."""
    return [row for row in rows if row.shape.form == form]


def group_cells(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """Rows that differ in their seed alone, together."""
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        cells.setdefault(row.cell, []).append(row)
    return cells


def pool_deviations(rows: Sequence[Row]) -> np.ndarray:
    """By how much the logarithms of losses differ from the mean of their cell, of all cells with
    several seeds; those of n seeds are stretched by sqrt(n / (n - 1)), as a mean of few lies nearer
    to them than the true one. Empty if each cell has one seed.
    """
    found = [np.zeros(0)]
    for cell in group_cells(rows).values():
        logs, n = np.log([row.loss for row in cell]), len(cell)
        if n > 1:
            found.append((logs - logs.mean()) * math.sqrt(n / (n - 1)))
    return np.concatenate(found)


@dataclass(frozen=True, eq=False)
class Points:
    """What laws are about, an array each: N, D, E and G of rows."""

    N: np.ndarray
    D: np.ndarray
    E: np.ndarray
    G: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> "Points":
        """Those of these rows."""
        each = [
            (row.shape.parameters, row.tokens, row.shape.expansion, row.shape.granularity)
            for row in rows
        ]
        return cls(*np.array(each, float).reshape(-1, 4).T)
