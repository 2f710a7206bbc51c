"""Layers with a memory in a model: beside attention, in pieces, on a mesh, in what is counted."""

from dataclasses import replace

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from pages import make_pool, make_rows

from moejax.config import (
    AttentionConfig,
    ConfigError,
    DeltaConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
)
from moejax.config.mesh_fit import check_mesh
from moejax.hf.reading import make_batch
from moejax.inference.inference_config import inference_config
from moejax.models.counts import cost, forward_flops
from moejax.models.decoder import DecoderLM
from moejax.models.layer_runs import cut_layers, locate_layers, with_repeats
from moejax.models.layers import settings_of_layers
from moejax.models.used_types import cast_shapes
from moejax.moe.lying import lie
from moejax.runtime import device_mesh, partition

V, N = 61, 24
TINY = ModelConfig(
    num_layers=4,
    width=16,
    num_heads=2,
    unroll=False,
    attention=AttentionConfig(kinds=("delta", "full")),
    delta=DeltaConfig(key_heads=2, value_heads=4, key_size=6, value_size=4, convolution=3),
    moe=MoEConfig(num_experts=4, top_k=2, hidden_size=8, eval_capacity_factor=None),
)
TINY = inference_config(TINY)
ALONE = replace(TINY, num_layers=1, attention=AttentionConfig(kinds=("delta",)))
SEGMENTS = np.ones((4, N), np.int32)
SEGMENTS[0, :5] = 0
SEGMENTS[1, 11:13] = 0
SEGMENTS[2, 9:] = 2
SEGMENTS[2, 20:] = 3
POSITIONS = np.zeros_like(SEGMENTS)
for row, position in zip(SEGMENTS, POSITIONS, strict=True):
    for document in range(1, 4):
        position[row == document] = np.arange((row == document).sum())
BATCH = {
    "inputs": np.random.default_rng(0).integers(0, V, SEGMENTS.shape, dtype=np.int32),
    "segments": SEGMENTS,
    "positions": POSITIONS,
}
"""Empty slots before a text; padding inside one; packed documents; a whole row."""


def init(config: ModelConfig) -> dict:
    return jax.jit(lambda: DecoderLM(config, V).init(jax.random.key(0), BATCH, False)["params"])()


@pytest.fixture(scope="module")
def params() -> dict:
    return init(TINY)


@pytest.mark.slow
def test_pieces_of_texts_beside_each_other_give_what_a_text_gives_alone(params):
    """Texts of three lengths, the last beside padding: in two pieces, then token after token, on
    parameters where they lie, from a cache in bits. Memories are float32.
    """
    model = DecoderLM(TINY, V)
    token_BN, lengths = BATCH["inputs"][:3], np.array([N, N - 8, N - 5])
    run = jax.jit(lambda p, b: model.apply({"params": p}, b, False)[0])
    want_BNV = run(params, make_batch(token_BN))  # what is behind a text changes nothing in it
    extend = jax.jit(
        lambda t, rows, pool: model.apply(
            {"params": lie(params)}, t, rows, pool, every=True, method="extend"
        )[:2]
    )
    at, pool = np.zeros(3, int), make_pool(TINY, 3, N)
    for count in ([12, 5, 9], [8, 7, 6], *[[1, 1, 1]] * 4):
        count = np.array(count)
        width = 12 if count.max() > 1 else 1
        piece = [np.resize(token_BN[b, at[b] : at[b] + n], width) for b, n in enumerate(count)]
        got_BNV, pool = extend(np.stack(piece), make_rows(count, at, N), pool)
        for b, n in enumerate(count):
            want_NV = want_BNV[b, at[b] : at[b] + n]
            np.testing.assert_allclose(got_BNV[b, :n], want_NV, atol=1e-4)
        at += count
    assert (at == lengths).all()
    short = jax.eval_shape(lambda: make_pool(TINY, 3, N, "int8"))[0]
    assert short["k_LBMJA"].dtype == jnp.int8
    assert short["state_LBHAU"].dtype == short["last_key_LBWX"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("layers", "kinds", "moe", "want"),
    [
        (4, "df", {}, [("DF", 2)]),
        (8, "dddf", {}, [("DDDF", 2)]),
        (7, "dddf", {}, [("DDDF", 1), ("D", 3)]),
        (8, "ddf", {"first_dense": 1}, [("d", 1), ("DFD", 2), ("D", 1)]),
        (6, "df", {"every": 2, "first_dense": 2}, [("d", 1), ("f", 1), ("dF", 2)]),
        (6, "dw", {"every": 3}, [("dwDwdW", 1)]),
        (3, "d", {"every": 0}, [("d", 3)]),
    ],
)
def test_layers_are_cut_by_their_pattern(layers, kinds, moe, want):
    """Upper case: routed. Each layer's parameters are in a stack of its kind."""
    named = tuple({"d": "delta", "f": "full", "w": "window"}[k] for k in kinds)
    config = replace(
        TINY,
        num_layers=layers,
        attention=AttentionConfig(kinds=named, window=4 if "w" in kinds else None),
        moe=replace(TINY.moe, **moe),
    )
    letters = {"delta": "d", "full": "f", "window": "w"}
    in_order = [
        letters[kind].upper() if routed else letters[kind]
        for kind, routed in zip(config.attention_kinds, config.routed_layers, strict=True)
    ]
    cut, below = [], 0
    for run in cut_layers(config):
        cut.append(("".join(in_order[below : below + len(run.unit)]), run.repeats))
        below += len(run.unit) * run.repeats
    assert cut == want
    stacks = {}
    for letter, (path, _) in zip(in_order, locate_layers(config), strict=True):
        stacks.setdefault(path, set()).add((letter in "dD", letter.isupper()))
    assert all(len(kinds) == 1 for kinds in stacks.values())
    shallow = with_repeats(config, [1] * len(cut))
    assert shallow.num_layers == sum(len(unit) for unit, _ in want)
    assert with_repeats(config, [n for _, n in want]).attention_kinds == config.attention_kinds


