"""A model that tests have made up, with pages of numpy arrays, for the engine's host side.

It keeps the tokens and positions that are written to pages, and draws a hash of what the table of a
row shows, in order, with the settings of the draw. So a wrong page, position, window, seat or
setting changes a text. What it draws alone, ``continue_alone`` computes from the tokens.

Its modules that look ahead keep, of each position, the tokens that follow it, and see to it that
these are the text's.
"""

from hashlib import blake2b

import numpy as np

from moejax.inference.engine.calls import Call, Drawn, Sizes
from moejax.inference.engine.requests import Request

BEST = 3
"""Tokens that scores are given of."""


def make_sizes(**changes) -> Sizes:
    """Small sizes."""
    sizes = {
        "lanes": 1,
        "seats": 4,
        "page": 4,
        "pages": 33,
        "rows": (1, 4),
        "tables": (4, 16),
        "prompt_rows": (1, 2),
        "prompt_tables": (16,),
        "chunk": 8,
    }
    return Sizes(**sizes | changes)


def draw_token(token_N, position: int, settings: dict, vocab_size: int) -> int:
    """The token after those that a position sees, from ``position - len(token_N)`` on."""
    words = np.asarray(token_N, np.int64).tobytes()
    words += repr((position, *(settings[name] for name in sorted(settings)))).encode()
    return int.from_bytes(blake2b(words, digest_size=4).digest(), "little") % vocab_size


class Later:
    """What a call draws: there when it is asked for."""

    def __init__(self, array: np.ndarray, log: list, number: int) -> None:
        self._array, self._log, self._number = array, log, number

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self._log.append(("read", self._number))
        return self._array


