"""What a served load is compared with: the decode step alone, and `generate` prompt by prompt.

Letters: B: rows of a call, lane by lane; Q: pages that a row looks at.
"""

import time
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from moejax.inference.engine.calls import Call, Runner, Sizes
from moejax.inference.engine.engine import Engine
from moejax.inference.generation import Generator
from moejax.inference.open_model import OpenModel
from moejax.inference.prompts import round_up
from moejax.inference.sampling import Sampling
from moejax.lab.bench.serve_load import Ask

CALLS = 50
"""Steps that are timed at a stretch."""


def step_seconds(engine: Engine, at_once: int, length: int, temperature: float) -> float:
    """Seconds of a call that adds a token to each of so many texts, of up to ``length`` tokens,
    given to the device as fast as it takes them, without any other work of the host. The engine
    must have nothing to do.
    """
    runner = engine.runner
    call = step_call(runner.sizes, at_once, length, temperature)
    return engine.between_steps(lambda: _time_steps(runner, call)).result()


def _time_steps(runner: Runner, call: Call) -> float:
    last = runner.extend(call)
    np.asarray(last.token_B1)
    begin = time.perf_counter()
    last = runner.extend(call)
    for _ in range(CALLS - 1):  # the next one is given before the last one's tokens are read
        now = runner.extend(call)
        np.asarray(last.token_B1)
        last = now
    np.asarray(last.token_B1)
    return (time.perf_counter() - begin) / CALLS


def step_call(sizes: Sizes, at_once: int, length: int, temperature: float) -> Call:
    """A call of that many texts, spread over the lanes, with the table of the longest of them. They
    read any pages, and write to page 0 alone, which is nobody's.
    """
    each = -(-at_once // sizes.lanes)
    height = next(rows for rows in sizes.rows if rows >= each)
    pages = -(-length // sizes.page)
    width = next((table for table in sizes.tables if table >= pages), sizes.tables[-1])
    B, middle = sizes.lanes * height, width // 2
    count_B = np.tile(np.arange(height) < each, sizes.lanes).astype(np.int32)
    count_B[np.flatnonzero(count_B)[at_once:]] = 0
    table_BQ = np.random.default_rng(0).integers(1, sizes.pages, (B, width), dtype=np.int32)
    table_BQ[:, middle:] = 0
    return Call(
        seat_B=np.tile(np.arange(height, dtype=np.int32), sizes.lanes),
        token_BN=None,
        count_B=count_B,
        at_B=np.full(B, middle * sizes.page, np.int32),
        begin_B=np.zeros(B, np.int32),
        since_B=np.zeros(B, np.int32),
        table_BQ=table_BQ,
        draws={
            "temperature_B": np.full(B, temperature, np.float32),
            "top_k_B": np.full(B, np.iinfo(np.int32).max, np.int32),
            "top_p_B": np.ones(B, np.float32),
            "seed_B": np.zeros(B, np.int32),
            "row_B": np.arange(B, dtype=np.int32),
        },
    )


class OneByOne:
    """`moejax generate`, with one prompt after the other."""

    def __init__(
        self, model: OpenModel, mesh: Mesh, window: int | None, temperature: float, seed: int
    ) -> None:
        assert model.tokenizer is not None  # callers check it
        self._temperature, self._seed = temperature, seed
        self._known: set[tuple[int, int]] = set()
        self._generator = Generator(
            model.config,
            model.layout,
            model.params,
            model.bias_LE,
            mesh=mesh,
            tokenizer=model.tokenizer,
            ends=frozenset(),
            window=window,
        )

    def tokens_per_second(self, asks: Sequence[Ask]) -> float:
        """Of all texts, prompts included in the time. Shapes are compiled before."""
        for ask in asks:
            read = round_up(len(ask.prompt))
            shape = (read, round_up(read + ask.tokens - 1))
            if shape not in self._known:
                self._known.add(shape)
                self._continue(ask)
        begin = time.perf_counter()
        for ask in asks:
            self._continue(ask)
        return sum(ask.tokens for ask in asks) / (time.perf_counter() - begin)

    def _continue(self, ask: Ask) -> None:
        sampling = Sampling(tokens=ask.tokens, temperature=self._temperature, seed=self._seed)
        self._generator.generate([ask.prompt], sampling)
