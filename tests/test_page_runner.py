"""Texts that share a running batch of a real model, against the same texts from ``Generator``."""

import functools
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import note_compilations
from test_generate import TINY, TOKENIZER, V, bias_of, generator, made

from moejax.config import AttentionConfig, MeshConfig, ModelConfig, MoEConfig
from moejax.config.delta import DeltaConfig
from moejax.config.errors import ConfigError
from moejax.inference.engine.calls import Sizes
from moejax.inference.engine.core import Core
from moejax.inference.engine.drafts import Drafter
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.packing import empty_call, pack
from moejax.inference.engine.requests import Request
from moejax.inference.engine.runner import PageRunner
from moejax.inference.engine.sizes import choose_sizes
from moejax.inference.engine.texts import TextRules
from moejax.inference.inference_config import inference_config
from moejax.inference.sampling import Sampling, make_draws
from moejax.models.decoder import DecoderLM
from moejax.runtime import device_mesh
from moejax.runtime.program_bytes import count_bytes

WINDOW = 24
ALONE = MeshConfig()
PROMPTS = [np.arange(3 * n, 3 * n + length) for n, length in enumerate((11, 1, 5, 20, 7, 3))]
SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 3},
    {"temperature": 1.2, "top_k": 5},
    {"temperature": 0.8, "top_p": 0.7, "seed": 2**31 - 1},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.9},
    {"temperature": 0.0, "seed": 7},
]


