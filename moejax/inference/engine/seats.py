"""The seats of all lanes: what a call needs to know of each text, as arrays, row by row.

Letters: B: rows of a call; N: tokens of a row; Q: pages of a table; S: seats of all lanes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moejax.config.checks import LARGEST
from moejax.inference.engine.calls import Call, Sizes
from moejax.inference.engine.texts import Text

Kind = Literal["decode", "prompt", "check"]
"""Calls that add the token which was drawn last, that read prompts, and that check drafts."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one call does."""

    kind: Kind
    texts: list[Text]
    counts: list[int]
    """How many tokens of each it reads, drafts included."""


class Seats:
    """Arrays by seat, that only change where a text changes, so that a call costs the host little.

    The seat s of a lane x is s + x * seats here.
    """

    def __init__(self, sizes: Sizes, vocab_size: int) -> None:
        seats = sizes.lanes * sizes.seats
        self._sizes, self._vocab_size = sizes, vocab_size
        self._free = [list(range(sizes.seats - 1, -1, -1)) for _ in range(sizes.lanes)]
        self._table_SQ = np.zeros((seats, max(sizes.tables[-1], sizes.prompt_tables[-1])), np.int32)
        self._draws: dict[str, np.ndarray] = {
            "temperature_B": np.zeros(seats, np.float32),
            "top_k_B": np.full(seats, vocab_size, np.int32),
            "top_p_B": np.ones(seats, np.float32),
            "seed_B": np.zeros(seats, np.int32),
            "row_B": np.zeros(seats, np.int32),
        }

    def free(self, lane: int) -> int:
        """Free seats of a lane."""
        return len(self._free[lane])

    def give(self, text: Text, lane: int) -> None:
        """A text takes a free seat of a lane."""
        text.take_seat(lane, self._free[lane].pop())
        sampling, place = text.request.sampling, self._place(text)
        self._draws["temperature_B"][place] = sampling.temperature
        self._draws["top_k_B"][place] = min(self._vocab_size, sampling.top_k or LARGEST)
        self._draws["top_p_B"][place] = sampling.top_p
        self._draws["seed_B"][place] = sampling.seed
        self._draws["row_B"][place] = text.request.number

    def take_back(self, text: Text) -> None:
        """The seat of a text is free."""
        self._table_SQ[self._place(text)] = 0
        self._free[text.lane].append(text.seat)

    def show_pages(self, text: Text, new: int) -> None:
        """The last ``new`` of a text's pages have come."""
        end = len(text.pages)
        self._table_SQ[self._place(text), end - new : end] = text.pages[end - new :]

    def forget_pages(self, text: Text) -> None:
        """Pages before those that a text has are gone."""
        table_Q = self._table_SQ[self._place(text)]
        table_Q[: len(text.pages)] = text.pages
        table_Q[len(text.pages) :] = 0

    def call(
        self,
        kind: Kind,
        texts: list[Text],
        tokens: list[np.ndarray] | None = None,
        at: list[int] | None = None,
    ) -> tuple[Call, list[int]]:
        """A call with ``tokens`` of texts, or, without, with the token that was drawn last for
        each; and the row of each text. They are at the positions ``at``, by default behind what is
        written.
        """
        sizes, lanes = self._sizes, self._sizes.lanes
        of_lane = [0] * lanes
        rows = []
        for text in texts:
            rows.append(of_lane[text.lane])
            of_lane[text.lane] += 1
        most = max(of_lane)
        heights = sizes.prompt_rows if kind == "prompt" else sizes.rows
        widths = sizes.prompt_tables if kind == "prompt" else sizes.tables
        height = next(r for r in heights if r >= most)
        rows = [text.lane * height + row for text, row in zip(texts, rows, strict=True)]
        pages = max(len(text.pages) for text in texts)
        width = next(q for q in widths if q >= pages)
        index_B = np.zeros(lanes * height, np.int32)  # a row without a text has settings of any
        index_B[rows] = [self._place(text) for text in texts]
        table_BQ = np.zeros((lanes * height, width), np.int32)
        table_BQ[rows] = self._table_SQ[index_B[rows], :width]
        fields: Any = np.zeros((4, lanes * height), np.int32)
        fields[:, rows] = [
            [text.seat for text in texts],
            [1] * len(texts) if tokens is None else [len(one) for one in tokens],
            at or [text.written for text in texts],
            [text.gone * sizes.page for text in texts],
        ]
        call = Call(
            seat_B=fields[0],
            token_BN=None if tokens is None else self._lay(kind, tokens, rows, lanes * height),
            count_B=fields[1],
            at_B=fields[2],
            begin_B=fields[3],
            table_BQ=table_BQ,
            draws={name: of_S[index_B] for name, of_S in self._draws.items()},
            every=kind == "check",
            scores=any(text.request.logprobs is not None for text in texts),
            routes=any(text.request.routes for text in texts),
        )
        return call, rows

    def _lay(
        self, kind: Kind, tokens: list[np.ndarray], rows: list[int], height: int
    ) -> np.ndarray:
        width = self._sizes.chunk if kind == "prompt" else 1 + self._sizes.drafts
        token_BN = np.zeros((height, width), np.int32)
        for row, one in zip(rows, tokens, strict=True):
            token_BN[row, : len(one)] = one
        return token_BN

    def _place(self, text: Text) -> int:
        return text.lane * self._sizes.seats + text.seat
