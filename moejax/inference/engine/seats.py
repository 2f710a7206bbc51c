"""The seats of all lanes: what a call needs to know of each text, as arrays, row by row.

Letters: B: rows of a call; N: tokens of a row; Q: pages of a table; S: seats of all lanes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moejax.config.checks import LARGEST
from moejax.inference.engine.calls import Call, Sizes
from moejax.inference.engine.texts import Text
from moejax.inference.sampling import Draws

Kind = Literal["decode", "prompt", "check"]
"""Calls that add the token which was drawn last, that read prompts, and that check drafts."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one call does."""

    kind: Kind
    texts: list[Text]
    counts: list[int]
    """How many tokens of each it reads, drafts included."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What calls have in common while they are for the same texts, in the same seats."""

    texts: list[Text]
    rows: list[int]
    """The row of each."""
    index_B: np.ndarray
    """The seat of each row, of all lanes; behind the last for a row without a text."""
    seat_B: np.ndarray
    draws: Draws
    scores: bool
    routes: bool


class Seats:
    """Arrays by seat, that only change where a text changes, so that a call costs the host little.

    The seat s of a lane x is s + x * seats here; the one behind all is nobody's.
    """

    def __init__(self, sizes: Sizes, vocab_size: int) -> None:
        seats = sizes.lanes * sizes.seats + 1
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
        self._frames: dict[Kind, Frame] = {}

    def free(self, lane: int) -> int:
        """Free seats of a lane."""
        return len(self._free[lane])

    def give(self, text: Text, lane: int) -> None:
        """A text takes a free seat of a lane."""
        self._frames.clear()
        text.take_seat(lane, self._free[lane].pop())
        sampling, place = text.request.sampling, self._place(text)
        self._draws["temperature_B"][place] = sampling.temperature
        self._draws["top_k_B"][place] = min(self._vocab_size, sampling.top_k or LARGEST)
        self._draws["top_p_B"][place] = sampling.top_p
        self._draws["seed_B"][place] = sampling.seed
        self._draws["row_B"][place] = text.request.number

    def take_back(self, text: Text) -> None:
        """The seat of a text is free."""
        self._frames.clear()
        self._table_SQ[self._place(text)] = 0
        self._free[text.lane].append(text.seat)

    def show_pages(self, text: Text, new: int) -> None:
        """The last ``new`` of a text's pages have come."""
        table_Q, end = self._table_SQ[self._place(text)], len(text.pages)
        for place in range(end - new, end):
            table_Q[place] = text.pages[place]

    def forget_pages(self, text: Text, gone: int) -> None:
        """So many pages before those that a text has are gone."""
        table_Q = self._table_SQ[self._place(text)]
        table_Q[:-gone] = table_Q[gone:]
        table_Q[-gone:] = 0

    def show_all_pages(self, text: Text) -> None:
        """Other pages are a text's."""
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
        sizes, frame = self._sizes, self._frame(kind, texts)
        rows, B = frame.rows, len(frame.index_B)
        widths = sizes.prompt_tables if kind == "prompt" else sizes.tables
        pages = max([len(text.pages) for text in texts])
        width = next(q for q in widths if q >= pages)
        fields = np.zeros((4, B), np.int32)
        fields[:, rows] = [
            [1] * len(texts) if tokens is None else [len(one) for one in tokens],
            at or [text.written for text in texts],
            [text.gone * sizes.page for text in texts],
            [text.since for text in texts],
        ]
        call = Call(
            seat_B=frame.seat_B,
            token_BN=None if tokens is None else self._lay(kind, tokens, rows, B),
            count_B=fields[0],
            at_B=fields[1],
            begin_B=fields[2],
            since_B=fields[3],
            table_BQ=self._table_SQ[frame.index_B, :width],
            draws=frame.draws,
            every=kind == "check",
            scores=frame.scores,
            routes=frame.routes,
        )
        return call, rows

    def _frame(self, kind: Kind, texts: list[Text]) -> "Frame":
        """The last one of this kind, if it was for these texts, or a new one."""
        frame = self._frames.get(kind)
        if frame is None or frame.texts != texts:
            frame = self._frames[kind] = self._make_frame(kind, texts)
        return frame

    def _make_frame(self, kind: Kind, texts: list[Text]) -> "Frame":
        sizes, of_lane, rows = self._sizes, [0] * self._sizes.lanes, []
        for text in texts:
            rows.append(of_lane[text.lane])
            of_lane[text.lane] += 1
        heights = sizes.prompt_rows if kind == "prompt" else sizes.rows
        height = next(r for r in heights if r >= max(of_lane))
        rows = [text.lane * height + row for text, row in zip(texts, rows, strict=True)]
        index_B = np.full(sizes.lanes * height, sizes.lanes * sizes.seats)
        index_B[rows] = [self._place(text) for text in texts]
        return Frame(
            texts=list(texts),
            rows=rows,
            index_B=index_B,
            seat_B=(index_B % sizes.seats).astype(np.int32),
            draws={name: of_S[index_B] for name, of_S in self._draws.items()},
            scores=any(text.request.logprobs is not None for text in texts),
            routes=any(text.request.routes for text in texts),
        )

    def _lay(
        self, kind: Kind, tokens: list[np.ndarray], rows: list[int], height: int
    ) -> np.ndarray:
        sizes = self._sizes
        width = sizes.chunk if kind == "prompt" else 1 + sizes.drafts
        fewest = kind == "prompt" and height == sizes.lanes * sizes.prompt_rows[0]
        if fewest and max(len(one) for one in tokens) <= sizes.short:
            width = sizes.short
        token_BN = np.zeros((height, width), np.int32)
        for row, one in zip(rows, tokens, strict=True):
            token_BN[row, : len(one)] = one
        return token_BN

    def _place(self, text: Text) -> int:
        return text.lane * self._sizes.seats + text.seat