class MadeUpRunner:
    """Checks that every call is one of those that are compiled, and answers it.

    ``log`` has what was done, in order: ``("call", n)`` and ``("read", n)``. After ``fails_after``
    calls it raises.
    """

    def __init__(self, sizes: Sizes, vocab_size: int, window: int | None = None) -> None:
        self.sizes, self.vocab_size, self.window = sizes, vocab_size, window
        lanes = sizes.lanes
        self._token = np.full((lanes, sizes.pages, sizes.page), -1)
        self._position = np.full((lanes, sizes.pages, sizes.page), -1)
        self._drawn = np.full((lanes, sizes.seats), -1)
        self._further = np.full((lanes, sizes.pages, sizes.page, sizes.ahead), -1)
        self._before: dict[tuple[int, int], dict[int, int]] = {}
        self.log: list[tuple[str, int]] = []
        self.calls = 0
        self.fails_after: int | None = None

    def load_LE(self) -> np.ndarray:
        """Made up, too."""
        return np.full((1, 2), self.calls)

    def extend(self, call: Call) -> Drawn:
        """As ``Runner.extend``."""
        if self.calls == self.fails_after:
            raise RuntimeError("out of everything")
        self.calls += 1
        self.log.append(("call", self.calls))
        self._check(call)
        B = len(call.seat_B)
        N = 1 if call.token_BN is None else call.token_BN.shape[1]
        token_B1 = np.full((B, N if call.every else 1), -7)
        routes = np.full((B, N, 1, 1), -1)
        draft_BP = np.full((B, self.sizes.ahead), -1)
        for row in range(B):
            if count := call.count_B[row]:
                drawn = self._extend_row(call, row, row // (B // self.sizes.lanes))
                token_B1[row, : len(drawn)] = drawn
                if self.sizes.ahead and call.token_BN is not None:
                    draft_BP[row] = self._look_ahead(call, row, row // (B // self.sizes.lanes))
                first = 0 if call.every else count - 1
                routes[row, first:count, 0, 0] = call.at_B[row] + np.arange(first, count)
        scores = {}
        if call.scores:
            scores["logprob_B1"] = -token_B1.astype(np.float32)
            scores["best_B1X"] = token_B1[..., None] + np.arange(BEST)
            scores["best_logprob_B1X"] = -scores["best_B1X"].astype(np.float32)
        if call.routes:
            scores["expert_BNLK"], scores["weight_BNLK"] = routes, routes * 0.5
        if self.sizes.ahead and call.token_BN is not None:
            scores["draft_BP"] = draft_BP
        return Drawn(token_B1=Later(token_B1, self.log, self.calls), **scores)

    def _check(self, call: Call) -> None:
        sizes, (B, Q) = self.sizes, call.table_BQ.shape
        tokens = None if call.token_BN is None else call.token_BN.shape[1]
        assert (B / sizes.lanes, tokens, Q, call.every) in sizes.shapes()
        numbers = (call.seat_B, call.count_B, call.at_B, call.begin_B, call.since_B)
        for array in (*numbers, call.table_BQ):
            assert array.dtype == np.int32
        assert {len(of_B) for of_B in call.draws.values()} == {B}

    def _extend_row(self, call: Call, row: int, lane: int) -> list[int]:
        page, seat = self.sizes.page, int(call.seat_B[row])
        count, at, begin = (int(x[row]) for x in (call.count_B, call.at_B, call.begin_B))
        pages = call.table_BQ[row]
        new = [self._drawn[lane, seat]] if call.token_BN is None else call.token_BN[row, :count]
        assert count == len(new) and begin % page == 0 and begin <= at
        end = at + count
        position = np.arange(at, end)
        there = pages[(position - begin) // page]
        assert (there > 0).all()
        # Of drafts that were wrong, pages are left for the next tokens.
        assert self.sizes.drafts or not pages[(end - 1 - begin) // page + 1 :].any()
        self._token[lane, there, position % page] = new
        self._position[lane, there, position % page] = position
        settings = {name: of_B[row].item() for name, of_B in call.draws.items()}
        drawn = []
        for after in range(at + 1 if call.every else end, end + 1):
            first = begin if self.window is None else max(0, after - self.window)
            seen = np.arange(first, after)
            slots = lane, pages[(seen - begin) // page], seen % page
            assert (self._position[slots] == seen).all()
            drawn.append(self.draw(self._token[slots], after, settings))
        right = 0
        while call.every and right < count - 1 and new[right + 1] == drawn[right]:
            right += 1
        self._drawn[lane, seat] = drawn[right]
        self._last = at + (right if call.every else count - 1)
        return drawn

    def _look_ahead(self, call: Call, row: int, lane: int) -> list[int]:
        """What modules guess: mostly what will be drawn. Those of all positions that they see must
        know what follows there, but for the last ones what they guess themselves.
        """
        seat, at, begin = (int(x[row]) for x in (call.seat_B, call.at_B, call.begin_B))
        page, P, last = self.sizes.page, self.sizes.ahead, self._last
        first = max(at - P, int(call.since_B[row]), begin)
        known = {p: t for p, t in self._before.get((lane, seat), {}).items() if first <= p < at}
        assert set(known) == set(range(first, at))
        known |= {at + n: int(call.token_BN[row, n]) for n in range(last + 1 - at)}
        known[last + 1] = int(self._drawn[lane, seat])
        self._before[lane, seat] = {p: t for p, t in known.items() if last - P < p <= last}

        def slots(position) -> tuple:
            return lane, call.table_BQ[row, (position - begin) // page], position % page

        settings = {name: of_B[row].item() for name, of_B in call.draws.items()}
        seen = np.arange(begin, last + 1)
        text = [*self._token[slots(seen)], known[last + 1]]
        for end in range(last + 2, last + 2 + P):
            drawn = self.draw(text if self.window is None else text[-self.window :], end, settings)
            known[end] = (drawn + (drawn % 5 == end % 5)) % self.vocab_size
            text.append(known[end])
        for position in range(first, last + 1):
            self._further[slots(position)] = [known[position + 1 + k] for k in range(P)]
        since = int(call.since_B[row])
        for place, position in enumerate(seen):
            # Pages that were found know the rest of a prompt, in whose place something was drawn.
            certain = P if position >= since else last - position
            further = self._further[slots(position)].tolist()
            assert further[:certain] == text[place + 1 : place + 1 + P][:certain]
        return text[-P:]

    def draw(self, token_N, position: int, settings: dict) -> int:
        """The token after those that a position sees."""
        return draw_token(token_N, position, settings, self.vocab_size)


def continue_alone(request: Request, ends, vocab_size: int, window: int | None = None) -> list[int]:
    """The tokens after a prompt, by the rule alone, the one that ends the text included."""
    sampling, tokens = request.sampling, request.prompt.tolist()
    settings = {
        "temperature_B": float(np.float32(sampling.temperature)),
        "top_k_B": min(vocab_size, sampling.top_k or vocab_size),
        "top_p_B": float(np.float32(sampling.top_p)),
        "seed_B": sampling.seed,
        "row_B": request.number,
    }
    for _ in range(sampling.tokens):
        seen = tokens if window is None else tokens[-window:]
        tokens.append(draw_token(seen, len(tokens), settings, vocab_size))
        if tokens[-1] in ends:
            break
    return tokens[len(request.prompt) :]
