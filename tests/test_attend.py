"""Forms of attention beside a float64 oracle: values and all gradients, for every feature.

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; U: width of a
head's values.
"""

import math
import re
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moejax.config import AttentionConfig, Config, ConfigError, MeshConfig
from moejax.config.attention import AttentionForm
from moejax.lab.plan.compile_step import state_shapes
from moejax.lab.plan.devices import paper_mesh
from moejax.lab.plan.memory import plan_memory
from moejax.lab.plan.step_flops import part_flops
from moejax.lab.plan.step_sizes import choose_attention
from moejax.models import by_kind
from moejax.models.attend import blockwise, choose_form
from moejax.models.attend.by_form import attend
from moejax.models.attend.case import Case
from moejax.models.attend.choose_form import Kernel
from moejax.models.attend.of_model import share_of_scores
from moejax.models.attend.seen import Seen, make_mask, sees
from moejax.models.attend.seen_blocks import find_seen_blocks, list_blocks
from moejax.models.attend.to_cache import attend_to_cache
from moejax.models.batch_shapes import batch_shapes
from moejax.moe import lying
from moejax.runtime import device_mesh
from moejax.train.optimizer import make_optimizer
from moejax.train.prepare import make_step

B, N, A, SCALE = 2, 21, 4, 0.6


class Arrays(NamedTuple):
    q_BNHA: jax.Array
    k_BMJA: jax.Array
    v_BMJU: jax.Array
    sink_H: jax.Array | None


