"""Timing of prompts and decode steps, with random weights.

Letters: Q: pages that a row looks at.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moejax.config.config import Config
from moejax.inference.engine.calls import Call, Sizes
from moejax.inference.engine.runner import PageRunner
from moejax.inference.engine.sizes_together import sizes_together
from moejax.inference.sampling import Sampling, make_draws
from moejax.moe.quantised import LARGEST, Quantised, is_quantised

COPIED_BYTES = 256 << 20
"""The size of the array whose copying is timed."""


@dataclass(frozen=True)
class Timed:
    """Seconds."""

    prefill: float
    """Until the first token of every text."""
    step: float
    """For each further token."""


class Arm(Protocol):
    """What generates."""

    def __call__(self, prompt_BN: np.ndarray, tokens: int) -> Timed:
        """Generate ``tokens`` after each prompt."""


class Ours:
    """Generation by the calls that ``Generator`` makes, always the best token."""

    def __init__(
        self,
        config: Config,
        vocab_size: int,
        mesh: Mesh,
        params: dict,
        bias_LE: jax.ShapeDtypeStruct | None,
    ) -> None:
        self._vocab_size, self._mesh = vocab_size, mesh
        bias: Any = None if bias_LE is None else jnp.zeros(bias_LE.shape, bias_LE.dtype)
        self._runner = PageRunner(config.model, config.mesh, params, bias, mesh=mesh)

    def __call__(self, prompt_BN: np.ndarray, tokens: int) -> Timed:
        rows, N = prompt_BN.shape
        sizes = sizes_together(self._mesh, rows, N, tokens)
        self._runner.resize(sizes)
        token_BN = np.pad(prompt_BN, ((0, 0), (0, sizes.chunk - N)))
        calls = [even_call(sizes, rows, self._vocab_size, token_BN, N)]
        calls += [even_call(sizes, rows, self._vocab_size, None, N + n) for n in range(1, tokens)]
        seconds = [time.perf_counter()]
        for call in calls:
            np.asarray(self._runner.extend(call).token_B1)  # as the host looks at every token
            seconds.append(time.perf_counter())
        self._runner.let_go()
        return Timed(seconds[1] - seconds[0], (seconds[-1] - seconds[1]) / (tokens - 1))


def even_call(
    sizes: Sizes, rows: int, vocab_size: int, token_BN: np.ndarray | None, end: int
) -> Call:
    """A call of texts that are all as long, and have ``end`` tokens after it, each with pages of
    its own: it reads their prompts, or the token that was drawn last.
    """
    all_rows = sizes.lanes * sizes.seats
    real_B = (np.arange(all_rows) < rows).astype(np.int32)
    seat_B = np.tile(np.arange(sizes.seats, dtype=np.int32), sizes.lanes)
    count, table = (1, sizes.tables) if token_BN is None else (end, sizes.prompt_tables)
    if token_BN is not None:
        token_BN = np.pad(token_BN, ((0, all_rows - rows), (0, 0)))
    return Call(
        seat_B=seat_B,
        token_BN=token_BN,
        count_B=count * real_B,
        at_B=(end - count) * real_B,
        begin_B=0 * real_B,
        since_B=0 * real_B,
        table_BQ=1 + seat_B[:, None] * sizes.tables[-1] + np.arange(table[-1], dtype=np.int32),
        draws=make_draws(Sampling(temperature=0), vocab_size, np.arange(all_rows, dtype=np.int32)),
    )


def time_in_turn(
    arms: dict[str, Arm], prompt_BN: np.ndarray, batch: tuple[int, ...], tokens: int, rounds: int
) -> dict[tuple[str, int], Timed]:
    """The median times of each arm and each number of rows. All run in turn, so that a slow moment
    of the machine hits all; a first round, which compiles, does not count.
    """
    times: dict[tuple[str, int], list[Timed]] = {}
    for number in range(rounds + 1):
        for rows in batch:
            for name, run in arms.items():
                timed = run(prompt_BN[:rows], tokens)
                if number:
                    times.setdefault((name, rows), []).append(timed)
    return {key: _median(found) for key, found in times.items()}


def _median(found: list[Timed]) -> Timed:
    prefill, step = (np.median([getattr(one, n) for one in found]) for n in ("prefill", "step"))
    return Timed(float(prefill), float(step))


def copy_bytes_per_second(rounds: int) -> float:
    """How many bytes the first device reads and writes in a second when it copies a large array."""
    array = jnp.zeros(COPIED_BYTES // 4, jnp.float32)
    copy: Callable = jax.jit(lambda x: x + 1)  # all bytes are read and written, in parallel
    jax.block_until_ready(copy(array))
    seconds = []
    for _ in range(3 * rounds):
        start = time.perf_counter()
        jax.block_until_ready(copy(array))
        seconds.append(time.perf_counter() - start)
    return 2 * array.nbytes / float(np.median(seconds))


def draw_params(like: dict[str, Any]) -> dict[str, Any]:
    """Random weights for parameters of these shapes, types and shardings: matrices that keep the
    size of what they multiply, scales of 1, biases of 0.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(like, is_leaf=is_quantised)
    made: list[Any] = []
    for number, (path, leaf) in enumerate(leaves):
        key = jax.random.key(number, impl="unsafe_rbg")
        draw: Any = partial(_draw, path[-1].key, leaf.shape, leaf.dtype)
        if isinstance(leaf, Quantised):
            draw = partial(_draw_codes, leaf)
        where = jax.tree.map(lambda x: x.sharding, leaf)
        made.append(jax.block_until_ready(jax.jit(draw, out_shardings=where)(key)))
    return jax.tree.unflatten(tree, made)


def _draw_codes(like: Quantised, key: jax.Array) -> Quantised:
    """Random codes, of fp8 those that are numbers, and equal scales."""
    codes = jax.random.bits(key, like.codes.shape, jnp.uint8) & jnp.uint8(0xF7)
    scale = (3 / like.shape[like.axis]) ** 0.5 / LARGEST[like.kind]
    scales = jnp.full(like.scales.shape, scale, like.scales.dtype)
    codes = jax.lax.bitcast_convert_type(codes, like.codes.dtype)
    return Quantised(codes, scales, like.kind, like.axis)


def _draw(name: str, shape: tuple[int, ...], dtype: Any, key: jax.Array) -> jax.Array:
    if name.startswith("scale"):
        return jnp.ones(shape, dtype)
    if not name.startswith(("w_", "embedding")):
        return jnp.zeros(shape, dtype)
    summed = 1 if name.startswith("embedding") else shape[-2]
    bound = (3 / summed) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
