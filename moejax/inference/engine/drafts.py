"""Speculation: tokens that a text may go on with, guessed cheaply, so that one call checks several.

The model draws a token after each of them, with the key of its own position. A draft is right while
it is the token that was drawn before it, so a text, greedy or sampled, is what it is without any.
It is the rule of Leviathan et al. (2023, "Fast Inference from Transformers via Speculative
Decoding", section 2.3) for drafts that are certain: one is accepted as often as the model would
have drawn it.

The next call of a text with drafts waits until the host has seen the last one's tokens. So it pays
where a call with a few more tokens takes hardly longer, as reading weights is most of it (GPUs and
TPUs with few texts), and where drafts are often right. It does not with many texts at once, or
where time goes by tokens, as often on CPUs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from moejax.inference.engine.calls import Call, Runner
from moejax.inference.engine.seats import Kind, Seats
from moejax.inference.engine.texts import Text


class Drafter(Protocol):
    """Where drafts come from."""

    def see(self, text: Text) -> int:
        """How many there are behind what is known of a text that is being continued. If there are
        any, it waits until its tokens are known."""
        ...

    def draft(self, seats: Seats, texts: list[Text], counts: list[int]) -> list[np.ndarray]:
        """So many drafts for each text, one at least, and no more than were seen; all but the last
        known token of each is in its pages."""
        ...

    def follow(self, kind: Kind, texts: list[Text], counts: list[int], call: Call) -> None:
        """The model was given a call without drafts, of so many tokens of each text."""
        ...


class PromptDrafter:
    """Prompt look-up (Saxena 2023): where the last ``match`` tokens of a text were there before, it
    may go on as it did after the last such place. What is copied may be copied again.
    """

    def __init__(self, drafts: int, match: int) -> None:
        self._drafts, self._match = drafts, match
        self._places: WeakKeyDictionary[Text, _Places] = WeakKeyDictionary()

    def see(self, text: Text) -> int:
        """As many as may be, or 0."""
        return 0 if self._find(text).at is None else self._drafts

    def draft(self, seats: Seats, texts: list[Text], counts: list[int]) -> list[np.ndarray]:
        """Copies of what came after the same tokens."""
        return [self._find(text).copy(n) for text, n in zip(texts, counts, strict=True)]

    def follow(self, kind: Kind, texts: list[Text], counts: list[int], call: Call) -> None:
        """Nothing: a text is all that is looked at."""

    def _find(self, text: Text) -> "_Places":
        places = self._places.get(text)
        if places is None:
            places = self._places[text] = _Places(self._match)
        if new := text.known - len(places.tokens):
            places.add(text.tokens(text.known - new, text.known).tolist())
        return places


class _Places:
    """The tokens of a text, and what comes after each few of them where they were last."""

    def __init__(self, match: int) -> None:
        self.tokens: list[int] = []
        self.at: int | None = None
        """Where the text went on after the tokens that it now ends with."""
        self._match = match
        self._after: dict[tuple[int, ...], int] = {}

    def add(self, tokens: list[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            if (end := len(self.tokens)) >= self._match:
                last = tuple(self.tokens[end - self._match :])
                self.at = self._after.get(last)
                self._after[last] = end

    def copy(self, count: int) -> np.ndarray:
        assert self.at is not None
        found = self.tokens[self.at : self.at + count]
        while len(found) < count:  # it ends with a repetition, which may go on
            found += found[: count - len(found)]
        return np.asarray(found, np.int32)


class ModelDrafter:
    """A smaller model continues each text, with the keys of the same positions: as both draw with
    the same random numbers, they agree more often than by chance.

    It has the same pages as the model, in a pool of its own, and reads all that the model reads.
    """

    def __init__(self, runner: Runner, drafts: int) -> None:
        self._runner, self._drafts = runner, drafts

    def see(self, text: Text) -> int:
        """As many as may be."""
        return self._drafts

    def draft(self, seats: Seats, texts: list[Text], counts: list[int]) -> list[np.ndarray]:
        """One call more for each draft; only the last of them is waited for."""
        self._catch_up(seats, texts, self._drafts + 1)
        found = [self._read(seats, texts, self._drafts + 1)]
        for ahead in range(1, max(counts)):
            group = [text for text, n in zip(texts, counts, strict=True) if n > ahead]
            at = [text.known - 1 + ahead for text in group]
            call, rows = seats.call("decode", group, at=at)
            found.append(self._draw(call, dict(zip(group, rows, strict=True))))
        read = [take() for take in found]
        for text, count in zip(texts, counts, strict=True):
            text.followed = text.known - 1 + count
        return [
            np.asarray([of_text[text] for of_text in read[:count]], np.int32)
            for text, count in zip(texts, counts, strict=True)
        ]

    def follow(self, kind: Kind, texts: list[Text], counts: list[int], call: Call) -> None:
        """Read prompts, too. What was added without drafts is read before the next drafts."""
        if kind == "prompt":
            self._runner.extend(replace(call, scores=False, routes=False))
            for text, count in zip(texts, counts, strict=True):
                text.followed = text.written + count

    def _catch_up(self, seats: Seats, texts: list[Text], most: int) -> None:
        """Read what texts have got without drafts, but for the last tokens."""
        while late := [text for text in texts if text.known - _followed(text) > most]:
            self._read(seats, late, most)

    def _read(self, seats: Seats, texts: list[Text], most: int) -> Callable[[], dict[Text, int]]:
        """Read the next tokens of texts, and draw what comes next."""
        page = self._runner.sizes.page
        begins = [max(_followed(text), text.gone * page) for text in texts]
        ends = [min(text.known, begin + most) for text, begin in zip(texts, begins, strict=True)]
        tokens = [
            text.tokens(begin, end) for text, begin, end in zip(texts, begins, ends, strict=True)
        ]
        call, rows = seats.call("check", texts, tokens, begins)
        for text, end in zip(texts, ends, strict=True):
            text.followed = end
        call = replace(call, every=False)
        return self._draw(call, dict(zip(texts, rows, strict=True)))

    def _draw(self, call: Call, rows: dict[Text, int]) -> Callable[[], dict[Text, int]]:
        """Make a call: a function that waits for what it draws for each text."""
        drawn = self._runner.extend(replace(call, scores=False, routes=False))

        def take() -> dict[Text, int]:
            token_B = np.asarray(drawn.token_B1)[:, 0].tolist()
            return {text: token_B[row] for text, row in rows.items()}

        return take


class ModuleDrafter:
    """The modules of the model that predict further tokens: each call that a text has got tokens
    from has made the next drafts, too (``ahead``).
    """

    def __init__(self, drafts: int) -> None:
        self._drafts = drafts

    def see(self, text: Text) -> int:
        """As many as may be."""
        return self._drafts

    def draft(self, seats: Seats, texts: list[Text], counts: list[int]) -> list[np.ndarray]:
        """Those that came with the last token."""
        found = [text.guessed[:n] for text, n in zip(texts, counts, strict=True)]
        return [np.asarray(one, np.int32) for one in found]

    def follow(self, kind: Kind, texts: list[Text], counts: list[int], call: Call) -> None:
        """Nothing: it is the model itself."""


def _followed(text: Text) -> int:
    """The first token that is to be read; one at least is left."""
    assert text.followed is not None
    return min(text.followed, text.known - 1)
