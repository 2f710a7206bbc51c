"""The engine of a real model gives the texts of ``Generator``, whatever runs beside them."""

import asyncio

import jax
import numpy as np
import pytest
from test_generate import TINY, TOKENIZER, V, bias_of, generator, made

from moejax.config import MeshConfig
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.open_engine import open_engine
from moejax.inference.engine.requests import Request
from moejax.inference.open_model import OpenModel
from moejax.inference.sampling import Sampling
from moejax.runtime import device_mesh

CONTEXT = 24
ENDS = frozenset({10, 20, 30})
SAMPLINGS = (
    Sampling(tokens=40, temperature=0),
    Sampling(tokens=30, temperature=0.9, seed=3, stop=tuple("etaoinsrh")),
    Sampling(tokens=25, temperature=1.2, top_k=20, top_p=0.9, seed=5),
)
"""Texts grow longer than the window, which moves on."""


@pytest.mark.slow
def test_texts_of_the_engine_are_those_of_the_generator():
    """They come and go at random, share beginnings, and give up their pages, which are few; on two
    devices.
    """
    layout, devices = MeshConfig(expert=2), 2
    mesh = device_mesh.make_mesh(layout, jax.devices()[:devices])
    params = made(TINY)
    model = OpenModel(
        config=TINY,
        layout=layout,
        vocab_size=V,
        params=params,
        bias_LE=bias_of(TINY),
        tokenizer=TOKENIZER,
        context=CONTEXT,
        beginning=(),
        ends=ENDS,
        description="made up",
        data=None,
    )
    rng = np.random.default_rng(0)
    beginning = rng.integers(32, 120, CONTEXT)
    prompts = []
    for _ in range(8):
        begins, own = int(rng.integers(0, 14)), rng.integers(32, 120, int(rng.integers(1, 11)))
        prompts.append(np.concatenate([beginning[:begins], own]).astype(np.int32))
    settings = EngineSettings(seats=4, pages=10, chunk=8, prompt_rows=2)

    async def ask(engine, request, seconds):
        await asyncio.sleep(seconds)
        pieces = [piece async for piece in engine.submit(request)]
        ids = [token.id for piece in pieces for token in piece.tokens]
        return "".join(piece.text for piece in pieces), ids, pieces[-1].ended

    async def ask_all(engine) -> list:
        requests = [
            Request(prompt=prompt, sampling=sampling, number=number)
            for sampling in SAMPLINGS
            for number, prompt in enumerate(prompts)
        ]
        asked = [ask(engine, request, rng.random() * 0.2) for request in requests]
        return await asyncio.gather(*asked)

    with open_engine(model, mesh, settings) as engine:
        texts = asyncio.run(ask_all(engine))
        stats = engine.stats()
    alone = generator(TINY, params, devices, layout=layout, ends=ENDS, window=CONTEXT)
    expected = []
    for sampling in SAMPLINGS:
        for text in alone.generate(prompts, sampling).continuations:
            expected.append((text.text, text.ids, text.ended))
    assert texts == expected
    assert stats.put_back > 0 and stats.prefix_hits > 0 and stats.pages_used == 0
    assert {ended for _, _, ended in texts} == {"end", "stop", "length"}
    assert stats.load_LE.sum() >= stats.drawn_tokens * 2 * 2
