"""Drafts by a real model's own modules: its texts stay those of ``Generator``, and whatever runs
beside a text, its drafts are those of the modules on the text alone.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import note_compilations
from test_generate import BIAS_LE, LATENT, PROMPTS, TINY, TOKENIZER, V, made
from test_page_runner import ALONE, WINDOW, requests, wanted

from moejax.config import ModelConfig
from moejax.config.errors import ConfigError
from moejax.inference.engine.calls import Sizes
from moejax.inference.engine.core import Core
from moejax.inference.engine.drafts import ModuleDrafter
from moejax.inference.engine.open_speculation import count_modules
from moejax.inference.engine.requests import Request
from moejax.inference.engine.runner import PageRunner
from moejax.inference.engine.speculation import Speculation
from moejax.inference.engine.texts import TextRules
from moejax.inference.generation import Generator
from moejax.inference.inference_config import inference_config
from moejax.inference.sampling import Sampling, draw, make_draws, make_keys
from moejax.models.decoder import DecoderLM
from moejax.runtime import device_mesh

LENGTH = 48
RULES = TextRules(tokenizer=TOKENIZER, ends=frozenset(), vocab_size=V, window=WINDOW)


@cache
def with_modules(config: ModelConfig, modules: int) -> tuple[ModelConfig, dict, jax.Array]:
    """The same layers as without, and so many modules above them."""
    more = replace(config, next_tokens=modules)
    params = made(config) | {"next_tokens": made(more)["next_tokens"]}
    return more, params, jnp.concatenate([BIAS_LE, 0.5 * BIAS_LE[:1].repeat(modules, 0)])


def make_drafting_runner(
    config, layout, params, bias_LE, mesh, modules=0, place_LER=None, **changes
) -> PageRunner:
    """With all its programs compiled."""
    sizes = {"seats": 4, "page": 4, "pages": 33, "rows": (4,), "prompt_rows": (2,), "chunk": 8}
    sizes |= {"lanes": 1, "tables": (13,), "prompt_tables": (13,)}
    given = {"mesh": mesh, "sizes": Sizes(**sizes | changes), "window": WINDOW}
    given |= {"place_LER": place_LER, "modules": modules}
    runner = PageRunner(config, layout, params, bias_LE, **given)
    runner.warm()
    return runner


def run_core(
    runner: PageRunner, asked: list[Request], drafting: bool = True
) -> tuple[list[list[int]], list, Core]:
    """The tokens of each request; the drafts behind each of its tokens, with how many were known;
    and who made them. One joins after the other.
    """
    core = Core(runner, RULES, drafter=ModuleDrafter(runner.sizes.drafts) if drafting else None)
    ids: list[list[int]] = [[] for _ in asked]
    drafts = []
    waiting = list(enumerate(asked))
    while core.busy or waiting:
        if waiting:
            core.add(*waiting.pop(0))
        there = dict(core._texts)
        for number, piece in core.step():
            ids[number] += [token.id for token in piece.tokens]
            text = there[number]
            if text.guessed:
                drafts.append((number, text.known, text.guessed))
    return ids, drafts, core


def guess_alone(config: ModelConfig, modules: int, asked, ids, drafts) -> np.ndarray:
    """What the modules guess, with the whole text before them and no pages."""
    more, params, bias_LE = with_modules(config, modules)
    model = DecoderLM(inference_config(more), V)
    token_BN = np.zeros((len(drafts), LENGTH), np.int32)
    last_B = np.zeros(len(drafts), np.int32)
    for row, (number, known, guessed) in enumerate(drafts):
        text = [*asked[number].prompt, *ids[number]][:known] + guessed[: modules - 1]
        token_BN[row, : len(text)], last_B[row] = text, known - 2
    there_BN = np.arange(LENGTH) < last_B[:, None] + 1 + modules
    position_BN = np.where(there_BN, np.arange(LENGTH), 0)
    batch = {"inputs": token_BN, "segments": there_BN.astype(np.int32), "positions": position_BN}

    @jax.jit
    def guess(params, batch, last_B):
        states, head, _ = model.apply(
            {"params": params}, batch, False, bias_LE, method="find_states"
        )
        return [head.read(jnp.take_along_axis(x, last_B[:, None, None], 1))[:, 0] for x in states]

    found = []
    for ahead, logits_BV in enumerate(guess(params, batch, last_B)[1:], start=2):
        each = [make_draws(asked[n].sampling, V, np.array([asked[n].number])) for n, *_ in drafts]
        draws = {name: np.concatenate([one[name] for one in each]) for name in each[0]}
        found.append(draw(logits_BV, make_keys(draws, last_B + ahead), draws))
    return np.stack(found, 1)


def beginning_alike() -> list[Request]:
    """Texts that share pages, of which there are few, greedy and sampled."""
    rng = np.random.default_rng(0)
    begin = rng.integers(32, 120, 13)
    asked = []
    for number, (own, temperature) in enumerate([(1, 0), (3, 0.9), (7, 0), (2, 0), (5, 1.2)] * 2):
        prompt = np.concatenate([begin[: 13 - number % 3], rng.integers(32, 120, own)])
        sampling = Sampling(tokens=WINDOW - len(prompt) + 2, temperature=temperature, seed=number)
        asked.append(Request(prompt=prompt.astype(np.int32), sampling=sampling, number=number))
    return asked


DEEP = replace(TINY, qk_norm=False, attention=LATENT)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "modules"), [(TINY, 1), (DEEP, 2)], ids=["one", "two, latent"])
def test_modules_change_no_text_and_guess_what_they_would_alone(config, modules):
    """With chunks, shared beginnings, pages that run out, and drafts that were wrong."""
    mesh = device_mesh.make_mesh(ALONE, jax.devices()[:1])
    more, params, bias_LE = with_modules(config, modules)
    sizes = {"pages": 14, "drafts": modules, "ahead": modules}
    runner = make_drafting_runner(more, ALONE, params, bias_LE, mesh, modules, **sizes)
    if config == TINY:
        assert run_core(runner, requests())[0] == wanted()
    asked = beginning_alike()
    ids, drafts, core = run_core(runner, asked)
    stats = core.stats()
    assert stats.put_back > 0 and stats.prefix_hits > 0 and stats.pages_used == 0
    assert 0 < stats.accepted < stats.drafted
    drafts = [one for one in drafts if one[1] < WINDOW]  # beyond it, the modules alone see more
    assert len(drafts) > 50
    expected_BP = guess_alone(config, modules, asked, ids, drafts)
    np.testing.assert_array_equal([guessed for *_, guessed in drafts], expected_BP)
    with note_compilations() as compiled:
        plain, _, core = run_core(runner, asked, drafting=False)
    assert ids == plain and core.stats().drafted == 0 and not compiled
    assert runner._run._cache_size() == 3


@pytest.mark.slow
def test_generate_with_drafts_gives_the_same_texts_and_routes():
    """By one module of two. Routes of wrong drafts are none of the text's."""
    more, params, bias_LE = with_modules(TINY, 2)
    given = {
        "mesh": device_mesh.make_mesh(ALONE, jax.devices()[:1]),
        "tokenizer": TOKENIZER,
        "ends": frozenset({10, 20, 30}),
        "window": WINDOW,
        "record_routes": True,
    }
    sampling = Sampling(tokens=30, temperature=1.5, stop=("e",))
    plain, drafted = (
        Generator(more, ALONE, params, bias_LE, speculation=one, **given).generate(
            PROMPTS, sampling, batch_size=3
        )
        for one in (Speculation(), Speculation(way="mtp", drafts=1))
    )
    assert plain.continuations == drafted.continuations
    assert len({one.ended for one in plain.continuations}) > 1
    for one, same in zip(plain.routes, drafted.routes, strict=True):
        np.testing.assert_array_equal(one, same)
    assert plain.drafts is None and 0 < drafted.drafts.right < drafted.drafts.checked
    assert 1 < drafted.drafts.tokens_per_call < 2


def test_drafts_are_no_more_than_a_model_has_modules():
    with pytest.raises(ConfigError, match="--speculate mtp: this model has no modules"):
        count_modules(TINY, None)
    two = replace(TINY, next_tokens=2)
    with pytest.raises(ConfigError, match="--drafts 3: each of .* one token, and it has 2"):
        count_modules(two, 3)
    assert [count_modules(two, asked) for asked in (None, 1, 2)] == [2, 1, 2]
