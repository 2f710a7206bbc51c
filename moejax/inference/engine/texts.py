"""One text that the engine continues: what is known of it, and where it lies."""

from dataclasses import dataclass

import numpy as np

from moejax.config.attention import AttentionConfig, check_length
from moejax.config.checks import check
from moejax.data.tokenizer import Tokenizer
from moejax.inference.engine.pages import Name, name_page
from moejax.inference.engine.requests import Piece, Request, Token
from moejax.inference.growing_text import GrowingText
from moejax.inference.prompts import check_prompts


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """What the texts of a model are made of, and where they end."""

    tokenizer: Tokenizer
    ends: frozenset[int]
    """The tokens that end a text."""
    vocab_size: int
    window: int | None = None
    """Positions that a position sees in any layer, itself included; None: all before it."""
    attention: AttentionConfig | None = None
    """Says how long texts may be (``check_length``)."""

    def check(self, request: Request) -> None:
        """Raise ``ConfigError`` for a text that the model does not continue."""
        prompt, tokens = request.prompt, request.sampling.tokens
        check_prompts([prompt], self.window)
        low, high = int(prompt.min()), int(prompt.max())
        check(
            low >= 0 and high < self.vocab_size,
            f"the prompt has a token {low if low < 0 else high}: those of this model are 0 to"
            f" {self.vocab_size - 1:,}.",
        )
        if self.attention is not None:
            check_length(
                self.attention,
                len(prompt) + tokens,
                f"a prompt of {len(prompt)} tokens and {tokens} to be generated",
            )


class Text:
    """A request, its tokens so far, and its seat and pages while it runs."""

    def __init__(self, number: int, request: Request, rules: TextRules, came_at: float) -> None:
        self.id, self.request = number, request
        ends = rules.ends if request.ends is None else request.ends
        self._growing = GrowingText(request.prompt, request.sampling, ends, rules.tokenizer)
        self.length = len(request.prompt) + request.sampling.tokens
        """Tokens that it has if it does not end before."""
        self.plain = request.logprobs is None and not request.routes
        """Whether nothing is told of its tokens but what they are."""
        self.known = len(request.prompt)
        """Tokens of it that the host has seen."""
        self._names: list[Name] = []
        self.came_at = came_at
        """Seconds: when it was asked for."""
        self.heard_at: float | None = None
        """When its last token was read."""
        self.read_before = False
        """Whether it has had a seat."""
        self.unread = 0
        """Tokens that have been drawn, or will be by calls that are on their way, and that the host
        has not seen."""
        self.over = False
        """Whether it has ended, or has been cancelled."""
        self.leave_seat()

    def take_seat(self, lane: int, seat: int) -> None:
        """Run, from the beginning."""
        self.lane, self.seat = lane, seat

    def leave_seat(self) -> None:
        """Nothing of it lies anywhere."""
        self.lane = self.seat = -1
        self.pages: list[int] = []
        """Those that it has, one behind another."""
        self.gone = 0
        """Pages before them that no token sees any more."""
        self.room = 0
        """With fewer tokens in its pages than this, one more neither needs a page nor frees one."""
        self.written = 0
        """Tokens that are in its pages, or will be by calls that are on their way."""
        self.named = 0
        """Full pages that have got their names, from the first."""
        self.since = 0
        """Tokens before those that the seat has read itself: they were found in pages."""
        self.guessed: list[int] = []
        """Drafts behind what is known, by the modules of the model."""
        self.decoding = False
        """Whether all it has is read, and the token that its seat has drawn is the next one."""
        self.followed: int | None = None
        """Tokens in its pages that a model which makes drafts has read; None: there is none."""

    def settle(self, page: int, window: int | None) -> None:
        """It has pages for its next tokens."""
        self.room = (self.gone + len(self.pages)) * page
        if window is not None:
            self.room = min(self.room, (self.gone + 1) * page + window - 1)

    def lost_slots(self, page: int, window: int | None) -> int:
        """Slots of its pages that no later token will see."""
        begin = self.gone * page
        past = 0 if window is None else max(0, self.written - window + 1 - begin)
        return past + begin + len(self.pages) * page - self.written

    @property
    def left(self) -> int:
        """Tokens that are to be drawn after those that were, if it does not end before."""
        return self.length - self.known - self.unread

    def tokens(self, begin: int, end: int) -> np.ndarray:
        """Known tokens, int32 [end - begin]."""
        length = len(self.request.prompt)
        later = np.array(self._growing.ids[max(0, begin - length) : max(0, end - length)], np.int32)
        if begin >= length:
            return later
        prompt = self.request.prompt[begin:end].astype(np.int32, copy=False)
        return prompt if end <= length else np.concatenate([prompt, later])

    def name(self, number: int, page: int, ahead: int) -> Name:
        """The name of its full page of this number, of tokens that are known; those ``ahead`` of
        it, on which what modules keep in it depends, are a part of it.
        """
        while len(self._names) <= number:
            begin = len(self._names) * page
            before = self._names[-1] if self._names else b""
            self._names.append(name_page(before, self.tokens(begin, begin + page + ahead)))
        return self._names[number]

    def hear(self, token: Token) -> Piece:
        """Add a token that was drawn."""
        new = self._growing.add(token.id)
        ended = self._growing.ended
        if ended == "end":  # this token is no part of the text
            return Piece(new, (), ended)
        self.known += 1
        return Piece(new, (token,), ended)
