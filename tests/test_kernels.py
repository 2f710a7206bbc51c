"""The grouped feed-forward, in every form, against a plain loop over experts in float64."""

import re
import types
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.moe import experts
from moejax.moe.adapted import Adapted, join, split
from moejax.moe.kernels import block_loop, grouped_products, megablox
from moejax.moe.kernels.by_platform import by_platform
from moejax.moe.kernels.grouped_feed_forward import grouped_feed_forward, kept_shapes
from moejax.moe.kernels.megablox import Work, choose_tile
from moejax.moe.kernels.rows import sort_rows
from moejax.moe.lying import lie, lie_at

T, K, D, F, E = 160, 2, 24, 40, 5
KINDS = [  # activation, biases, where the weight applies
    ("swiglu", True, "output"),
    ("geglu", False, "input"),
    ("gelu", True, "input"),
    ("relu", False, "output"),
]


def make(activation, biases, dtype=np.float32, D=D, F=F):
    """Parameters, inputs and the gradient that comes in."""
    rng = np.random.default_rng(0)
    shapes = {"w_up_EDF": (E, D, F), "w_down_EFD": (E, F, D)}
    if biases:
        shapes |= {"b_up_EF": (E, F), "b_down_ED": (E, D)}
    if activation in experts.GATED:
        shapes |= {n.replace("up", "gate"): s for n, s in shapes.items() if "up" in n}
    params = {
        n: rng.normal(size=s) / (s[-2] ** 0.5 if n[0] == "w" else 1) for n, s in shapes.items()
    }
    x, weight, dy = (rng.normal(size=s) for s in ((T, D), (T, K), (T, D)))
    params, x, dy = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, x, dy))
    return params, x, jnp.asarray(weight, jnp.float32), dy


def choices():
    """Who chooses whom: at random, but nobody expert 2, and some none; all expert 3; nobody any."""
    rng = np.random.default_rng(1)
    mixed = np.array([rng.permutation([0, 1, 3, 4])[:K] for _ in range(T)])
    mixed[::7, 1] = -1
    mixed[5] = -1
    one = np.stack([np.full(T, 3), np.full(T, -1)], axis=1)
    return {"mixed": mixed, "one": one, "none": np.full((T, K), -1)}


