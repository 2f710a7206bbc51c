"""The pieces of a plan: what is asked for, and sections of lines that answer it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh

from moejax.config.config import Config
from moejax.runtime.number_words import short as shortened


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What to plan."""

    config: Config
    vocab_size: int
    grid: AbstractMesh
    kind: str
    """A name of ``DEVICES``."""
    share_LE: np.ndarray
    """Each expert's share of the load; see ``read_load.read_shares``."""
    load: str
    """Where the load is from, in words."""
    context: int
    sequences: int


@dataclass(frozen=True)
class Line:
    """One row: its name, its cells in the table, its value in ``--json``, and its arithmetic."""

    key: str
    cells: tuple[str, ...]
    value: Any
    why: str = ""


@dataclass(frozen=True)
class Section:
    """Rows under one title; ``columns`` name the cells."""

    key: str
    title: str
    lines: list[Line]
    columns: tuple[str, ...] = field(default=())


def short(value: float) -> str:
    """As ``number_words.short``, with units for larger numbers, too."""
    return shortened(value, "kMGTPE")


def gigabytes(size: float) -> str:
    """A number of bytes for people: `1.5 GB`."""
    text = short(size)
    number = text.rstrip("kMGTPE")
    return f"{number} {text[len(number) :]}B"
