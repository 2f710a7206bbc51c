"""One call of the model by the engine: what goes in, what comes out, and who answers it.

The cache is a pool of pages of ``page`` positions, on each *lane* (a device that has tokens of its
own; most often there is one). A text has a *seat* on its lane while it runs, and a list of pages.

Letters: B: rows of a call, lane by lane; K: experts a token chooses; L: routed layers; N: tokens of
a row; P: modules that make drafts; Q: pages that a row looks at; S: seats of all lanes; X: the best
tokens that scores are given of.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np

from moejax.inference.sampling import Draws


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the runner has, and in which shapes it is called: no others are compiled."""

    lanes: int
    """Devices that have tokens of their own."""
    seats: int
    """Texts that run at once, on each lane."""
    page: int
    """Positions of a page."""
    pages: int
    """Pages on each lane; page 0 is nobody's: what is padding is written there."""
    rows: tuple[int, ...]
    """Rows of calls that add a token to each text, on each lane, ascending; the last: ``seats``."""
    tables: tuple[int, ...]
    """Pages that these rows may look at (Q), ascending."""
    prompt_rows: tuple[int, ...]
    """Rows of calls that read prompts, on each lane, ascending."""
    prompt_tables: tuple[int, ...]
    """Pages that these may look at, ascending."""
    chunk: int
    """Tokens of each of them, a multiple of ``page``."""
    short: int = 0
    """Tokens of calls with the fewest rows that read no more than so many of each; 0: none."""
    drafts: int = 0
    """Tokens that may be checked at once: a row has as many, and the one before them; 0: none."""
    checks: bool = True
    """Whether calls with drafts draw after each token, as the model does that checks them; the one
    that makes them does not."""
    ahead: int = 0
    """Modules of the model that make drafts: what they keep of a position depends on so many tokens
    behind it."""

    def shapes(self) -> list[tuple[int, int | None, int, bool]]:
        """All calls that there are: rows on each lane, tokens (as in ``Call``), pages, and whether
        a token is drawn after each.
        """
        decode = product(self.rows, [None], self.tables, [False])
        prompts = product(self.prompt_rows, [self.chunk], self.prompt_tables, [False])
        short = product(
            self.prompt_rows[:1], [self.short] * (self.short > 0), self.prompt_tables, [False]
        )
        drafts = [1 + self.drafts] * (self.drafts > 0)
        return [*decode, *prompts, *short, *product(self.rows, drafts, self.tables, [self.checks])]


@dataclass(frozen=True, kw_only=True)
class Call:
    """Rows that each have the next tokens of one text, from the left; the rest is padding."""

    seat_B: np.ndarray
    """Seat of each row on its lane (int32); of a row without a text, any."""
    token_BN: np.ndarray | None
    """The tokens; None: of each row the token that was drawn last for its seat, which the host need
    not have seen (N = 1)."""
    count_B: np.ndarray
    """How many of them there are; 0 for a row without a text."""
    at_B: np.ndarray
    """The position of the first."""
    begin_B: np.ndarray
    """The position of the first slot of the row's pages (a multiple of ``page``)."""
    since_B: np.ndarray
    """The position from which on the seat has read the text itself: what is before it was found in
    pages."""
    table_BQ: np.ndarray
    """The pages of each row, one behind another, those that the tokens are written to included; 0
    behind the last."""
    draws: Draws
    """How each row's token is drawn, on the host: an array [B] of each setting."""
    every: bool = False
    """Whether a token is drawn after each of the N, not after the last alone. The tokens behind the
    first are drafts then: one is right while it is what was drawn before it."""
    scores: bool = False
    """Whether logarithmic probabilities are given."""
    routes: bool = False
    """Whether experts and weights are given."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a call gives. It may still be on its way: ``np.asarray`` waits for it. B1 is BN where
    ``every`` token was drawn."""

    token_B1: Any
    logprob_B1: Any = None
    best_B1X: Any = None
    """The X best tokens, the best first."""
    best_logprob_B1X: Any = None
    expert_BNLK: Any = None
    weight_BNLK: Any = None
    draft_BP: Any = None
    """Of a call with tokens, if modules of the model make drafts (P): what may come after the token
    that was drawn last."""


class Runner(Protocol):
    """The model with its pages: real, or one that tests have made up."""

    sizes: Sizes

    def extend(self, call: Call) -> Drawn:
        """Read the tokens of each row, write them into its pages, and draw what comes next. The
        last drawn token of each row with a text becomes that of its seat; of one with drafts, that
        which was drawn after the last right one. Returns at once."""
        ...

    def load_LE(self) -> np.ndarray | None:
        """Choices asked of each expert of each layer since the start; None: nothing is routed. It
        waits for the calls that are on their way.
        """
        ...