def make_runner(
    config, params, devices=1, layout=ALONE, place_LER=None, cache=None, **changes
) -> PageRunner:
    mesh = device_mesh.make_mesh(layout, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        lanes = device_mesh.token_devices()
    sizes = {"seats": 4, "page": 4, "pages": 33, "rows": (4,), "prompt_rows": (2,), "chunk": 8}
    sizes = Sizes(**{"lanes": lanes, "tables": (12,), "prompt_tables": (12,)} | sizes | changes)
    given = (config, layout, params, bias_of(config))
    kept = {"place_LER": place_LER, "cache": cache}
    return PageRunner(*given, mesh=mesh, sizes=sizes, window=WINDOW, **kept)


def requests() -> list[Request]:
    """Each is drawn in another way; some ask for more."""
    return [
        Request(
            prompt=prompt.astype(np.int32),
            sampling=Sampling(tokens=30 if n == 0 else 9, **settings),
            number=n,
            logprobs=2 if n in (1, 3) else None,
            routes=n == 2,
        )
        for n, (prompt, settings) in enumerate(zip(PROMPTS, SETTINGS, strict=True))
    ]


def run_core(runner: PageRunner, drafter: Drafter | None = None) -> tuple[list[list], Core]:
    """The tokens of each request, and who made them; one joins after the other, with an empty step
    between.
    """
    rules = TextRules(tokenizer=TOKENIZER, ends=frozenset(), vocab_size=V, window=WINDOW)
    core, tokens = Core(runner, rules, drafter=drafter), [[] for _ in PROMPTS]
    for n, request in enumerate(requests()):
        core.add(n, request)
        for number, piece in core.step():
            tokens[number] += piece.tokens
    while core.busy:
        for number, piece in core.step():
            tokens[number] += piece.tokens
    return tokens, core


@pytest.fixture(scope="module")
def params() -> dict:
    return made(TINY)


@functools.cache
def wanted() -> list[list[int]]:
    """Each text of ``Generator``, under its own number."""
    alone, texts = generator(TINY, made(TINY), window=WINDOW), []
    for n, request in enumerate(requests()):
        sampling = replace(request.sampling, tokens=30)  # so that two programs are enough
        done = alone.generate([request.prompt for request in requests()], sampling)
        texts.append(done.continuations[n].ids[: request.sampling.tokens])
    return texts


@pytest.fixture(scope="module")
def runner(params) -> PageRunner:
    return make_runner(TINY, params)


def test_texts_are_those_of_generate_and_nothing_is_compiled_but_at_the_start(runner):
    """Settings of all kinds beside each other, one text beyond the window, more texts than seats;
    and what is told of tokens and experts.
    """
    with note_compilations() as compiled:
        runner.warm()
    assert len(compiled) == 2  # each once, though in a thread of its own
    with note_compilations() as compiled:
        tokens, _ = run_core(runner)
    assert not compiled
    assert [[token.id for token in text] for text in tokens] == wanted()
    for n, text in enumerate(tokens):
        for token in text:
            assert (token.logprob is None) == (n not in (1, 3))
            assert (token.expert_LK is None) == (n != 2)
    for token in tokens[3]:
        assert len(token.best) == 2 and token.best[0][1] >= max(token.best[1][1], token.logprob)
        assert token.logprob in [x for id_, x in token.best if id_ == token.id] or (
            token.logprob <= token.best[1][1]
        )
    L, K = sum(TINY.routed_layers), TINY.moe.top_k
    for token in tokens[2]:
        assert token.expert_LK.shape == token.weight_LK.shape == (L, K)
        assert (token.expert_LK >= 0).all() and (token.weight_LK > 0).all()


def test_load_is_counted_without_padding_and_counters_may_overflow(runner):
    before = runner.load_LE().sum()
    state = runner._state
    with jax.set_mesh(runner._mesh):
        state["asked_XLE"] = state["asked_XLE"] + np.uint32(2**32 - 3)
    jumped = runner.load_LE()
    assert (jumped - 2**32 + 3).sum() == before
    run_core(runner)
    read = sum(len(r.prompt) + r.sampling.tokens - 1 for r in requests())
    more = (runner.load_LE() - jumped).sum(1)
    # A step that was given before a text's last token was read is for nothing.
    assert (more >= read * TINY.moe.top_k).all() and (more <= 1.2 * read * TINY.moe.top_k).all()


def compiled(runner: PageRunner, N: int, rows: int):
    """The program of a call."""
    packed = pack(empty_call(rows * runner.sizes.lanes, N or None, runner.sizes.tables[-1]))
    with jax.set_mesh(runner._mesh):
        given = (runner._weights, runner._state, packed)
        return runner._run.lower(*given, N=N, every=False).compile()


@pytest.mark.parametrize(
    ("N", "rows", "cache", "unroll"),
    [
        (0, 4, None, False),
        pytest.param(8, 2, None, False, marks=pytest.mark.slow),
        pytest.param(0, 1, None, True, marks=pytest.mark.slow),
        pytest.param(0, 1, "bfloat16", True, marks=pytest.mark.slow),
        (0, 1, "int8", True),
        pytest.param(0, 4, "int8", True, marks=pytest.mark.slow),
        pytest.param(8, 1, "int8", True, marks=pytest.mark.slow),
    ],
)
def test_the_pool_is_written_in_place_and_only_pages_that_are_looked_at_are_read(
    params, N, rows, cache, unroll
):
    """All of it is an argument and a result that share their memory, and the whole program moves a
    small part of what the pool has.
    """
    runner = make_runner(replace(TINY, unroll=unroll), params, pages=20_000, cache=cache)
    program = compiled(runner, N, rows)
    size = sum(x.nbytes for x in jax.tree.leaves(runner._state["pool"]))
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= size and memory.temp_size_in_bytes < size / 20
    assert count_bytes(program.as_text()) < size / 20


@pytest.mark.slow
@pytest.mark.parametrize("N", [0, 8])
def test_a_text_alone_moves_no_memory_of_other_seats(N):
    attention = AttentionConfig(kinds=("delta", "full"))
    delta = DeltaConfig(key_heads=2, value_heads=2, key_size=8, value_size=8)
    config = replace(TINY, unroll=True, attention=attention, delta=delta)
    params = jax.eval_shape(lambda: made(config))
    mesh = device_mesh.make_mesh(ALONE, jax.devices()[:1])
    runner = PageRunner(config, ALONE, params, bias_of(config), mesh=mesh, window=WINDOW)
    chosen = choose_sizes(config, WINDOW, mesh, EngineSettings(seats=20_000, pages=100))
    runner.sizes, runner._state = (
        chosen,
        jax.eval_shape(functools.partial(runner._empty_state, chosen)),
    )
    program = compiled(runner, N, 1)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(runner._state["pool"]))
    assert size > 1e7 and program.memory_analysis().temp_size_in_bytes < size / 20
    assert count_bytes(program.as_text()) < size / 20