ACTIVATIONS = {
    "swiglu": lambda x: x / (1 + jnp.exp(-x)),
    "gelu": lambda x: x * (1 + jnp.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: jnp.where(x > 0, x, 0),
}
ACTIVATIONS["geglu"] = ACTIVATIONS["gelu"]


def loop(params, x, weight, expert_TK, activation, weigh):
    """Every expert on every token, and what was not chosen thrown away."""
    of = lambda name, e: next((p[e] for n, p in params.items() if n.startswith(name)), 0)  # noqa: E731
    y = jnp.zeros_like(x)
    for e in range(E):
        for k in range(K):
            w = weight[:, k, None]
            inputs = x * w if weigh == "input" else x
            h = inputs @ of("w_up", e) + of("b_up", e)
            act = ACTIVATIONS[activation]
            gated = activation in ("swiglu", "geglu")
            h = h * act(inputs @ of("w_gate", e) + of("b_gate", e)) if gated else act(h)
            out = h @ of("w_down", e) + of("b_down", e)
            y += jnp.where(expert_TK[:, k, None] == e, out if weigh == "input" else out * w, 0)
    return y


def exact(params, x, weight, dy, expert_TK, activation, weigh):
    """Value and gradients, in float64; gradients of a token without experts count as 0."""
    with jax.enable_x64(True):
        arrays = jax.tree.map(np.float64, (params, x, weight, dy))
        return jax.tree.map(np.asarray, _exact(*arrays, expert_TK, activation, weigh))


@partial(jax.jit, static_argnums=(5, 6))
def _exact(params, x, weight, dy, expert_TK, activation, weigh):
    run = partial(loop, expert_TK=expert_TK, activation=activation, weigh=weigh)
    y, pull = jax.vjp(run, params, x, weight)
    return y, pull(dy)


def by_platform_form(activation, weigh):
    """The public function, in its form for CPUs."""

    def run(params, x, weight, dy, rows):
        y, pull = jax.vjp(
            lambda *a: grouped_feed_forward(*a, rows, activation, weigh),
            params,
            x,
            weight,
        )
        return (y, pull(dy)), {}

    return jax.jit(run)


def by_products(products, activation, weigh):
    """What surrounds the grouped products of a platform, around these."""
    static = {"activation": activation, "weigh": weigh}

    def run(params, x, weight, dy, rows):
        y, kept = grouped_products.forward(products, params, x, weight, rows, **static)
        grads = grouped_products.backward(
            products, params, params, x, weight, rows, None, kept, dy, **static
        )
        return (y, grads), kept

    return jax.jit(run)


def compare(run, arrays, activation, weigh, tolerance, poison=()):
    """Values and all gradients for every pattern of choices."""
    for name, expert_TK in choices().items():
        rows = sort_rows(jnp.asarray(expert_TK, jnp.int32), E)
        wanted = exact(*arrays, expert_TK, activation, weigh)
        params, *inputs = arrays
        if name == "mixed":  # token 5 has no expert: nobody may look at it
            inputs = [a.at[5].set(np.nan) if i in poison else a for i, a in enumerate(inputs)]
        found, kept = run(params, *inputs, rows)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            scale = max(np.abs(b).max(), 1e-30)
            np.testing.assert_allclose(np.float64(a) / scale, b / scale, atol=tolerance, rtol=0)
            assert np.all(np.asarray(a)[b == 0] == 0)  # empty experts, tokens without experts
        for y_RF in kept.values():  # the rows of nobody are poisoned, indeed
            used = int(rows.size_E.sum())
            assert used == T * K or np.isnan(np.float32(y_RF[used:])).any()


@pytest.mark.parametrize(("activation", "biases", "weigh"), KINDS)
def test_the_loop(activation, biases, weigh):
    run = by_platform_form(activation, weigh)
    compare(run, make(activation, biases), activation, weigh, 1e-5, poison=(0, 1, 2))


@pytest.mark.parametrize(
    ("activation", "biases", "weigh", "keeps"),
    [*((*kind, True) for kind in KINDS), (*KINDS[0], False), (*KINDS[3], False)],
)
def test_the_loop_with_many_rows_an_expert(activation, biases, weigh, keeps):
    """An expert has several blocks; hidden numbers are kept, or computed again."""
    static = {"activation": activation, "weigh": weigh, "sizes": (8, 32)}

    @jax.jit
    def run(params, x, weight, dy, rows):
        shapes = kept_shapes(params, x, (T * K + 32) * keeps)
        inputs = (lie(params), x, weight, rows)
        y, kept = block_loop.forward(*inputs, shapes, **static)
        assert kept.keys() == shapes.keys() and bool(kept) == keeps
        # Past an expert's rows anything may stand: nobody may look at it.
        mine_R1 = (jnp.arange(T * K + 32) < rows.size_E.sum())[:, None]
        kept = {n: jnp.where(mine_R1, y_RF, jnp.nan) for n, y_RF in kept.items()}
        return (y, block_loop.backward(params, *inputs, kept, dy, **static)), {}

    compare(run, make(activation, biases), activation, weigh, 1e-5, poison=(0, 1, 2))


@pytest.mark.parametrize(("activation", "biases", "weigh"), KINDS)
def test_the_kernels_of_tpus(activation, biases, weigh):
    arrays = make(activation, biases)
    products = megablox.products(*arrays[:2], interpret=True)
    run = by_products(products, activation, weigh)
    compare(run, arrays, activation, weigh, 1e-5, poison=(0, 1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loop", "tpu"])
def test_a_bank_is_read_in_its_stack(kind):
    """Values and gradients of the second of three layers' banks; those beside it are NaN."""
    params, x, weight, dy = make("swiglu", True)
    rows = sort_rows(jnp.asarray(choices()["mixed"], jnp.int32), E)
    layer = jnp.int32(1)
    stacks = {n: jnp.stack([p * np.nan, p, p * np.nan]) for n, p in params.items()}
    static = {"activation": "swiglu", "weigh": "output"}
    if kind == "loop":
        inputs = (lie_at(stacks, layer), x, weight, rows)
        y, kept = block_loop.forward(*inputs, kept_shapes(stacks, x, T * K + 352), **static)
        grads = block_loop.backward(stacks, *inputs, kept, dy, **static)
    else:
        products = megablox.products(stacks, x, interpret=True)
        inputs = (stacks, x, weight, rows, layer)
        y, kept = grouped_products.forward(products, *inputs, **static)
        grads = grouped_products.backward(products, stacks, *inputs, kept, dy, **static)
    wanted = exact(params, x, weight, dy, choices()["mixed"], "swiglu", "output")
    scale = jax.tree.map(lambda a: np.abs(a).max(), wanted)
    divided = (jax.tree.map(lambda a, s: np.float64(a) / s, a, scale) for a in (wanted, (y, grads)))
    chex.assert_trees_all_close(*divided, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "biases", "weigh"), KINDS)
def test_the_kernels_of_tpus_in_16_bits(activation, biases, weigh):
    arrays = make(activation, biases, jnp.bfloat16)
    run = by_products(megablox.products(*arrays[:2], interpret=True), activation, weigh)
    compare(run, arrays, activation, weigh, 0.03, poison=(0, 1, 2))


@pytest.fixture
def few_cores(monkeypatch):
    """A GPU to ask for its number of cores, which is all that the kernels do with it."""
    devices = [types.SimpleNamespace(core_count=4)]
    monkeypatch.setattr(jax, "devices", lambda *args: devices)


@pytest.fixture
def hopper_products(few_cores):
    """The products of Hopper GPUs, interpreted."""
    params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
    from jax._src.pallas.mosaic_gpu.core import layout_cast_p
    from jax.interpreters import mlir

    # The interpreter knows all that the kernels use, but for this, which has no meaning on a CPU.
    mlir.register_lowering(layout_cast_p, lambda ctx, x, **_: [x])
    from moejax.moe.kernels import mosaic_gpu

    with params.force_gpu_interpret_mode():
        yield mosaic_gpu.products


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, 1])
def test_the_forward_kernel_of_hopper(hopper_products, layer):
    """Of a bank alone, and of the second of three layers' banks; those beside it are NaN."""
    params, x, weight, _ = make("swiglu", True, jnp.bfloat16, D=64, F=128)
    rows = sort_rows(jnp.asarray(choices()["mixed"], jnp.int32), E)
    static = {"activation": "swiglu", "weigh": "output"}
    forward = partial(grouped_products.forward, hopper_products(params, x), **static)
    bank = params
    if layer is not None:
        bank = {n: jnp.stack([p * np.nan, p, p * np.nan]) for n, p in params.items()}
    y, kept = jax.jit(forward)(bank, x.at[5].set(np.nan), weight, rows, layer)
    wanted, _ = exact(params, x, weight, x, choices()["mixed"], "swiglu", "output")
    np.testing.assert_allclose(np.float64(y) / wanted.max(), wanted / wanted.max(), atol=0.03)
    assert np.isnan(np.float32(kept["up"][int(rows.size_E.sum()) :])).any()


