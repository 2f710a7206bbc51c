"""The engine without its thread: texts come, and each step calls the model once.

A step gives the device its next call, and only then reads the tokens of the call before, so that
the device has work while the host looks at them. What the next call does is known without them: the
device keeps each seat's last token. If a text turns out to have ended, one row of the call that is
on its way was for nothing. Of a text with drafts nothing is known before its tokens are read, so it
is in no call then.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moejax.config.checks import LARGEST, check
from moejax.config.errors import UserError
from moejax.inference.engine.calls import Drawn, Runner
from moejax.inference.engine.drafts import Drafter
from moejax.inference.engine.drawn_tokens import DrawnTokens
from moejax.inference.engine.readers import Item, join
from moejax.inference.engine.requests import Piece, Request
from moejax.inference.engine.schedule import Schedule
from moejax.inference.engine.seats import Work
from moejax.inference.engine.stats import EngineStats, Tally
from moejax.inference.engine.texts import Text, TextRules

NO_DRAFTS = np.zeros(0, np.int32)
NONE: list[int] = []


@dataclass(frozen=True)
class Flight:
    """A call that was given to the device."""

    drawn: Drawn
    rows: list[tuple[int, int, Text]]
    """Of those whose token is a text's next one: the row, its last token in it, and the text."""
    drafts: list[list[int]] | None = None
    """Those of each of these rows."""


class Core:
    """Texts that are continued together by a runner. It is called by one thread only."""

    def __init__(
        self,
        runner: Runner,
        rules: TextRules,
        *,
        share: bool = True,
        prompt_calls: int = 1,
        drafter: Drafter | None = None,
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
        self._drafter: Drafter | None = None
        self.speculate(drafter)

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._texts) or self._flight is not None

    @property
    def longest(self) -> int:
        """Tokens that a text may have, prompt and all."""
        attention = self._rules.attention
        return min(self._schedule.longest, (attention and attention.longest) or LARGEST)

    def speculate(self, drafter: Drafter | None) -> Drafter | None:
        """From now on drafts come from there; where they came from before. No text may be under
        way.
        """
        assert not self._texts
        before, self._drafter = self._drafter, drafter
        self._schedule.see = None if drafter is None else drafter.see
        return before

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
        tokens, drafts = self._gather(work)
        call, rows = self._schedule.seats.call(work.kind, work.texts, tokens)
        drawn = self.runner.extend(call)
        if self._drafter is not None and drafts is None:
            self._drafter.follow(work.kind, work.texts, work.counts, call)
        for text in work.texts if work.kind == "prompt" else ():
            if not text.read_before:
                text.read_before = True
                self._tally.prompt_tokens += len(text.request.prompt)
        self._schedule.wrote(work)
        self._tally.prompt_calls += work.kind == "prompt"
        self._tally.decode_calls += work.kind != "prompt"
        there = zip(rows, work.counts, work.texts, strict=True)
        of_use = [(row, n - 1, text) for row, n, text in there if text.decoding]
        return Flight(drawn, of_use, drafts)

    def _gather(self, work: Work) -> tuple[list[np.ndarray] | None, list[list[int]] | None]:
        """The tokens that a call reads, and the drafts among them."""
        if work.kind == "decode":
            return None, None
        ends = list(zip(work.texts, work.counts, strict=True))
        if work.kind == "prompt":
            return [text.tokens(text.written, text.written + n) for text, n in ends], None
        assert self._drafter is not None
        asked = [(text, n - 1) for text, n in ends if n > 1]
        made = self._drafter.draft(
            self._schedule.seats, [text for text, _ in asked], [n for _, n in asked]
        )
        of_text = dict(zip((text for text, _ in asked), made, strict=True))
        drafts = [of_text.get(text, NO_DRAFTS) for text in work.texts]
        last = [text.tokens(text.known - 1, text.known) for text in work.texts]
        both = [np.concatenate(pair) for pair in zip(last, drafts, strict=True)]
        return both, [one.tolist() for one in drafts]

    def _read(self, flight: Flight) -> list[tuple[int, Item]]:
        items: list[tuple[int, Item]] = []
        if not flight.rows:
            return items  # nothing that was drawn is of use: the prompts go on
        tokens, tally, now = DrawnTokens(flight.drawn), self._tally, self._clock()
        waits: defaultdict[float, int] = defaultdict(int)  # one and the same for most texts
        tally.rows += len(flight.rows)
        for number, (row, last, text) in enumerate(flight.rows):
            text.unread -= 1
            if text.over:
                tally.lost_rows += 1
                continue
            drafts = NONE if flight.drafts is None else flight.drafts[number]
            piece, heard, error = self._hear(text, tokens, row, last, drafts)
            if tokens.have_drafts:
                text.guessed = tokens.drafts(row)
            if flight.drafts is not None and text.lane >= 0:
                self._schedule.go_on(text, heard)
            if piece is not None:
                items.append((text.id, piece))
                tally.drawn_tokens += len(piece.tokens)
                if text.heard_at is None:
                    tally.first.add(now - text.came_at)
                else:  # tokens that came at once have shared their time
                    waits[(now - text.heard_at) / heard] += heard
                text.heard_at = now
            if error is not None:
                self._leave(text, "failed")
                items.append((text.id, error))
            elif piece is not None and piece.ended:
                self._leave(text, piece.ended)
        for seconds, times in waits.items():
            tally.next.add(seconds, times)
        return items

    def _hear(
        self, text: Text, tokens: DrawnTokens, row: int, last: int, drafts: list[int]
    ) -> tuple[Piece | None, int, UserError | None]:
        """Add the token of a row to a text, and those behind its right drafts: what came, how many
        there were, and the error of a tokenizer, from which no other text is to suffer.
        """
        if not drafts:
            try:
                return text.hear(tokens.read(row, 0, last, text)), 1, None
            except UserError as error:
                return None, 0, error
        pieces: list[Piece] = []
        first, failed = last - len(drafts), None
        self._tally.drafted += len(drafts)
        for place in range(1 + len(drafts)):
            token = tokens.read(row, place, first + place, text)
            try:
                pieces.append(text.hear(token))
            except UserError as error:
                failed = error
                break
            if pieces[-1].ended or place == len(drafts) or drafts[place] != token.id:
                break
            self._tally.accepted += 1
            self._tally.rows += 1
        return join(pieces) if pieces else None, len(pieces), failed

    def _leave(self, text: Text, why: str) -> None:
        del self._texts[text.id]
        self._schedule.leave(text)
        self._tally.ended[why] += 1

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
            drafted=tally.drafted,
            accepted=tally.accepted,
            lost_rows=tally.lost_rows,
            ended=dict(tally.ended),
            first_seconds=tally.first.read(),
            next_seconds=tally.next.read(),
            load_LE=None if failed else self.runner.load_LE(),
            failed=failed,
        )