def test_counts_are_those_of_the_parameters_and_of_the_products(params):
    assert cost(TINY, V, N).parameters_total == sum(x.size for x in jax.tree.leaves(params))
    dense = replace(TINY.moe, every=0, hidden_size=64)
    sizes = DeltaConfig(key_heads=2, value_heads=4, key_size=32, value_size=32)
    wide = replace(ALONE, num_layers=2, width=128, unroll=True, moe=dense, delta=sizes)
    length = 128
    rows = jnp.zeros((1, length), jnp.int32)
    model, batch = DecoderLM(wide, V), {"inputs": rows, "segments": rows + 1, "positions": rows}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, False)["params"])
    counted = count_products(
        jax.make_jaxpr(lambda p: model.apply({"params": p}, batch, False))(shapes)
    )
    assert counted / length == sum(forward_flops(wide, V, length).values())


def count_products(jaxpr) -> int:
    """FLOPs of all matrix products of a program, loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += times * count_products(inner)
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            size = equation.outvars[0].aval.size
            total += 2 * size * int(np.prod([left[axis] for axis in contracted]))
    return total


def test_a_training_step_takes_memory_that_grows_with_the_length():
    def temporary(length: int) -> int:
        model = DecoderLM(replace(ALONE, moe=replace(TINY.moe, every=0)), V)
        rows = jnp.ones((1, length), jnp.int32)
        batch = {"inputs": rows, "segments": rows, "positions": rows}
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, False)["params"])
        loss = lambda p: model.apply({"params": p}, batch, True)[0].sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(1024) < 2.1 * temporary(512)


def test_what_memories_are_computed_with_stays_float32(params):
    half = cast_shapes(jax.eval_shape(lambda: params), replace(TINY, dtype="bfloat16"))
    types = {
        n: x.dtype.name for n, x in half["layers_0"]["block_0"]["delta"].items() if n != "head_norm"
    }
    exact = {name for name, kind in types.items() if kind == "float32"}
    assert exact == {
        "log_rate_H",
        "step_bias_H",
        *(f"mix_{n}_WX" for n in ("query", "key", "value")),
    }


@pytest.mark.parametrize(
    ("delta", "words"),
    [
        (
            {"key_heads": 3},
            "--model.delta.value-heads 4 is not divisible by --model.delta.key-heads",
        ),
        ({"convolution": 0}, "--model.delta.convolution"),
        ({"convolution": 5000}, "--model.delta.convolution must be at most"),
        ({"key_size": 1.5}, "--model.delta.key-size must be int"),
    ],
)
def test_sizes_that_cannot_be_are_named(delta, words):
    with pytest.raises(ConfigError, match=words):
        replace(TINY, delta=replace(TINY.delta, **delta))


def test_a_window_is_nothing_to_a_model_of_such_layers_alone():
    config = replace(ALONE, attention=replace(ALONE.attention, window=8))
    assert settings_of_layers(config) == settings_of_layers(ALONE) == {}
    full = replace(TINY, attention=AttentionConfig(kinds=("delta", "window"), window=8))
    assert tuple(full.windows[1::2]) == (8, 8)


def test_heads_that_a_mesh_cannot_share_out_are_named():
    config = replace(TINY, num_heads=4, width=32)
    check_mesh(config, MeshConfig(model=2))
    with pytest.raises(ConfigError, match="--model.delta.key-heads 2 is not divisible by --mesh.m"):
        check_mesh(config, MeshConfig(model=4))


@pytest.mark.slow
def test_a_mesh_gives_the_gradients_of_one_device_and_gathers_no_heads():
    config = replace(ALONE, moe=replace(TINY.moe, every=0))
    layout = MeshConfig(data=2, expert=2, model=2)
    params, grid = init(config), device_mesh.make_mesh(layout)
    weight_BNV = np.random.default_rng(1).normal(size=(4, N, V)).astype(np.float32)

    def gradient(layout: MeshConfig):
        def loss(p):
            model = DecoderLM(config, V, layout)
            return (model.apply({"params": p}, BATCH, True)[0] * weight_BNV).sum()

        return jax.jit(jax.grad(loss))

    want = gradient(MeshConfig())(params)
    with jax.set_mesh(grid):
        spread = jax.device_put(params, partition.tree_shardings(grid, params))
        run = gradient(layout).lower(spread).compile()
        got = run(spread)
    w_DX = spread["layers_0"]["block_0"]["delta"]["w_value_DX"]
    assert w_DX.sharding.spec == P(None, None, "model")
    for one, other in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5 * max(1, float(np.abs(one).max())))
    assert "all-gather(" not in run.as_text()