@pytest.mark.slow
@pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="before jax 0.11 transposed blocks are not interpreted"
)
@pytest.mark.parametrize(("activation", "biases", "weigh"), KINDS)
def test_the_kernels_of_hopper(hopper_products, activation, biases, weigh):
    arrays = make(activation, biases, jnp.bfloat16, D=64, F=128)
    run = by_products(hopper_products(*arrays[:2]), activation, weigh)
    compare(run, arrays, activation, weigh, 0.03, poison=(0, 1, 2))


def lowered(platform, dtype=jnp.bfloat16, D=128):
    """The text of a layer's gradient, lowered for a platform that is not here."""
    *arrays, dy = make("swiglu", False, dtype, D=D, F=192)

    def gradient(params, x, weight, expert_TK, dy):
        rows = sort_rows(expert_TK, E)
        run = partial(
            grouped_feed_forward,
            rows=rows,
            activation="swiglu",
            weigh="output",
        )
        y, pull = jax.vjp(run, params, x, weight)
        return y, pull(dy)

    expert_TK = jnp.asarray(choices()["mixed"], jnp.int32)
    traced = jax.jit(gradient).trace(*arrays, expert_TK, dy)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_a_program_for_tpus_takes_their_kernels():
    for dtype in (jnp.bfloat16, jnp.float32):
        # Three products, with two gradients each; JAX writes equal ones once.
        text = lowered("tpu", dtype)
        assert len(re.findall(r"call @t?gmm", text)) == 9 and "@tpu_custom_call" in text
    loop = lowered("tpu", jnp.float16)
    assert "@tpu_custom_call" not in loop and "stablehlo.while" in loop


