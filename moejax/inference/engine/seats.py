"""The seats of all lanes: what a call needs to know of each text, as arrays, row by row.

Letters: B: rows of a call; N: tokens of a row; Q: pages of a table; S: seats of all lanes.
"""

from typing import Any

import numpy as np

from moejax.config.checks import LARGEST
from moejax.inference.engine.calls import Call, Sizes
from moejax.inference.engine.texts import Text


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

    def call(self, texts: list[Text], counts: list[int] | None) -> tuple[Call, list[int]]:
        """A call with the next ``counts`` tokens of texts, or, without counts, with the token that
        was drawn last for each; and the row of each text.
        """
        sizes, lanes = self._sizes, self._sizes.lanes
        of_lane = [0] * lanes
        rows = []
        for text in texts:
            rows.append(of_lane[text.lane])
            of_lane[text.lane] += 1
        most = max(of_lane)
        decodes = counts is None
        height = next(r for r in (sizes.rows if decodes else sizes.prompt_rows) if r >= most)
        rows = [text.lane * height + row for text, row in zip(texts, rows, strict=True)]
        pages = max(len(text.pages) for text in texts)
        width = next(q for q in (sizes.tables if decodes else sizes.prompt_tables) if q >= pages)
        index_B = np.zeros(lanes * height, np.int32)  # a row without a text has settings of any
        index_B[rows] = [self._place(text) for text in texts]
        table_BQ = np.zeros((lanes * height, width), np.int32)
        table_BQ[rows] = self._table_SQ[index_B[rows], :width]
        fields: Any = np.zeros((4, lanes * height), np.int32)
        fields[:, rows] = [
            [text.seat for text in texts],
            counts or [1] * len(texts),
            [text.written for text in texts],
            [text.gone * sizes.page for text in texts],
        ]
        call = Call(
            seat_B=fields[0],
            token_BN=None if counts is None else self._tokens(texts, counts, rows, lanes * height),
            count_B=fields[1],
            at_B=fields[2],
            begin_B=fields[3],
            table_BQ=table_BQ,
            draws={name: of_S[index_B] for name, of_S in self._draws.items()},
            scores=any(text.request.logprobs is not None for text in texts),
            routes=any(text.request.routes for text in texts),
        )
        return call, rows

    def _tokens(
        self, texts: list[Text], counts: list[int], rows: list[int], height: int
    ) -> np.ndarray:
        token_BN = np.zeros((height, self._sizes.chunk), np.int32)
        for text, count, row in zip(texts, counts, rows, strict=True):
            token_BN[row, :count] = text.tokens(text.written, text.written + count)
        return token_BN

    def _place(self, text: Text) -> int:
        return text.lane * self._sizes.seats + text.seat