def pack(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Documents and positions of two rows: three documents and padding, and one document."""
    of_BN = np.array([[1] * 6 + [2] * 9 + [3] * 2 + [0] * 4, [1] * N], np.int32)
    at_BN = np.array([[*range(6), *range(9), *range(2), *range(4)], range(N)], np.int32)
    return of_BN, at_BN


def see_all(**more) -> Seen:
    of_BN, at_BN = pack(np.random.default_rng(0))
    return Seen(of_BN=of_BN, at_BN=at_BN, of_BM=of_BN, at_BM=at_BN, **more)


def permute(seen: Seen, count: int) -> Seen:
    """So many of the queries, and all keys, both in an order of their own."""
    rng = np.random.default_rng(1)
    queries, keys = rng.permutation(N)[:count], rng.permutation(N)
    return replace(
        seen,
        of_BN=seen.of_BN[:, queries],
        at_BN=seen.at_BN[:, queries],
        of_BM=seen.of_BM[:, keys],
        at_BM=seen.at_BM[:, keys],
    )


def see_from_cache(**more) -> Seen:
    """One query of each row, and keys with empty slots behind them."""
    seen = see_all(**more)
    of_BM, at_BM = seen.of_BM.copy(), seen.at_BM.copy()
    of_BM[:, 15:], at_BM[:, 15:] = 0, 0
    return replace(seen, of_BN=of_BM[:, 14:15], at_BN=at_BM[:, 14:15], of_BM=of_BM, at_BM=at_BM)


def see_images() -> Seen:
    one = np.zeros((1, N), np.int32)
    return Seen(of_BN=one, at_BN=one, of_BM=one, at_BM=one, causal=False)


def in_loop(near: bool) -> dict:
    """A layer of a loop in which others have a window, or have not."""
    return {"window": 4, "near": jnp.bool_(near), "reach": 9}


ALL = (4, 2, 6, True)
"""Query heads, key/value heads, width of values, sinks."""
CASES = {
    "documents, a window, a reach, grouped queries, wide values, sinks": (
        ALL,
        see_all(**in_loop(True)),
    ),
    "the same without the window": (ALL, see_all(**in_loop(False))),
    "the same, permuted": (ALL, permute(see_all(**in_loop(True)), N)),
    "documents alone": ((2, 2, 4, False), see_all()),
    "documents alone, permuted": ((2, 2, 4, False), permute(see_all(), N)),
    "one key head, narrow values, a window": ((4, 1, 3, False), see_all(window=4)),
    "some of the queries, permuted, a reach": ((2, 1, 4, False), permute(see_all(reach=5), 13)),
    "one query": (ALL, see_from_cache(window=3)),
    "images": ((2, 1, 4, False), see_images()),
    "both ways, documents, a window, sinks": ((2, 2, 4, True), see_all(window=4, causal=False)),
}
OF_DENSE = [list(CASES)[i] for i in (0, 2, 9)]


def draw(sizes: tuple[int, int, int, bool], seen: Seen) -> Arrays:
    (H, J, U, sinks), rng = sizes, np.random.default_rng(3)
    queries, keys = seen.of_BN.shape[1], seen.of_BM.shape[1]
    shapes = (B, queries, H, A), (B, keys, J, A), (B, keys, J, U)
    q, k, v = (jnp.array(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return Arrays(q, k, v, jnp.array(rng.normal(size=H), jnp.float32) if sinks else None)


def differentiate(arrays: Arrays, seen: Seen, dy_BNHU: np.ndarray) -> tuple:
    """The oracle, float64: the output and the gradients of what is in ``arrays``."""
    q, k, v, sink = (None if x is None else np.asarray(x, np.float64) for x in arrays)
    heads = q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, heads, 2) for x in (k, v))
    mask = np.asarray(make_mask(seen))
    score = np.where(mask, SCALE * np.einsum("bnha,bmha->bhnm", q, k), -np.inf)
    sunk = np.full(score.shape[:3], -np.inf) if sink is None else sink[None, :, None]
    weight = np.exp(score), np.exp(sunk)
    total = weight[0].sum(-1) + weight[1]
    p, p_sink = weight[0] / total[..., None], weight[1] / total
    dp = np.einsum("bnhu,bmhu->bhnm", dy_BNHU, v)
    delta = (p * dp).sum(-1)
    ds = p * (dp - delta[..., None]) * SCALE

    def add_heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], -1, heads, x.shape[3]).sum(3)

    return (
        np.einsum("bhnm,bmhu->bnhu", p, v),
        np.einsum("bhnm,bmha->bnha", ds, k),
        add_heads(np.einsum("bhnm,bnha->bmha", ds, q)),
        add_heads(np.einsum("bhnm,bnhu->bmhu", p, dy_BNHU)),
        None if sink is None else -(p_sink * delta).sum((0, 2)),
    )


@partial(jax.jit, static_argnums=0)
def run(form: AttentionForm, arrays: Arrays, seen: Seen, dy_BNHU: jax.Array) -> tuple:
    """The output and the gradients of what is in ``arrays``."""

    def of_arrays(arrays: Arrays) -> jax.Array:
        q, k, v, sink = arrays
        return attend(q, k, v, seen, sink, SCALE, form)

    y_BNHU, pull = jax.vjp(of_arrays, arrays)
    return y_BNHU, *pull(dy_BNHU)[0]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few positions, so that short sequences have several."""
    for name, size in {"KEYS": 6, "ROWS": 8, "QUERIES": 2}.items():
        monkeypatch.setattr(blockwise, name, size)


@pytest.mark.parametrize(
    ("form", "case"),
    [("blockwise", case) for case in CASES] + [("dense", case) for case in OF_DENSE],
)
def test_values_and_gradients_are_the_oracle(form, case, small_blocks):
    sizes, seen = CASES[case]
    arrays = draw(sizes, seen)
    dy_BNHU = np.random.default_rng(4).normal(size=(*arrays.q_BNHA.shape[:3], sizes[2]))
    found = run(form, arrays, seen, jnp.float32(dy_BNHU))
    for got, want in zip(found, differentiate(arrays, seen, dy_BNHU), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            np.testing.assert_allclose(got, want, atol=1e-5)


def test_accelerators_multiply_what_is_short_and_add_up_in_float32(small_blocks, monkeypatch):
    monkeypatch.setattr(device_mesh, "platform", lambda: "tpu")
    sizes, seen = CASES["documents, a window, a reach, grouped queries, wide values, sinks"]
    q, k, v, sink = draw(sizes, seen)
    arrays = Arrays(*(x.astype(jnp.bfloat16) for x in (q, k, v)), sink)
    dy_BNHU = jnp.bfloat16(np.random.default_rng(4).normal(size=(*q.shape[:3], sizes[2])))
    want = differentiate(arrays, seen, np.asarray(dy_BNHU, np.float64))
    for got, expected in zip(run("blockwise", arrays, seen, dy_BNHU), want, strict=True):
        assert got.dtype == (jnp.float32 if got.ndim == 1 else jnp.bfloat16)
        np.testing.assert_allclose(np.float64(got), expected, atol=0.02 * np.abs(expected).max())


def test_blocks_of_other_documents_are_not_even_read(small_blocks):
    """Two documents of 24: what is no number in one of them does not reach the other, though 0
    times it would be none.
    """
    ids_BN = np.repeat([[1, 2]], 24, 1).repeat(B, 0).astype(np.int32)
    at_BN = np.tile(np.arange(24, dtype=np.int32), (B, 2))
    seen = Seen(of_BN=ids_BN, at_BN=at_BN, of_BM=ids_BN, at_BM=at_BN)
    arrays = draw((2, 2, 4, False), seen)
    for document in (0, 1):
        hidden = np.where(np.arange(48) // 24 == document, 0, np.nan)[None, :, None, None]
        arrays_there = Arrays(*(x + jnp.float32(hidden) for x in arrays[:3]), None)
        found = run("blockwise", arrays_there, seen, arrays_there.v_BMJU)
        for x in found[:4]:
            np.testing.assert_array_equal(np.isnan(x), np.broadcast_to(np.isnan(hidden), x.shape))


ROWS = {
    # Sizes of documents, 0 for padding; block; window; causal; shares of blocks looked at.
    "one document": ([64], 8, None, True, 36 / 64),
    "one document, a window": ([64], 8, 9, True, 15 / 64),
    "one document, both ways": ([64], 8, None, False, 1),
    "documents": ([20, 12, 32], 8, None, True, 18 / 64),
    "padding": ([40, 0], 8, None, True, (15 + 6) / 64),
}


@pytest.mark.parametrize("row", list(ROWS))
def test_blocks_that_no_query_sees_are_left_out(row):
    sizes, X, window, causal, share = ROWS[row]
    sizes = [size or 64 - sum(sizes) for size in sizes]
    numbers = [0 if there == 0 else i for i, there in enumerate(ROWS[row][0], 1)]
    of_N = np.repeat(numbers, sizes).astype(np.int32)
    at_N = np.concatenate([np.arange(size) for size in sizes]).astype(np.int32)
    rng = np.random.default_rng(0)
    for permuted in (False, True):
        order = rng.permutation(64) if permuted else np.arange(64)
        of_OX, at_OX = of_N[order].reshape(-1, X), at_N[order].reshape(-1, X)
        in_order = of_N.reshape(-1, X), at_N.reshape(-1, X)
        seen_OP = np.asarray(find_seen_blocks(of_OX, at_OX, *in_order, window, causal))
        mask_NN = sees(of_N[order], at_N[order], of_N, at_N, window, causal)
        needed_OP = np.asarray(mask_NN).reshape(64 // X, X, 64 // X, X).any((1, 3))
        assert (seen_OP | ~needed_OP).all()
        if not permuted:
            assert seen_OP.mean() == share
            order_OP, count_O = list_blocks(seen_OP)
            for o, count in enumerate(count_O):
                assert set(np.asarray(order_OP[o, :count])) == set(np.flatnonzero(seen_OP[o]))


SHORT = Case(
    platform="cpu",
    queries=128,
    keys=128,
    heads=4,
    key_heads=4,
    head_size=32,
    value_size=32,
    dtype="float32",
)
CHOICES = [
    ("auto", {}, "dense", "few"),
    ("auto", {"queries": 1, "keys": 100_000}, "dense", "few"),
    ("auto", {"queries": 4096, "keys": 4096}, "blockwise", "no 4,096 x 4,096 scores"),
    ("auto", {"queries": 64, "keys": 100_000}, "blockwise", "no 64 x 100,000 scores"),
    ("blockwise", {}, "blockwise", "as asked"),
    ("dense", {"queries": 4096, "keys": 4096}, "dense", "as asked"),
    ("auto", {"platform": "moon", "queries": 4096, "keys": 4096}, "kernel", "the kernel for moon"),
    ("kernel", {"platform": "moon"}, "kernel", "as asked"),
    ("kernel", {"platform": "moon", "sinks": True}, "dense", "kernel has no sinks"),
    (
        "kernel",
        {"platform": "moon", "sinks": True, "queries": 1024, "keys": 1024},
        "blockwise",
        "kernel has no sinks",
    ),
]


@pytest.fixture
def a_kernel(monkeypatch):
    """A form for one platform, which carries no sinks."""
    kernel = Kernel("moon", lambda case: "has no sinks" if case.sinks else None)
    monkeypatch.setitem(choose_form.KERNELS, "kernel", kernel)


@pytest.mark.parametrize(("asked", "changes", "form", "words"), CHOICES)
def test_the_form_and_why(asked, changes, form, words, a_kernel):
    chosen, why = choose_form.choose_form(asked, replace(SHORT, **changes))
    assert chosen == form
    assert words in why


def test_a_form_of_another_platform_is_refused_by_name(a_kernel):
    with pytest.raises(ConfigError, match="--model.attention.form kernel is for moon"):
        choose_form.choose_form("kernel", SHORT)
    with pytest.raises(ConfigError, match="--model.attention.form must be one of auto, dense, "):
        AttentionConfig(form="flash")


@pytest.mark.parametrize(
    ("attention", "share"),
    [
        ({}, 36 / 64),
        ({"window": 257}, 15 / 64),
        ({"window": 256, "kinds": ("window", "delta")}, 15 / 64),
        ({"window": 2, "kinds": ("full", "window")}, (36 + 15) / 128),
    ],
)
def test_the_share_of_scores_that_is_computed(attention, share, tiny):
    model = replace(tiny.model, attention=AttentionConfig(**attention))
    assert share_of_scores(model, 8 * 256) == share


def test_a_plan_says_the_form_and_counts_its_memory_and_products(tiny):
    """Without a score in memory, and with 3.5 times the forward products of what is computed."""
    data = replace(tiny.data, sequence_length=2048)
    held, flops = {}, {}
    for form in ("dense", "auto"):
        attention = AttentionConfig(form=form)
        config = replace(tiny, data=data, model=replace(tiny.model, attention=attention))
        grid = paper_mesh(config.mesh, 1, "cpu")
        held[form] = plan_memory(config, 257, grid).moments["backward"]
        with jax.sharding.use_abstract_mesh(grid):
            flops[form] = part_flops(config, 257)["attention_scores"]
            assert choose_attention(config)[0] == {"auto": "blockwise"}.get(form, form)
    probabilities = 2 * 8 * 2 * 2048**2 * 4  # of layers, rows and heads
    saved = held["dense"]["saved for backward"] - held["auto"]["saved for backward"]
    assert abs(saved / probabilities - 1) < 0.01
    assert flops["auto"] == flops["dense"] * 3.5 / 3 * share_of_scores(tiny.model, 2048)


LONG = 640
"""Positions that no other size of the small model comes near."""


def trace_step(tiny: Config, form: AttentionForm) -> jax.stages.Traced:
    """A training step with a long sequence, windows in some layers, and recomputed layers."""
    seeing = AttentionConfig(form=form, window=100, kinds=("window", "full"))
    model = replace(tiny.model, attention=seeing, remat="layer", num_kv_heads=1)
    data = replace(tiny.data, sequence_length=LONG, batch_size=1, eval_batch_size=1)
    config = replace(tiny, model=model, data=data)
    V = 257
    step = make_step(config, by_kind.build(config.model, V), make_optimizer(config.optim))
    return jax.jit(step).trace(None, state_shapes(config, V), batch_shapes(config, 1))


def list_sizes(traced: jax.extend.core.Jaxpr) -> list[int]:
    """Numbers of all arrays that a program makes, those inside loops and calls as well."""
    sizes = []
    for equation in traced.eqns:
        sizes += [variable.aval.size for variable in equation.outvars]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            sizes += list_sizes(inner)
    return sizes


@pytest.mark.slow
def test_a_training_step_has_no_array_of_all_pairs(tiny):
    assert max(list_sizes(trace_step(tiny, "auto").jaxpr.jaxpr)) < LONG * LONG


def test_a_prompt_is_read_into_a_cache_without_all_pairs():
    slots = LONG + 100
    k_BMJA = v_BMJU = jnp.zeros((1, slots, 2, A))

    def read_prompt(q_BNHA: jax.Array, form: AttentionForm) -> jax.Array:
        ids_BM = jnp.ones((1, slots), jnp.int32)
        ids_BN = ids_BM[:, : q_BNHA.shape[1]]
        seen = Seen(of_BN=ids_BN, at_BN=ids_BN, of_BM=ids_BM, at_BM=ids_BM)

        def read(first: int, count: int) -> list[jax.Array]:
            return [jax.lax.dynamic_slice_in_dim(x, first, count, 1) for x in (k_BMJA, v_BMJU)]

        return attend_to_cache(q_BNHA, read, seen, None, SCALE, form)

    def largest(queries: int, form: AttentionForm) -> int:
        q_BNHA = jnp.zeros((1, queries, 4, A))
        return max(list_sizes(jax.make_jaxpr(partial(read_prompt, form=form))(q_BNHA).jaxpr))

    assert largest(LONG, "dense") >= LONG * slots
    assert largest(LONG, "auto") < LONG * slots
    assert largest(1, "blockwise") == largest(1, "auto")  # it reads the cache where it lies


@pytest.mark.parametrize("sinks", [False, True])
def test_a_part_of_a_long_text_reads_its_cache_block_by_block(sinks):
    """Up to the last slot that has a key; the last block overlaps. The second row has padding."""
    B, N, M, J, H = 2, 16, 9000, 4, 4
    rng = np.random.default_rng(0)
    q_BNHA, k_BMJA, v_BMJA = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((B, N, H, A), (B, M, J, A), (B, M, J, A))
    )
    sink_H = jnp.asarray(rng.normal(size=H), jnp.float32) if sinks else None
    slot_M, end_B1 = np.arange(M), np.array([[8990], [300]])
    of_BN = np.ones((B, N), np.int32)
    of_BN[1, 10:] = 0
    seen = Seen(
        of_BN=jnp.asarray(of_BN),
        at_BN=jnp.asarray(end_B1 - N + np.arange(N), jnp.int32),
        of_BM=jnp.asarray(slot_M < end_B1, jnp.int32),
        at_BM=jnp.asarray(np.broadcast_to(slot_M, (B, M)), jnp.int32),
        window=1000,
        page=8,
    )

    def read(first: int, count: int) -> list[jax.Array]:
        return [jax.lax.dynamic_slice_in_dim(x, first, count, 1) for x in (k_BMJA, v_BMJA)]

    def largest(act) -> int:
        return max(list_sizes(jax.make_jaxpr(act)(q_BNHA).jaxpr))

    act = partial(attend_to_cache, read=read, seen=seen, sink_H=sink_H, scale=SCALE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lying, "LARGE_BLOCK", 700 * B * J * A)
        found = act(q_BNHA)
        assert largest(act) < k_BMJA.size / 3
    wanted = attend(q_BNHA, k_BMJA, v_BMJA, seen, sink_H, SCALE, "dense")
    real = np.asarray(of_BN == 1)
    np.testing.assert_allclose(found[real], wanted[real], atol=1e-5)
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_a_compiled_training_step_has_no_array_of_all_pairs(tiny):
    assert max(list_sizes(trace_step(tiny, "dense").jaxpr.jaxpr)) >= LONG * LONG
    program = trace_step(tiny, "auto").lower().compile().as_text()
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", program)
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) < LONG * LONG


def peak(length: int) -> int:
    """Bytes of a layer's forward and backward pass, compiled from shapes."""
    x = jax.ShapeDtypeStruct((1, length, 4, 32), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    dy = jax.ShapeDtypeStruct((1, length, 4, 32), jnp.float32)
    seen = Seen(of_BN=ids, at_BN=ids, of_BM=ids, at_BM=ids, window=1000, near=jnp.bool_(True))
    compiled = run.lower("blockwise", Arrays(x, x, x, None), seen, dy).compile()
    found = compiled.memory_analysis()
    return found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes


@pytest.mark.slow
def test_memory_grows_with_the_length_and_not_faster():
    lengths = [2**11, 2**14, 2**16]
    peaks = [peak(length) for length in lengths]
    for i in range(1, len(lengths)):
        exponent = math.log(peaks[i] / peaks[0]) / math.log(lengths[i] / lengths[0])
        assert exponent <= 1.05, (lengths[i], peaks[i])


def test_a_mesh_needs_no_collective_but_for_sinks(small_blocks):
    """Rows over two axes, heads over a third; the gradient of sinks is a sum over rows."""
    sizes, seen = (4, 2, 4, True), see_all(window=4)
    seen = jax.tree.map(lambda x: jnp.tile(x, (4, 1)), seen)
    arrays = draw(sizes, seen)
    arrays = Arrays(*(jnp.tile(x, (4, 1, 1, 1)) for x in arrays[:3]), arrays.sink_H)
    want = run("blockwise", arrays, seen, arrays.q_BNHA)
    with jax.set_mesh(device_mesh.make_mesh(MeshConfig(expert=2, model=2))):
        heads, rows = P(("data", "expert"), None, "model"), P(("data", "expert"))
        arrays = Arrays(*(jax.device_put(x, heads) for x in arrays[:3]), arrays.sink_H)
        seen = jax.tree.map(lambda x: jax.device_put(x, rows), seen)
        compiled = run.lower("blockwise", arrays, seen, arrays.q_BNHA).compile()
        found = compiled(arrays, seen, arrays.q_BNHA)
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    moved = re.findall(r" ((?:all|reduce|collective)-[a-z-]+)\(", compiled.as_text())
    assert moved == ["all-reduce"]