@pytest.mark.slow
def test_a_program_for_hopper_takes_its_kernels(few_cores, monkeypatch):
    assert lowered("cuda").count("@mosaic_gpu") == 9
    for loop in (lowered("cuda", jnp.float32), lowered("cuda", D=100)):
        assert "@mosaic_gpu" not in loop and "stablehlo.while" in loop
    older = [types.SimpleNamespace(compute_capability="8.0")]
    monkeypatch.setattr(jax, "local_devices", lambda **_: older)
    assert "@mosaic_gpu" not in lowered("cuda")


def test_a_program_for_hopper_reads_a_bank_in_its_stack(few_cores):
    params, x, weight, _ = make("swiglu", False, jnp.bfloat16, D=128, F=192)
    rows = sort_rows(jnp.asarray(choices()["mixed"], jnp.int32), E)
    stacks = {n: jnp.stack([p] * 3) for n, p in params.items()}

    def run(stacks, x, layer):
        return grouped_feed_forward(lie_at(stacks, layer), x, weight, rows, "swiglu")

    traced = jax.jit(run).trace(stacks, x, jnp.int32(1))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == 3 and "dynamic_slice" not in text
    assert f"tensor<{3 * E}x128x192xbf16>" in text


def test_a_program_for_cpus_knows_nothing_of_kernels(monkeypatch):
    def never(name):
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr("moejax.moe.kernels.grouped_feed_forward.import_module", never)
    assert "custom_call" not in lowered("cpu", D=72)
    with pytest.raises(AssertionError, match="moejax.moe.kernels.megablox was imported"):
        lowered("tpu", D=72)


def test_blocks_of_the_loop_fit_what_experts_have():
    sizes = block_loop.choose_block_sizes
    assert sizes(16384, 64) == (128, 192, 224, 256, 288, 352)
    assert sizes(16384, 8) == (128, 256, 384, 512)  # several blocks an expert
    assert sizes(4, 64) == (16,)


def compile_loop(keeps):
    """Forward and backward of the loop, compiled; an expert has blocks of three sizes."""
    params, x, weight, dy = make("swiglu", False)
    static = {"activation": "swiglu", "weigh": "output", "sizes": (16, 32, 64)}

    def run(params, x, weight, dy, rows):
        inputs = (lie(params), x, weight, rows)
        shapes = kept_shapes(params, x, (T * K + 64) * keeps)
        y, kept = block_loop.forward(*inputs, shapes, **static)
        return y, block_loop.backward(params, *inputs, kept, dy, **static)

    rows = sort_rows(jnp.asarray(choices()["mixed"], jnp.int32), E)
    return jax.jit(run).lower(params, x, weight, dy, rows).compile()


