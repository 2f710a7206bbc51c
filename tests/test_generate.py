"""Text generation: what the cache, the batch, the mesh and the shapes must not change."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import make_pool, make_rows

from moejax.config import AttentionConfig, ConfigError, MeshConfig, ModelConfig, MoEConfig
from moejax.data.tokenizer import ByteTokenizer
from moejax.inference.engine.sizes_together import sizes_together
from moejax.inference.generation import Generator
from moejax.inference.inference_config import inference_config
from moejax.inference.prompts import SLOTS, round_up
from moejax.inference.replicate import replicate
from moejax.inference.sampling import Sampling, draw, make_draws
from moejax.models.decoder import DecoderLM
from moejax.models.replay import record_routes
from moejax.moe.parallel.placement import place
from moejax.moe.quantise_params import Weights, quantise_params
from moejax.runtime import device_mesh, partition

V = 257
TOKENIZER = ByteTokenizer()
PROMPTS = [
    np.array(ids, np.int32) for ids in ([256, 100, 101], [256], [256, *range(60, 71)], [256, 32])
]
ROUTED = MoEConfig(num_experts=4, top_k=2, hidden_size=8, group_size=8, eval_capacity_factor=0.5)
BIASED = replace(ROUTED, router="deepseek_v3")
BIAS_LE = jnp.array([[0.9, 0, 0, 0.5], [0, 0.9, 0.5, 0]])
TINY = ModelConfig(num_layers=2, width=16, num_heads=2, unroll=False, moe=BIASED)
LATENT = AttentionConfig(
    kv_rank=12, query_rank=8, rope_head_size=4, value_head_size=6, output_gate=True
)
ALTERNATING = AttentionConfig(window=6, full_every=2)
DENSE = replace(ROUTED, every=0)
MIXED = replace(ROUTED, every=2, first_dense=1, router="sinkhorn", seating="priority")


def made(config: ModelConfig) -> dict:
    """Parameters without a program that draws them, with larger ones in the head than at the start
    of a training: no two tokens are as good as equally probable.
    """
    model, zeros = DecoderLM(inference_config(config), V), np.zeros((1, 8), np.int32)
    batch = {"inputs": zeros, "segments": zeros, "positions": zeros}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, False)["params"])
    rng = np.random.default_rng(0)

    def drawn(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        size = {"embedding_VD": 1, "w_head_DV": 0.75}.get(name, leaf.shape[-2:][0] ** -0.5)
        centre = 1 if name == "scale_D" else 0
        return jnp.asarray(rng.normal(centre, size, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def bias_of(config: ModelConfig) -> jax.Array | None:
    """Where the router has one, it has chosen other experts than it would have without."""
    return BIAS_LE if config.moe == BIASED else None


def generator(config: ModelConfig, params: dict, devices: int = 1, **options) -> Generator:
    layout = options.pop("layout", MeshConfig())
    return Generator(
        config,
        layout,
        params,
        bias_of(config),
        mesh=device_mesh.make_mesh(layout, jax.devices()[:devices]),
        tokenizer=TOKENIZER,
        ends=options.pop("ends", frozenset()),
        **options,
    )


@pytest.fixture(scope="module")
def params() -> dict:
    return made(TINY)


@pytest.fixture(scope="module")
def one(params) -> Generator:
    """For most tests: it compiles two programs for each number of rows."""
    return generator(TINY, params, window=24)


def ids_of(made_by: Generator, prompts=PROMPTS, **sampling) -> list[list[int]]:
    done = made_by.generate(prompts, Sampling(**{"tokens": 12, "temperature": 0} | sampling))
    return [continuation.ids for continuation in done.continuations]


def full_logits(config: ModelConfig, params: dict, texts: list) -> list[np.ndarray]:
    """Of every position of each text, all at once, without a cache."""
    token_BN = np.zeros((len(texts), max(map(len, texts))), np.int32)
    segment_BN = np.zeros_like(token_BN)
    for row, text in enumerate(texts):
        token_BN[row, : len(text)], segment_BN[row, : len(text)] = text, 1
    batch = {"inputs": token_BN, "segments": segment_BN}
    batch["positions"] = np.arange(token_BN.shape[1]) * segment_BN
    model = DecoderLM(inference_config(config), V)
    run = jax.jit(lambda p: model.apply({"params": p}, batch, False, bias_of(config))[0])
    return [
        logits_NV[: len(text)]
        for logits_NV, text in zip(np.asarray(run(params)), texts, strict=True)
    ]


def joined(prompts: list, texts: list) -> list[np.ndarray]:
    return [np.concatenate(pair).astype(np.int32) for pair in zip(prompts, texts, strict=True)]


@pytest.mark.parametrize(
    ("config", "reach"),
    [
        (replace(TINY, num_kv_heads=1), None),
        (replace(TINY, qk_norm=False, attention=LATENT), None),
        (replace(TINY, attention=ALTERNATING), None),
        (replace(TINY, attention=AttentionConfig(sinks=True, bias="all")), None),
        (replace(TINY, moe=DENSE, tie_embeddings=True), None),
        (replace(TINY, num_layers=5, moe=MIXED), None),
        (replace(TINY, attention=ALTERNATING), 4),
    ],
    ids=[
        "grouped queries", "latent", "windows", "sinks", "dense", "some dense", "windows in reach",
    ],
)  # fmt: skip
def test_the_cache_gives_the_logits_of_the_whole_text_at_every_position(config, reach):
    """Prompts of 3, 1, 12 and 2 tokens, read together, and 7 tokens after each."""
    params = made(config)
    text = np.random.default_rng(0).integers(0, V, (len(PROMPTS), 7), dtype=np.int32)
    model = DecoderLM(inference_config(config), V)

    @jax.jit
    def extend(pool, token_BN, rows):
        return model.apply(
            {"params": params}, token_BN, rows, pool, bias_of(config), None, reach, method="extend"
        )

    slots, lengths = 24, np.array([len(prompt) for prompt in PROMPTS])
    token_BN = np.stack([np.pad(prompt, (0, 12 - len(prompt))) for prompt in PROMPTS])
    pool = make_pool(config, len(PROMPTS), slots)
    logits_B1V, pool, _ = extend(pool, token_BN, make_rows(lengths, 0 * lengths, slots))
    got = [logits_B1V[:, 0]]
    for n in range(7):
        rows = make_rows(np.ones_like(lengths), lengths + n, slots)
        logits_B1V, pool, _ = extend(pool, text[:, n : n + 1], rows)
        got.append(logits_B1V[:, 0])
    got_BNV = np.stack(got, 1)
    if reach is not None:
        config = replace(config, attention=AttentionConfig(window=reach))
    wanted = full_logits(config, params, joined(PROMPTS, text))
    for got_NV, want_NV in zip(got_BNV, wanted, strict=True):
        np.testing.assert_allclose(got_NV, want_NV[-8:], atol=1e-4)


def test_greedy_text_is_the_most_probable_token_each_time(one, params):
    texts = ids_of(one)
    for logits_NV, ids in zip(
        full_logits(TINY, params, joined(PROMPTS, texts)), texts, strict=True
    ):
        np.testing.assert_array_equal(logits_NV[-13:-1].argmax(-1), ids)
    assert len({tuple(ids) for ids in texts}) == len(PROMPTS)


def test_beyond_the_window_each_position_sees_the_last_ones_alone(one, params):
    """60 tokens, of which a position sees 24: the text of a model with that window."""
    texts = ids_of(one, tokens=60)
    whole = joined(PROMPTS, texts)
    narrow = replace(TINY, attention=AttentionConfig(window=24))
    narrow_BNV, wide_BNV = (
        np.stack([logits_NV[-61:-1] for logits_NV in full_logits(config, params, whole)])
        for config in (narrow, TINY)
    )
    np.testing.assert_array_equal(narrow_BNV.argmax(-1), texts)
    assert (wide_BNV.argmax(-1) != texts).any()


def test_a_text_does_not_depend_on_the_texts_beside_it(one):
    options = {"temperature": 1, "seed": 3}
    together = ids_of(one, **options)
    done = one.generate(PROMPTS, Sampling(tokens=12, **options), batch_size=1)
    assert [continuation.ids for continuation in done.continuations] == together


def test_a_draw_from_one_token_is_greedy(one):
    greedy = ids_of(one)
    assert ids_of(one, temperature=3, top_k=1) == greedy
    assert ids_of(one, temperature=1, top_p=1e-6) == greedy
    assert ids_of(one, temperature=3) != greedy


def test_the_seed_decides(one):
    first = ids_of(one, temperature=1)
    assert ids_of(one, temperature=1) == first
    others = [ids_of(one, temperature=1, seed=seed) for seed in (1, 2)]
    assert first not in others and others[0] != others[1]
    same = ids_of(one, [PROMPTS[0]] * 4, temperature=1)
    assert len({tuple(ids) for ids in same}) == 4  # each text has draws of its own


SHARES = [
    ({}, [0.5, 0.3, 0.2]),
    ({"temperature": 0.5}, [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38]),
    ({"top_k": 2}, [0.625, 0.375, 0]),
    ({"top_p": 0.75}, [0.625, 0.375, 0]),
    ({"top_p": 0.85}, [0.5, 0.3, 0.2]),
    # Of two tokens, the first has 0.625 of the probability: it is enough.
    ({"top_k": 2, "top_p": 0.6}, [1, 0, 0]),
    ({"temperature": 0}, [1, 0, 0]),
]
"""How tokens are drawn, and how often the best of three are."""


def test_tokens_are_drawn_as_often_as_they_should_be():
    """On three tokens, of which the best is the second one; 4,000 draws of each kind, beside each
    other, within four sigma.
    """
    rows = 4000
    each = [
        make_draws(Sampling(**{"temperature": 1.0} | options), 3, np.arange(rows))
        for options, _ in SHARES
    ]
    together = {name: np.stack([draws[name] for draws in each], 1).reshape(-1) for name in each[0]}
    logits_3 = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    key_B = jax.random.split(jax.random.key(0), rows * len(each))
    token_B = jax.jit(draw)(jnp.tile(logits_3, (len(key_B), 1)), key_B, together)
    token_BK = np.asarray(token_B).reshape(rows, -1)
    for kind, (_, want) in enumerate(SHARES):
        share = np.bincount(token_BK[:, kind], minlength=3)[[1, 2, 0]] / rows
        sigma = np.sqrt(np.array(want) * (1 - np.array(want)) / rows)
        assert (np.abs(share - want) <= 4 * sigma).all(), (kind, share)
    # Those that limit nothing are drawn as if they were alone.
    alone_B = draw(jnp.tile(logits_3, (rows, 1)), key_B[:: len(each)], each[0])
    np.testing.assert_array_equal(alone_B, token_BK[:, 0])


@pytest.mark.slow
def test_a_text_ends_before_any_of_the_end_tokens(params, one):
    free = ids_of(one, PROMPTS[:2])
    ends = frozenset([free[0][4], free[1][7]])
    done = generator(TINY, params, window=24, ends=ends).generate(
        PROMPTS[:2], Sampling(tokens=12, temperature=0)
    )
    for one_free, continuation in zip(free, done.continuations, strict=True):
        cut = min(n for n, token in enumerate(one_free) if token in ends)
        assert continuation.ids == one_free[:cut] and continuation.ended == "end"
        assert continuation.text == TOKENIZER.decode(one_free[:cut])


def test_a_text_ends_before_a_stop_string_that_spans_tokens(one):
    """The others go on, and the pieces that are given out are the texts."""
    whole = one.generate(PROMPTS, Sampling(tokens=12, seed=1)).continuations
    stop = whole[0].text[3:6]
    pieces: list[str] = [""] * len(PROMPTS)

    def collect(number: int, text: str) -> None:
        pieces[number] += text

    sampling = Sampling(tokens=12, seed=1, stop=("never", stop))
    got = one.generate(PROMPTS, sampling, on_text=collect).continuations
    assert got[0].ended == "stop" and got[0].text == whole[0].text[: whole[0].text.index(stop)]
    assert len(got[0].ids) < 12
    assert [one.ended for one in got[1:]] == ["length"] * 3
    assert got[1:] == whole[1:]
    assert pieces == [one.text for one in got]


def test_times_are_told_where_there_are_any(one):
    done = one.generate(PROMPTS, Sampling(tokens=12))
    assert done.first_seconds > 0 and done.tokens_per_second > 0
    assert one.generate(PROMPTS, Sampling(tokens=2)).tokens_per_second is None


@pytest.mark.parametrize(
    ("router", "words"),
    [
        ("expert_choice", "among the tokens so far"),
        ("soft", "each slot would mix"),
        ("random", "draws by their place in a group"),
    ],
)
def test_routers_that_need_a_group_are_refused(params, router, words):
    config = replace(TINY, moe=replace(ROUTED, router=router))
    with pytest.raises(ConfigError, match=f"with --model.moe.router {router}: .*{words}"):
        generator(config, params)


def test_a_dense_model_has_no_router_to_be_refused():
    config = replace(TINY, moe=replace(DENSE, router="expert_choice"))
    assert ids_of(generator(config, made(config)), PROMPTS[:1])


@pytest.mark.parametrize(
    "layout",
    [
        MeshConfig(data=2, expert=4),
        pytest.param(
            MeshConfig(data=2, expert=4, expert_parallel="all_to_all", chunks=2),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            MeshConfig(data=2, expert=2, model=2, fsdp=True, expert_parallel="ragged"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["auto", "all_to_all", "ragged"],
)
def test_a_mesh_gives_the_text_of_one_device(one, params, layout):
    grid = device_mesh.make_mesh(layout)
    spread = jax.device_put(params, partition.tree_shardings(grid, params, layout.fsdp))
    there = generator(TINY, spread, 8, layout=layout, window=24)
    assert ids_of(there) == ids_of(one)
    drawn = {"temperature": 1, "tokens": 5}
    assert ids_of(there, **drawn) == ids_of(one, **drawn)


@pytest.mark.slow
def test_quantised_weights_give_the_same_text_on_a_mesh(params):
    """Experts and their hidden width spread; scales of a whole dimension are on every device."""
    layout = MeshConfig(data=2, expert=2, model=2)
    short = quantise_params(params, Weights(kind="int4", group="channel"))
    grid = device_mesh.make_mesh(layout)
    spread = jax.device_put(short, partition.tree_shardings(grid, short))
    there = generator(TINY, spread, 8, layout=layout, window=24)
    assert ids_of(there) == ids_of(generator(TINY, short, window=24))


def test_the_cache_lies_spread_over_the_mesh(params):
    layout = MeshConfig(data=2, expert=2, model=2)
    spread = generator(TINY, params, 8, layout=layout)
    ids_of(spread, tokens=1)
    assert spread._runner._state == {}  # only while texts are generated
    spread._runner.resize(sizes_together(spread._mesh, 4, 12, 12))
    (keys,) = spread._runner._state["pool"][0]["k_LBMJA"].addressable_shards[:1]
    assert keys.data.shape == (1, 2, 6, 16, 1, 8)


def test_replicas_of_experts_change_no_text(params, one):
    plan = place(np.array([[9, 1, 1, 1], [1, 1, 9, 1]]), devices=4, places=8)
    many, place_LER = replicate(TINY, params, plan)
    layout = MeshConfig(data=2, expert=4)
    grid = device_mesh.make_mesh(layout)
    many = jax.device_put(many, partition.tree_shardings(grid, many))
    there = generator(TINY, many, 8, layout=layout, place_LER=jnp.asarray(place_LER))
    assert ids_of(there) == ids_of(one)


@pytest.mark.parametrize("mesh", [(1, 1), pytest.param((2, 4), marks=pytest.mark.slow)])
def test_recorded_routes_are_those_of_the_whole_text(mesh, one, params):
    """The tokens of prompts included; where a text ends early, all its tokens were read."""
    ends = frozenset({ids_of(one)[0][5]})
    layout = MeshConfig(data=mesh[0], expert=mesh[1])
    devices = {"layout": layout, "devices": mesh[0] * mesh[1]}
    there = generator(TINY, params, window=24, ends=ends, record_routes=True, **devices)
    done = there.generate(PROMPTS, Sampling(tokens=12, temperature=0))
    texts = joined(PROMPTS, [one.ids for one in done.continuations])
    assert {one.ended for one in done.continuations} == {"end", "length"}
    token_BN, segment_BN = np.zeros((2, len(texts), 24), np.int32)
    for row, text in enumerate(texts):
        token_BN[row, : len(text)], segment_BN[row, : len(text)] = text, 1
    batch = {"inputs": token_BN, "segments": segment_BN, "positions": np.arange(24) * segment_BN}
    model = DecoderLM(inference_config(TINY), V)
    want_BNLK = np.array(jax.jit(partial(record_routes, model))(params, BIAS_LE, batch))
    for text, continuation, got, want in zip(
        texts, done.continuations, done.routes, want_BNLK, strict=True
    ):
        if continuation.ended == "length":
            want[len(text) - 1] = -1  # of which nothing came
        np.testing.assert_array_equal(got, want[: len(text)])


def test_bfloat16_generates_what_its_own_logits_say(params):
    """The cache is of that type, too; where two tokens are nearly equal, either may be taken."""
    half = replace(TINY, dtype="bfloat16")
    texts = ids_of(generator(half, params), PROMPTS[:1])
    logits_NV = full_logits(half, params, joined(PROMPTS[:1], texts))[0][-13:-1]
    chosen_N = np.take_along_axis(logits_NV, np.array(texts).T, -1)[:, 0]
    assert (logits_NV.max(-1) - chosen_N).max() < 0.05 * np.abs(logits_NV).max()


def test_two_programs_are_compiled_for_a_shape_whatever_the_settings(params):
    counted = generator(TINY, params)
    for sampling in (
        {"temperature": 0},
        {"temperature": 0.5, "top_k": 3, "seed": 9},
        {"top_p": 0.4, "tokens": 20, "stop": ("x",)},
    ):
        ids_of(counted, **sampling)
        ids_of(counted, [PROMPTS[2], PROMPTS[0], PROMPTS[1], PROMPTS[2]], **sampling)
    assert counted._runner._run._cache_size() == 2
    assert round_up(1) == round_up(SLOTS) == SLOTS and round_up(SLOTS + 1) == 2 * SLOTS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 0}, "--tokens must be greater than 0, not 0"),
        ({"temperature": -0.5}, "--temperature must be at least 0"),
        ({"temperature": float("nan")}, "--temperature must be at least 0"),
        ({"top_k": 0}, "--top-k must be greater than 0"),
        ({"top_p": 0.0}, r"--top-p must lie in \(0, 1\], not 0.0"),
        ({"top_p": 1.5}, "--top-p must lie in"),
        ({"seed": -1}, "--seed must lie in"),
        ({"stop": ("a", "")}, "--stop must not be empty"),
    ],
)
def test_settings_that_cannot_be_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        Sampling(**options)


def test_prompts_that_cannot_be_are_counted(one):
    with pytest.raises(
        ConfigError, match="prompt 2 has 25 tokens, more than the 24 .* --window 25"
    ):
        ids_of(one, [PROMPTS[0], np.zeros(25, np.int32)])
    with pytest.raises(ConfigError, match="prompt 1 is empty"):
        ids_of(one, [np.zeros(0, np.int32)])
    with pytest.raises(ConfigError, match="there is no prompt"):
        ids_of(one, [])
