"""The engine without its thread: texts come, and each step calls the model once.

A step gives the device its next call, and only then reads the tokens of the call before, so that
the device has work while the host looks at them. What the next call does is known without them: the
device keeps each seat's last token. If a text turns out to have ended, one row of the call that is
on its way was for nothing.

Letters: X: the best tokens that scores are given of.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from moejax.config.checks import LARGEST, check
from moejax.config.errors import UserError
from moejax.inference.engine.calls import Drawn, Runner
from moejax.inference.engine.readers import Item
from moejax.inference.engine.requests import Request, Token
from moejax.inference.engine.schedule import Schedule
from moejax.inference.engine.stats import EngineStats, Tally
from moejax.inference.engine.texts import Text, TextRules


@dataclass(frozen=True)
class Flight:
    """A call that was given to the device."""

    drawn: Drawn
    rows: list[tuple[int, int, Text]]
    """Of those whose token is a text's next one: the row, its last token in it, and the text."""


class Core:
    """Texts that are continued together by a runner. It is called by one thread only."""

    def __init__(
        self,
        runner: Runner,
        rules: TextRules,
        *,
        share: bool = True,
        prompt_calls: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner = runner
        self._rules, self._clock = rules, clock
        self._schedule = Schedule(
            runner.sizes,
            rules.vocab_size,
            window=rules.window,
            share=share,
            prompt_calls=prompt_calls,
        )
        self._texts: dict[int, Text] = {}
        self._flight: Flight | None = None
        self._tally = Tally()

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._texts) or self._flight is not None

    @property
    def longest(self) -> int:
        """Tokens that a text may have, prompt and all."""
        attention = self._rules.attention
        return min(self._schedule.longest, (attention and attention.longest) or LARGEST)

    def check(self, request: Request) -> None:
        """Raise ``ConfigError`` for a request that cannot be answered. Any thread may ask."""
        self._rules.check(request)
        prompt, tokens = len(request.prompt), request.sampling.tokens
        check(
            prompt + tokens <= self._schedule.longest,
            f"a prompt of {prompt:,} tokens and {tokens:,} to be generated: the cache holds texts"
            f" of at most {self._schedule.longest:,} tokens.",
        )

    def add(self, number: int, request: Request, came_at: float | None = None) -> None:
        """Take in a request that was checked, under a number that is larger than those before.
        ``came_at``: when it was asked for, by the clock.
        """
        text = Text(number, request, self._rules, self._clock() if came_at is None else came_at)
        self._texts[number] = text
        self._schedule.waiting.append(text)

    def cancel(self, number: int) -> None:
        """Let a text be: its pages are free for the next step. Nothing more of it is given; one
        that has ended, or never was, is none.
        """
        if text := self._texts.get(number):
            self._leave(text, "cancelled")

    def step(self) -> list[tuple[int, Item]]:
        """Call the model, and read what the call before has drawn: pieces with the numbers of
        their texts; for a text whose tokens the tokenizer fails on, the error.
        """
        before, self._flight = self._flight, self._give_call()
        return [] if before is None else self._read(before)

    def _give_call(self) -> Flight | None:
        work = self._schedule.next()
        if work is None:
            return None
        call, rows = self._schedule.seats.call(work.texts, work.counts)
        drawn = self.runner.extend(call)
        for text in work.texts:
            if not text.read_before:
                text.read_before = True
                self._tally.prompt_tokens += len(text.request.prompt)
        self._schedule.wrote(work)
        counts = work.counts or [1] * len(rows)
        self._tally.prompt_calls += work.counts is not None
        self._tally.decode_calls += work.counts is None
        there = zip(rows, counts, work.texts, strict=True)
        return Flight(drawn, [(row, n - 1, text) for row, n, text in there if text.decoding])

    def _read(self, flight: Flight) -> list[tuple[int, Item]]:
        drawn = flight.drawn
        items: list[tuple[int, Item]] = []
        if not flight.rows:
            return items  # nothing that was drawn is of use: the prompts go on
        token_B = np.asarray(drawn.token_B1)[:, 0].tolist()
        now = self._clock()
        tokens = _Tokens(drawn)
        self._tally.rows += len(flight.rows)
        for row, last, text in flight.rows:
            text.unread -= 1
            if text.over:
                self._tally.lost_rows += 1
                continue
            try:
                piece = text.hear(tokens.read(row, last, token_B[row], text.request))
            except UserError as error:  # no other text is to suffer from it
                self._leave(text, "failed")
                items.append((text.id, error))
                continue
            self._count(text, now, len(piece.tokens))
            if piece.ended:
                self._leave(text, piece.ended)
            items.append((text.id, piece))
        return items

    def _leave(self, text: Text, why: str) -> None:
        del self._texts[text.id]
        self._schedule.leave(text)
        self._tally.ended[why] += 1

    def _count(self, text: Text, now: float, tokens: int) -> None:
        if text.heard_at is None:
            self._tally.first.add(now - text.came_at)
        else:
            self._tally.next.add(now - text.heard_at)
        text.heard_at = now
        self._tally.drawn_tokens += tokens

    def stats(self, failed: str | None = None) -> EngineStats:
        """What is known between two steps."""
        schedule, tally, pools = self._schedule, self._tally, self._schedule.pools
        sizes = self.runner.sizes
        slots, lost = schedule.slots()
        return EngineStats(
            seats=sizes.lanes * sizes.seats,
            running=len(schedule.running),
            waiting=len(schedule.waiting),
            pages=sizes.lanes * (sizes.pages - 1),
            pages_used=sum(pool.used for pool in pools),
            pages_shared=sum(pool.shared for pool in pools),
            pages_kept=sum(pool.kept for pool in pools),
            waste=lost / slots if slots else 0.0,
            prompt_tokens=tally.prompt_tokens,
            drawn_tokens=tally.drawn_tokens,
            prefix_hits=schedule.found,
            prefix_tokens=schedule.found_tokens,
            put_back=schedule.put_back,
            prompt_calls=tally.prompt_calls,
            decode_calls=tally.decode_calls,
            rows=tally.rows,
            lost_rows=tally.lost_rows,
            ended=dict(tally.ended),
            first_seconds=tally.first.read(),
            next_seconds=tally.next.read(),
            load_LE=None if failed else self.runner.load_LE(),
            failed=failed,
        )


class _Tokens:
    """What a call tells of its tokens, read from the device where it is asked for."""

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn
        self._there: dict[str, Any] = {}

    def _array(self, name: str) -> np.ndarray:
        if name not in self._there:
            self._there[name] = np.asarray(getattr(self._drawn, name))
        return self._there[name]

    def read(self, row: int, last: int, token: int, request: Request) -> Token:
        """The token of a row, drawn after its token ``last``."""
        if request.logprobs is None and not request.routes:
            return Token(id=token)
        logprob: float | None = None
        best: tuple[tuple[int, float], ...] = ()
        routes = {}
        if request.logprobs is not None:
            logprob = float(self._array("logprob_B1")[row, 0])
            ids = self._array("best_B1X")[row, 0, : request.logprobs].tolist()
            best = tuple(zip(ids, self._array("best_logprob_B1X")[row, 0].tolist(), strict=False))
        if request.routes:
            routes = {
                "expert_LK": self._array("expert_BNLK")[row, last].copy(),
                "weight_LK": self._array("weight_BNLK")[row, last].copy(),
            }
        return Token(id=token, logprob=logprob, best=best, **routes)