@pytest.mark.slow
@pytest.mark.parametrize("N", [0, 64])
def test_a_call_of_a_large_model_takes_little_beside_weights_and_pages(N):
    """32 texts, or four prompts, of up to 32,768 positions, by shapes alone: OLMoE's banks of
    experts in two layers, 1.9 GB, and as many pages as 4 GB hold.
    """
    moe = MoEConfig(num_experts=64, top_k=8, hidden_size=1024)
    config = ModelConfig(
        num_layers=2, width=2048, num_heads=16, dtype="bfloat16", vocab_size=50_304, moe=moe
    )
    model = DecoderLM(inference_config(config), 50_304)
    zeros = np.zeros((1, 8), np.int32)
    batch = {"inputs": zeros, "segments": zeros, "positions": zeros}
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, False)["params"])
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    mesh = device_mesh.make_mesh(ALONE, jax.devices()[:1])
    sizes = choose_sizes(config, 32_768, mesh, EngineSettings(pages=10_000))
    runner = PageRunner(config, ALONE, params, None, mesh=mesh, window=32_768)
    runner.sizes, runner._state = (
        sizes,
        jax.eval_shape(functools.partial(runner._empty_state, sizes)),
    )
    there = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, runner._state)))
    memory = compiled(runner, N, 32 if N == 0 else 4).memory_analysis()

    assert there > 4e9 and memory.argument_size_in_bytes < 1.001 * there
    assert memory.temp_size_in_bytes < 0.05 * there


@pytest.mark.slow
def test_lanes_of_a_mesh_give_the_same_texts_and_pages_stay_where_they_are(params):
    """Four devices with tokens of their own, heads over two; nothing larger than the logits of
    all rows is gathered."""
    layout = MeshConfig(data=2, expert=2, model=2)
    runner = make_runner(
        TINY, params, devices=8, layout=layout, seats=1, rows=(1,), prompt_rows=(1,)
    )
    assert runner.sizes.lanes == 4
    assert [[token.id for token in text] for text in run_core(runner)[0]] == wanted()
    one = runner._state["pool"][0]["k_LBMJA"].addressable_shards[0].data
    assert one.shape == (1, 2, 33, 4, 1, 8)
    text = compiled(runner, 0, 1).as_text()
    gathered = re.findall(r"= (.*?) all-gather(?:-start)?\(", text)
    moved = re.findall(r"= (.*?) (?:all-to-all|collective-permute)(?:-start)?\(", text)
    for shapes in gathered + moved:
        for dims in re.findall(r"\w\[([\d,]*)\]", shapes):
            assert math.prod(map(int, filter(None, dims.split(",")))) <= 4 * V, shapes


def test_sizes_follow_the_settings_and_what_cannot_be_is_named():
    """A text sees the window, from any position of a page; a prompt's chunk comes behind it."""
    mesh = device_mesh.make_mesh(MeshConfig(data=4, expert=2), jax.devices()[:8])
    sizes = choose_sizes(TINY, 128, mesh, EngineSettings(seats=32, page=8, chunk=64))
    assert (sizes.lanes, sizes.seats, sizes.rows) == (8, 4, (1, 4))
    assert (sizes.tables[-1], sizes.prompt_tables[-1]) == (17, 24)
    given = EngineSettings(page=8, chunk=64, pages=40)
    assert choose_sizes(TINY, 128, mesh, given).pages == 40
    with pytest.raises(ConfigError, match="--pages 24 of 8 positions do not hold one text"):
        choose_sizes(TINY, 128, mesh, replace(given, pages=24))


@pytest.mark.slow
def test_a_token_is_drawn_after_each_that_is_read_where_that_is_asked_for(params):
    """As speculation does it: what was drawn one by one, read at once, gives the same again."""
    runner, request = make_runner(TINY, params, seats=1, prompt_rows=(1,)), requests()[1]
    text = [*request.prompt, *wanted()[1]]
    call = empty_call(1, 8, 12)
    call = replace(
        call,
        token_BN=np.array([text[:6] + [0, 0]], np.int32),
        count_B=np.array([6], np.int32),
        table_BQ=np.arange(12, 0, -1, dtype=np.int32)[None],
        draws=make_draws(request.sampling, V, np.array([1], np.int32)),
        every=True,
    )
    assert np.asarray(runner.extend(call).token_B1)[0, :6].tolist() == text[1:7]
    # The seat goes on with the last of them.
    one = np.ones(1, np.int32)
    go_on = replace(call, token_BN=None, count_B=one, at_B=6 * one, every=False)
    assert np.asarray(runner.extend(go_on).token_B1).tolist() == [[text[7]]]
