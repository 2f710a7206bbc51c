"""Text from a decoder language model, with a cache of keys and values.

The prompts of a batch end in the same slot of the cache, shorter ones begin later (padding, to the
left of them, is segment 0). One call of a compiled function reads them all; then every call of it
adds one token to each row. The host looks at each token: it gives out text as soon as it is
certain, and ends with the last row.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.data.text_stream import TextStream
from moejax.data.tokenizer import Tokenizer
from moejax.inference.sampling import Draws, Sampling, draw, draws_of, keys
from moejax.models.decoder import DecoderLM, cache_for
from moejax.models.kv_cache import KVCache
from moejax.runtime import device_mesh, partition

SLOTS = 64
"""Prompts and whole texts have a multiple of so many slots, so that few shapes are compiled."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What was generated after one prompt."""

    text: str
    ids: list[int]
    """The tokens, those of a stop string included; without the one that ended the text."""
    ended: Literal["end", "stop", "length"]
    """By a token that ends texts, by a stop string, or as there were as many as asked for."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What was generated after several prompts, and how fast."""

    continuations: list[Continuation]
    first_seconds: float
    """Until there were two tokens in each row: compilation, and reading the prompts."""
    tokens_per_second: float | None
    """Of all rows together, from then on; None if there were no more."""


def for_inference(config: ModelConfig) -> ModelConfig:
    """The same model as it is run on text when training is over: nothing is dropped, so that groups
    mean nothing (but to routers that are not by token), and nothing is recomputed.
    """
    changes = {"eval_capacity_factor": None, "dispatch": "auto", "expert_dropout": 0.0}
    if config.moe.built_router.by_token:
        changes["group_size"] = 1
    return replace(config, remat="none", moe=replace(config.moe, **changes))


def undivided(layout: MeshConfig) -> MeshConfig:
    """The same layout for inference: tokens are too few to travel in parts, and none is dropped."""
    return replace(layout, chunks=1, receive_factor=None)


def check_generates(config: ModelConfig) -> None:
    """Raise ``ConfigError`` for a model whose router needs more than the token at hand."""
    router = config.moe.built_router
    check(
        router.by_token or not any(config.routed_layers),
        f"no text can be generated with --model.moe.router {config.moe.router}: {router.decoding}.",
    )