def test_the_loop_changes_arrays_where_they_lie():
    """Nothing is copied, no block is computed that an expert has not, and what is kept costs its
    own memory alone.
    """
    kept, again = compile_loop(True), compile_loop(False)
    text = kept.as_text()
    assert " conditional(" not in text
    assert not re.findall(r"= f32\[\d+,\S* copy\(", text)
    products = r" dot\(| %ynn_fusion\S* = f32\[\d+,"
    found = [part for part in text.split("\n\n") if re.search(products, part)]
    # XLA moves out of a loop what does not depend on it; then it stands beside the loop.
    assert found and not any(" while(" in part for part in found)
    count = lambda text: len(re.findall(r" dot\(", text))  # noqa: E731
    assert count(text) == 3 * (3 + 6) and count(again.as_text()) == 3 * (3 + 8)
    more = kept.memory_analysis().temp_size_in_bytes - again.memory_analysis().temp_size_in_bytes
    assert more <= 1.02 * 2 * 4 * (T * K + 64) * F


def test_what_the_loop_keeps():
    """Only what is differentiated keeps hidden numbers; a recomputed layer has its own alone."""
    params, x, weight, _ = make("swiglu", False)
    rows = sort_rows(jnp.asarray(choices()["mixed"], jnp.int32), E)
    stacked = jax.tree.map(lambda p: jnp.stack([p] * 3), params)

    def loss(params, x, remat):
        def layer(x, p):
            return x + grouped_feed_forward(p, x, weight, rows, "swiglu"), None

        return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, params)[0].sum()

    grad = jax.jit(jax.grad(loss), static_argnums=2)
    R = block_loop.count_rows(T * K, E)
    texts = [
        compiled.compile().as_text()
        for compiled in (
            jax.jit(loss, static_argnums=2).lower(stacked, x, False),
            *(grad.lower(stacked, x, remat) for remat in (False, True)),
        )
    ]
    assert [f"f32[{R},{F}]" in text for text in texts] == [False, True, True]
    assert [f"f32[3,{R},{F}]" in text for text in texts] == [False, True, False]
    for a, b in zip(*(jax.tree.leaves(grad(stacked, x, r)) for r in (True, False)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_function_by_platform_can_be_mapped():
    shapes = lambda tree, y, **_: (y, tree["x"])  # noqa: E731
    double = by_platform("test", shapes, lambda tree, y, times: (times * y, tree["x"] + 1))
    x, y = jnp.arange(3.0), jnp.arange(6.0).reshape(2, 3)
    a, b = jax.vmap(lambda y: double({"x": x}, y, times=2))(y)
    np.testing.assert_array_equal(a, 2 * y)
    np.testing.assert_array_equal(b, [x + 1, x + 1])
    np.testing.assert_array_equal(double({"x": x}, y, times=3)[0], 3 * y)
    with jax.disable_jit():
        np.testing.assert_array_equal(double({"x": x}, y, times=3)[0], 3 * y)


SHAPES = [(131072, 2048, 1408, 64), (32768, 4096, 14336, 8), (16384, 7168, 2048, 32)]


@pytest.mark.parametrize("shape", [*SHAPES, (128, 24, 40, 5), (65536, 2880, 2880, 32)])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("gradient", [False, True])
def test_tiles_fit(shape, itemsize, gradient):
    work = Work(*shape, itemsize, gradient)
    r, d, f = choose_tile(work)
    assert work.R % r == 0 and r % 128 == 0
    assert (d % 128 == 0 or d == work.D) and (f % 128 == 0 or f == work.F)
    assert work.vmem((r, d, f)) <= megablox.VMEM_BYTES


@pytest.mark.parametrize(
    ("shape", "gradient", "tile"),
    [
        # The matrix of an expert fits whole, or in parts of F, and small tiles of rows are best.
        ((131072, 2048, 1408, 64), False, (128, 2048, 1408)),
        ((32768, 4096, 14336, 8), False, (128, 4096, 512)),
        # It has to be read again for each tile of rows: large ones are.
        ((32768, 14336, 4096, 8), False, (512, 512, 2048)),
        ((32768, 4096, 14336, 8), True, (128, 1024, 1024)),
    ],
)
def test_tiles(shape, gradient, tile):
    assert choose_tile(Work(*shape, 2, gradient)) == tile


def adapt(params, rank=3):
    """A bank with adapters on its matrices, and the bank that computes the same without."""
    rng = np.random.default_rng(2)
    adapted = dict(params)
    for name, w in params.items():
        if name.startswith("w_"):
            a = jnp.asarray(rng.normal(size=(*w.shape[:-1], rank)) / 4, jnp.float32)
            b = jnp.asarray(rng.normal(size=(E, rank, w.shape[-1])) / 4, jnp.float32)
            adapted[name] = Adapted(w, a, b, 0.5)
    return adapted, {n: jnp.asarray(p) for n, p in adapted.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loop", "tpu", "tpu, in a stack"])
def test_adapters_of_experts(kind):
    """A bank with adapters gives what the sum of both gives, and their gradients, by the chain rule
    from those of the sum; of what is frozen none is made.
    """
    params, x, weight, dy = make("swiglu", True)
    adapted, whole = adapt(params)
    rows = sort_rows(jnp.asarray(choices()["mixed"], jnp.int32), E)
    static = {"activation": "swiglu", "weigh": "output"}
    wanted = {n: replace(p, w=None) if n[0] == "w" else None for n, p in adapted.items()}
    trained, frozen = split(adapted, wanted)
    if kind == "loop":
        run = lambda t, x: grouped_feed_forward(join(t, frozen), x, weight, rows, *static.values())  # noqa: E731
        y, pull = jax.vjp(run, trained, x)
        found, dx = pull(dy)
    else:
        products = replace(megablox.products(adapted, x, interpret=True), unit=4)
        layer = None if kind == "tpu" else jnp.int32(1)
        given = adapted
        if layer is not None:
            given = jax.tree.map(lambda p: jnp.stack([p * np.nan, p]), adapted)
        inputs = (given, x, weight, rows, layer)
        y, kept = grouped_products.forward(products, *inputs, **static)
        found, dx, _ = grouped_products.backward(products, wanted, *inputs, kept, dy, **static)
    wanted_y, (dparams, wanted_dx, _) = exact(
        whole, x, weight, dy, choices()["mixed"], "swiglu", "output"
    )
    np.testing.assert_allclose(y, wanted_y, atol=1e-5 * np.abs(wanted_y).max())
    np.testing.assert_allclose(dx, wanted_dx, atol=1e-5 * np.abs(wanted_dx).max())
    for name, p in adapted.items():
        if name[0] == "b":
            assert found[name] is None
            continue
        assert found[name].w is None
        for part, of in ((found[name].a, "ebf,edf->edb"), (found[name].b, "edb,edf->ebf")):
            other = p.b if part.shape == p.a.shape else p.a
            right = 0.5 * np.einsum(of, np.float64(other), dparams[name])
            np.testing.assert_allclose(part, right, atol=1e-5 * np.abs(right).max())


def test_a_program_for_tpus_has_gradients_of_adapters_alone():
    """Two of each of the three matrices, and none of the matrices themselves."""
    params, x, weight, dy = make("swiglu", False, jnp.bfloat16, D=128, F=192)
    adapted = jax.tree.map(lambda p: p.astype(jnp.bfloat16), adapt(params)[0])
    trained, frozen = split(adapted, {n: replace(p, w=None) for n, p in adapted.items()})

    def gradient(trained, frozen, x, expert_TK):
        rows = sort_rows(expert_TK, E)
        run = lambda t, x: grouped_feed_forward(join(t, frozen), x, weight, rows, "swiglu")  # noqa: E731
        return jax.vjp(run, trained, x)[1](dy)

    traced = jax.jit(gradient).trace(trained, frozen, x, jnp.asarray(choices()["mixed"], jnp.int32))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert len(re.findall(r"call @tgmm", text)) == 6
