"""Text from a decoder language model: several texts that begin together.

It is the engine without its thread (``inference.engine``), with as many seats as texts, and with
pages for all of them: one call reads the prompts, then every call adds one token to each text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from moejax.config.attention import check_length
from moejax.config.checks import check
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.data.tokenizer import Tokenizer
from moejax.inference.engine.calls import Sizes
from moejax.inference.engine.core import Core
from moejax.inference.engine.drafts import Drafter
from moejax.inference.engine.readers import whole
from moejax.inference.engine.requests import Piece, Request
from moejax.inference.engine.runner import PageRunner
from moejax.inference.engine.sizes_together import sizes_together
from moejax.inference.engine.speculation import NOTHING, Speculation
from moejax.inference.engine.texts import TextRules
from moejax.inference.growing_text import Continuation
from moejax.inference.prompts import check_prompts
from moejax.inference.sampling import Sampling
from moejax.inference.stopwatch import Stopwatch
from moejax.inference.text_routes import TextRoutes
from moejax.models.kv_cache import CacheType
from moejax.models.replay import check_replays


@dataclass(frozen=True, kw_only=True)
class DraftCounts:
    """How tokens were guessed."""

    checked: int
    right: int
    tokens_per_call: float
    """Of each text that was in a call."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What was generated after several prompts, and how fast."""

    continuations: list[Continuation]
    first_seconds: float
    """Until there were two tokens in each row: compilation, and reading the prompts."""
    tokens_per_second: float | None
    """Of all rows together, from then on; None if there were no more."""
    routes: list[np.ndarray] | None = None
    """Where they are recorded, those of each text: see ``inference.text_routes``."""
    drafts: DraftCounts | None = None
    """Where tokens are guessed, how often that was right."""


class Generator:
    """Text from one model, on one mesh.

    A prompt's text depends on the prompt, its number, the seed and the settings alone: not on the
    prompts beside it, and not on the mesh (but for rounding).

    ``ends`` are the tokens that end a text. ``window`` is the number of positions that a position
    sees in any layer, itself included; by default, all. A model that was trained on N positions has
    learned nothing of longer distances. But rotary positions are relative, so with a window of N it
    goes on beyond N, and what left the window is still felt through the layers. Prompts may not be
    longer than the window. ``place_LER`` goes with parameters that have replicas
    (``inference.replicate``). ``cache`` is the type of keys and values that are kept, by default
    that of the activations. With ``record_routes``, which experts each token chose is given with
    the texts. ``speculation`` says how tokens are guessed, which changes no text. On several
    processes, all call it alike. Raises ``ConfigError`` for a router that cannot generate, and one
    whose routes cannot be recorded.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: MeshConfig,
        params: dict,
        bias_LE: jax.Array | None,
        *,
        mesh: Mesh,
        tokenizer: Tokenizer,
        ends: frozenset[int],
        window: int | None = None,
        place_LER: jax.Array | None = None,
        cache: CacheType | None = None,
        record_routes: bool = False,
        speculation: Speculation = NOTHING,
    ) -> None:
        self._mesh, self._attention = mesh, config.attention
        given: Any = {"mesh": mesh, "window": window, "cache": cache}
        modules = speculation.modules
        self._runner = PageRunner(
            config, layout, params, bias_LE, place_LER=place_LER, modules=modules, **given
        )
        self._speculation, self._smaller = speculation, None
        if (draft := speculation.draft) is not None:
            self._smaller = PageRunner(
                draft.config, draft.layout, draft.params, draft.bias_LE, **given
            )
        if record_routes:
            check_replays(config)
        check(window is None or window > 0, f"--window must be greater than 0, not {window}.")
        self._rules = TextRules(
            tokenizer=tokenizer,
            ends=ends,
            vocab_size=params["embedding_VD"].shape[0],
            window=window,
            attention=config.attention,
        )
        self._records = record_routes

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        *,
        batch_size: int = 32,
        on_text: Callable[[int, str], None] = lambda number, text: None,
    ) -> Generated:
        """Continue prompts (int32 [n], n >= 1), ``batch_size`` at a time. ``on_text`` gets the
        number of a prompt and a piece of its text as soon as it is certain; the pieces of a prompt
        are its text. Raises as ``check_prompts`` does.
        """
        self.check_prompts(prompts)
        most = max(map(len, prompts))
        check_length(
            self._attention,
            most + sampling.tokens,
            f"a prompt of {most} tokens and --tokens {sampling.tokens}",
        )
        rows = min(batch_size, len(prompts))
        guessing, tokens, window = self._speculation, sampling.tokens, self._rules.window
        extra = (guessing.drafts, guessing.modules)
        sizes = sizes_together(self._mesh, rows, most, tokens, window, *extra)
        rows = sizes.lanes * sizes.seats
        clock = Stopwatch()
        pieces: list[list[Piece]] = [[] for _ in prompts]
        try:
            drafter = self._resize(sizes)
            log = TextRoutes(self._runner) if self._records else None
            core = Core(log or self._runner, self._rules, share=False, drafter=drafter)
            for first in range(0, len(prompts), rows):
                clock.begin()
                if drafter is not None and first == 0:
                    self._warm()
                for number, prompt in enumerate(prompts[first : first + rows], first):
                    core.add(number, Request(prompt=prompt, sampling=sampling, number=number))
                for number, piece in run(core, clock):
                    pieces[number].append(piece)
                    if piece.text:
                        on_text(number, piece.text)
        finally:
            for runner in self._runners:
                runner.let_go()
        texts = [whole(of_one) for of_one in pieces]
        return Generated(
            continuations=texts,
            first_seconds=clock.first_seconds,
            tokens_per_second=clock.tokens / clock.seconds if clock.tokens else None,
            routes=None if log is None else log.finish(prompts, texts),
            drafts=None if drafter is None else count_drafts(core),
        )

    @property
    def _runners(self) -> list[PageRunner]:
        return [self._runner] if self._smaller is None else [self._runner, self._smaller]

    def _resize(self, sizes: Sizes) -> Drafter | None:
        """Begin anew with these sizes, and with what makes drafts."""
        self._runner.resize(sizes)
        if self._smaller is not None:
            self._smaller.resize(replace(sizes, checks=False))
        return self._speculation.make_drafter(self._smaller)

    def _warm(self) -> None:
        """Compile all calls at once, as nobody knows which of them come when."""
        for runner in self._runners:
            runner.warm()

    def check_prompts(self, prompts: Sequence[np.ndarray]) -> None:
        """Raise ``ConfigError`` for a prompt without tokens, or longer than the window."""
        check_prompts(prompts, self._rules.window)


def count_drafts(core: Core) -> DraftCounts:
    """How tokens of all texts were guessed."""
    stats = core.stats()
    alone = max(1, stats.rows - stats.accepted)
    return DraftCounts(
        checked=stats.drafted, right=stats.accepted, tokens_per_call=stats.rows / alone
    )


def run(core: Core, clock: Stopwatch) -> Iterator[tuple[int, Piece]]:
    """The pieces of all texts, with their numbers, until all have ended. Raises what the tokenizer
    raises at the tokens of a text.
    """
    while core.busy:
        items = core.step()
        if items:
            pieces = [item for _, item in items if isinstance(item, Piece)]
            clock.tick(sum(max(1, len(piece.tokens)) for piece in pieces))
        for number, item in items:
            if isinstance(item, BaseException):
                raise item
            yield number, item
