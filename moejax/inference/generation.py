"""Text from a decoder language model, with a cache of keys and values.

The prompts of a batch end in the same slot of the cache, shorter ones begin later (padding, to the
left of them, is segment 0). One call of a compiled function reads them all; then every call of it
adds one token to each row. The host looks at each token: it gives out text as soon as no later
token can change it, and ends with the last row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from moejax.config.attention import check_length
from moejax.config.checks import check
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.data.tokenizer import Tokenizer
from moejax.inference.decode_step import make_empty_cache, make_step
from moejax.inference.growing_text import Continuation, GrowingText
from moejax.inference.inference_config import check_can_generate
from moejax.inference.prompts import check_prompts, pad_prompts, round_up
from moejax.inference.sampling import Sampling, make_draws
from moejax.inference.stopwatch import Stopwatch
from moejax.inference.text_routes import TextRoutes
from moejax.models.kv_cache import CacheType
from moejax.models.layer_runs import leave_out_next_tokens
from moejax.models.replay import check_replays
from moejax.moe.lying import hold
from moejax.runtime import device_mesh, partition


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
    the texts. On several processes, all call it alike. Raises ``ConfigError`` for a router that
    cannot generate, and one whose routes cannot be recorded.
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
    ) -> None:
        check_can_generate(config)
        if record_routes:
            check_replays(config)
        check(window is None or window > 0, f"--window must be greater than 0, not {window}.")
        # What predicts further tokens is not asked while text is generated.
        config, params, bias_LE = leave_out_next_tokens(config, params, bias_LE)
        self._vocab_size = params["embedding_VD"].shape[0]
        self._mesh, self._tokenizer = mesh, tokenizer
        with jax.set_mesh(mesh):
            self._weights = (hold(params), bias_LE, place_LER)
        self._ends, self._window, self._attention = ends, window, config.attention
        self._empty_cache = make_empty_cache(config, mesh, cache)
        self._records = record_routes
        self._run = make_step(config, self._vocab_size, layout, mesh, window, cache, record_routes)

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
        with jax.set_mesh(self._mesh):
            spread = device_mesh.token_devices()
            rows = -(-min(batch_size, len(prompts)) // spread) * spread
            read = round_up(max(map(len, prompts)))
            slots = round_up(read + sampling.tokens - 1)
            texts: list[GrowingText] = []
            routes: list[np.ndarray] = []
            clock = Stopwatch()
            for first in range(0, len(prompts), rows):
                batch = [
                    GrowingText(
                        prompt, sampling, self._ends, self._tokenizer, partial(on_text, number)
                    )
                    for number, prompt in enumerate(prompts[first : first + rows], first)
                ]
                clock.begin()
                log = TextRoutes(batch, read)
                self._continue(batch, first, (rows, read, slots), sampling, clock, log)
                texts += batch
                routes += log.finish() if self._records else []
        return Generated(
            continuations=[text.continuation() for text in texts],
            first_seconds=clock.first_seconds,
            tokens_per_second=clock.tokens / clock.seconds if clock.tokens else None,
            routes=routes if self._records else None,
        )

    def check_prompts(self, prompts: Sequence[np.ndarray]) -> None:
        """Raise ``ConfigError`` for a prompt without tokens, or longer than the window."""
        check_prompts(prompts, self._window)

    def _continue(
        self,
        texts: list[GrowingText],
        first: int,
        sizes: tuple[int, int, int],
        sampling: Sampling,
        clock: Stopwatch,
        log: TextRoutes,
    ) -> None:
        """Continue texts until all have ended. ``first`` is the number of the first prompt;
        ``sizes`` are rows, slots that are read at once, and slots of the cache. ``log`` gets the
        routes, if there are any.
        """
        rows, read, slots = sizes
        everywhere = partition.activation_sharding(self._mesh, "everywhere")
        draws = make_draws(
            sampling, self._vocab_size, np.arange(first, first + rows, dtype=np.int32)
        )
        draws = jax.device_put(draws, everywhere)  # once: it takes as long as a small step
        batch = pad_prompts([text.prompt for text in texts], rows, read)
        cache = self._empty_cache(rows, slots)
        cache, token_B1, position_B1, *routes = self._run(self._weights, cache, *batch, draws)
        log.add_prompts(routes)
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
            cache, token_B1, position_B1, *routes = self._run(
                self._weights, cache, token_B1, segment_B1, position_B1, draws
            )
            log.add(routes, still)