class Generator:
    """Text from one model, on one mesh.

    A prompt's text depends on the prompt, its number, the seed and the settings alone: not on the
    prompts beside it, and not on the mesh (but for rounding).

    ``ends`` are the tokens that end a text. ``window``: positions see no more than the last so
    many, themselves included, in whatever layer; by default, all. A model that was trained on N
    positions has learned nothing of longer distances, but as rotary positions are relative, it goes
    on beyond N with a window of N; what left the window is still felt through the layers. Prompts
    may not be longer. ``place_LER`` goes with parameters with replicas (``models.replicate``). On
    several processes, all call it alike. Raises ``ConfigError`` for a router that cannot.
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
    ) -> None:
        check_generates(config)
        check(window is None or window > 0, f"--window must be greater than 0, not {window}.")
        config = for_inference(config)
        self._model = DecoderLM(config, params["embedding_VD"].shape[0], undivided(layout))
        self._mesh, self._tokenizer = mesh, tokenizer
        self._weights = (params, bias_LE, place_LER)
        self._ends, self._window = ends, window
        everywhere = partition.activation_sharding(mesh, "everywhere")
        like = jax.eval_shape(lambda: cache_for(config, 1, 1))
        cache_shardings = partition.tree_shardings(mesh, like)
        self._empty_cache = jax.jit(
            lambda rows, slots: cache_for(config, rows, slots),
            static_argnums=(0, 1),
            out_shardings=cache_shardings,
        )
        self._run = jax.jit(
            self._extend,
            donate_argnums=1,
            out_shardings=(cache_shardings, everywhere, everywhere),
        )

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
        with jax.set_mesh(self._mesh):
            spread = device_mesh.token_devices()
            rows = -(-min(batch_size, len(prompts)) // spread) * spread
            read = rounded_up(max(map(len, prompts)))
            slots = rounded_up(read + sampling.tokens - 1)
            texts: list[_Text] = []
            clock = _Clock()
            for first in range(0, len(prompts), rows):
                batch = [
                    _Text(prompt, sampling, self._ends, self._tokenizer, partial(on_text, number))
                    for number, prompt in enumerate(prompts[first : first + rows], first)
                ]
                clock.begin()
                self._continue(batch, first, (rows, read, slots), sampling, clock)
                texts += batch
        return Generated(
            continuations=[text.continuation() for text in texts],
            first_seconds=clock.first_seconds,
            tokens_per_second=clock.tokens / clock.seconds if clock.tokens else None,
        )

    def check_prompts(self, prompts: Sequence[np.ndarray]) -> None:
        """Raise ``ConfigError`` for a prompt without tokens, or longer than the window."""
        check(len(prompts) > 0, "there is no prompt.")
        window = self._window
        for number, length in enumerate(map(len, prompts), 1):
            check(
                length > 0,
                f"prompt {number} is empty, and this model has no token that begins a text: give it"
                f" at least a word.",
            )
            check(
                window is None or length <= window,
                f"prompt {number} has {length} tokens, more than the {window} positions that the"
                f" model sees (by default as many as it was trained on): shorten it, or say"
                f" --window {length}.",
            )

    def _continue(
        self,
        texts: list["_Text"],
        first: int,
        sizes: tuple[int, int, int],
        sampling: Sampling,
        clock: "_Clock",
    ) -> None:
        """Make texts go on, the first of which has this number, until all have ended. ``sizes``
        are rows, slots that are read at once, and slots of the cache.
        """
        rows, read, slots = sizes
        everywhere = partition.activation_sharding(self._mesh, "everywhere")
        V = self._model.vocab_size
        draws = draws_of(sampling, V, np.arange(first, first + rows, dtype=np.int32))
        draws = jax.device_put(draws, everywhere)  # once: it takes as long as a small step
        batch = padded([text.prompt for text in texts], rows, read)
        cache = self._empty_cache(rows, slots)
        cache, token_B1, position_B1 = self._run(self._weights, cache, *batch, draws)
        going_on: list[int] = []
        while True:
            new_B1 = np.asarray(token_B1)
            clock.tick(len(going_on))
            for row, text in enumerate(texts):
                text.add(int(new_B1[row, 0]))
            still = [row for row, text in enumerate(texts) if text.ended is None]
            if not still:
                return
            if still != going_on:
                going_on = still
                segment_B1 = np.isin(np.arange(rows), still).astype(np.int32)[:, None]
                segment_B1 = jax.device_put(segment_B1, everywhere)
            cache, token_B1, position_B1 = self._run(
                self._weights, cache, token_B1, segment_B1, position_B1, draws
            )

    def _extend(
        self,
        weights: tuple,
        cache: KVCache,
        token_BN: jax.Array,
        segment_BN: jax.Array,
        position_BN: jax.Array,
        draws: Draws,
    ) -> tuple[KVCache, jax.Array, jax.Array]:
        """The cache with the tokens in it, the token after the last of them, and its position, both
        [B, 1].
        """
        params, bias_LE, place_LER = weights
        batch = {"inputs": token_BN, "segments": segment_BN, "positions": position_BN}
        logits_B1V, cache = self._model.apply(
            {"params": params},
            {name: partition.pin(x_BN, "batch_BN") for name, x_BN in batch.items()},
            cache,
            bias_LE,
            place_LER,
            self._window,
            method="decode",
        )
        next_B = position_BN[:, -1] + 1
        token_B = draw(logits_B1V[:, 0], keys(draws, next_B), draws)
        return cache, token_B[:, None], next_B[:, None]


def rounded_up(slots: int) -> int:
    """The next multiple of ``SLOTS``."""
    return -(-slots // SLOTS) * SLOTS


def padded(prompts: Sequence[np.ndarray], rows: int, slots: int) -> tuple[np.ndarray, ...]:
    """Tokens, segments and positions of a batch (int32 [rows, slots]) whose prompts end in the last
    slot. Padding is 0 in all.
    """
    token_BN, segment_BN, position_BN = np.zeros((3, rows, slots), np.int32)
    for row, prompt in enumerate(prompts):
        begin = slots - len(prompt)
        token_BN[row, begin:] = prompt
        segment_BN[row, begin:] = 1
        position_BN[row, begin:] = np.arange(len(prompt))
    return token_BN, segment_BN, position_BN


class _Text:
    """One prompt and what comes after it, as it grows."""

    def __init__(
        self,
        prompt: np.ndarray,
        sampling: Sampling,
        ends: frozenset[int],
        tokenizer: Tokenizer,
        give_out: Callable[[str], None],
    ) -> None:
        self.prompt = prompt
        self.ended: Literal["end", "stop", "length"] | None = None
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._stream = TextStream(tokenizer, prompt, sampling.stop)
        self._ends, self._tokens, self._give_out = ends, sampling.tokens, give_out

    def add(self, token: int) -> None:
        """One more token, which means nothing after the end."""
        if self.ended:
            return
        if token in self._ends:
            self.ended = "end"
        else:
            self._ids.append(token)
            self._give(self._stream.push(token))
            if len(self._ids) == self._tokens:
                self.ended = "length"
        if self.ended and not self._stream.stopped:
            self._give(self._stream.finish())
        if self._stream.stopped:
            self.ended = "stop"

    def _give(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            self._give_out(piece)

    def continuation(self) -> Continuation:
        """The whole."""
        return Continuation(text="".join(self._pieces), ids=self._ids, ended=self.ended)


class _Clock:
    """Times of several batches: of each, until its second token, and after it."""

    def __init__(self) -> None:
        self.first_seconds, self.seconds, self.tokens = 0.0, 0.0, 0

    def begin(self) -> None:
        """A batch begins."""
        self._ticks, self._at = 0, time.monotonic()

    def tick(self, tokens: int) -> None:
        """So many rows have their next token."""
        now = time.monotonic()
        self._ticks, elapsed, self._at = self._ticks + 1, now - self._at, now
        if self._ticks <= 2:  # both programs have been compiled by then
            self.first_seconds += elapsed
        else:
            self.seconds += elapsed
            self.tokens += tokens
