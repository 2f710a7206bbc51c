"""The loss of an output head, chunk by chunk, against all logits at once in float64."""

import contextlib
import functools
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import Config, DataConfig, MeshConfig, ModelConfig, MoEConfig
from moejax.lab.plan.compile_step import compile_step
from moejax.models import head_loss
from moejax.models.batch_shapes import batch_shapes
from moejax.models.chunk_loss import Aim
from moejax.models.decoder import DecoderLM
from moejax.models.head import Head
from moejax.models.head_loss import Tokens, chunk_size, sum_losses
from moejax.runtime import device_mesh, partition, targets
from moejax.train.optimizer import make_optimizer
from moejax.train.prepare import make_step
from moejax.train.state import init_state

D, V, B, N = 6, 22, 8, 5


def softmax(logits):
    """Of the last dimension, and the log of the sum of the exponentials."""
    most = logits.max(-1, keepdims=True)
    log_z = most + np.log(np.exp(logits - most).sum(-1, keepdims=True))
    return np.exp(logits - log_z), log_z[..., 0]


def oracle(w_DV, x_QBND, target_QBN, real_QBN, weight_Q, scale, smoothing, z_weight):
    """The loss, each module's nats and squares and best tokens; and the gradients of states and of
    the matrix: by the formulas, in float64.
    """
    loss, nats_Q, squares_Q, best_Q, dx_Q, dw_DV = 0.0, [], [], [], [], np.zeros(w_DV.shape)
    for x, target, real, weight in zip(x_QBND, target_QBN, real_QBN, weight_Q, strict=True):
        logits = np.where(real[..., None], x, 0) @ w_DV * scale
        p, log_z = softmax(logits)
        aimed = (1 - smoothing) * np.eye(V)[target] + smoothing / V
        nats = (real * (log_z - (aimed * logits).sum(-1))).sum()
        squares = (real * log_z**2).sum()
        d = p * (1 + 2 * z_weight * log_z[..., None]) - aimed
        d *= weight * scale * real[..., None]
        loss += weight * (nats + z_weight * squares)
        nats_Q.append(nats)
        squares_Q.append(squares)
        best_Q.append(logits.argmax(-1))
        dx_Q.append(d @ w_DV.T)
        dw_DV += np.einsum("bnd,bnv->dv", np.where(real[..., None], x, 0), d)
    return loss, nats_Q, squares_Q, best_Q, dx_Q, dw_DV


def draw(modules: int = 1, seed: int = 0):
    """A matrix, states, targets and which of them count; where none does states are not finite."""
    rng = np.random.default_rng(seed)
    real = [rng.random((B, N)) < 0.8 for _ in range(modules)]
    x = [rng.normal(size=(B, N, D)) for _ in range(modules)]
    target = [rng.integers(0, V, (B, N)) for _ in range(modules)]
    weight_Q = rng.uniform(0.1, 0.9, modules)
    return rng.normal(size=(D, V)), x, target, real, weight_Q


def close(got, want, tolerance):
    """To this share of the largest number."""
    atol = tolerance * np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=atol)


CASES = {
    "plain": {},
    "smoothed": {"smoothing": 0.1},
    "with squares": {"z_weight": 0.01},
    "multiplied": {"scale": 0.25},
    "two further modules": {"modules": 3, "smoothing": 0.2, "z_weight": 0.1, "scale": 2.0},
    "tied": {"tied": True, "z_weight": 0.1},
    "bfloat16": {"dtype": "bfloat16", "smoothing": 0.1, "z_weight": 0.01},
    "on a mesh": {"mesh": (2, 2, 2), "modules": 2, "smoothing": 0.1, "z_weight": 0.1},
    "tied, on a mesh, spread": {"mesh": (2, 2, 2), "tied": True, "fsdp": True},
    "on a mesh that leaves the vocabulary whole": {"mesh": (2, 1, 4), "z_weight": 0.1},
}


PLAIN_CASE = {"modules": 1, "scale": 1.0, "smoothing": 0.0, "z_weight": 0.0, "tied": False}
PLAIN_CASE |= {"fsdp": False, "dtype": "float32", "mesh": None}


def make_grid(shape, devices=None):
    layout = MeshConfig(**dict(zip(("data", "expert", "model"), shape, strict=True)))
    return device_mesh.make_mesh(layout, (devices or jax.devices())[: math.prod(shape)])


@pytest.mark.parametrize(
    ("name", "chunk"), [(name, 7) for name in CASES] + [("two further modules", 64)]
)
def test_sums_and_gradients_are_those_of_all_logits(monkeypatch, name, chunk):
    """Values to 1e-5, gradients too (in bfloat16 to its own precision); where a token does not
    count, its state is infinite.
    """
    case = SimpleNamespace(**PLAIN_CASE | CASES[name])
    monkeypatch.setattr(head_loss, "FEWEST", chunk)
    monkeypatch.setattr(head_loss, "CHUNK", 1)
    aim = Aim(smoothing=case.smoothing, z_loss_weight=case.z_weight)
    w_DV, x, target, real, weight_Q = draw(case.modules)
    w_DV, *x = (np.asarray(jnp.asarray(a, case.dtype), np.float64) for a in (w_DV, *x))
    want = oracle(w_DV, x, target, real, weight_Q, case.scale, aim.smoothing, aim.z_loss_weight)

    def run(w, x):
        spoilt = (jnp.where(r[..., None], a, jnp.inf) for a, r in zip(x, real, strict=True))
        tokens = Tokens(*map(tuple, (spoilt, map(jnp.asarray, target), map(jnp.asarray, real))))
        head = Head(w, case.tied, case.scale, case.fsdp)
        found = sum_losses(head, tokens, jnp.asarray(weight_Q, jnp.float32), aim, best=True)
        return 3 * found.loss, found

    turned = (lambda w: w.T) if case.tied else (lambda w: w)
    given = jnp.asarray(turned(w_DV), case.dtype), [jnp.asarray(a, case.dtype) for a in x]
    with jax.set_mesh(make_grid(case.mesh)) if case.mesh else contextlib.nullcontext():
        (dw, dx), found = jax.jit(jax.grad(run, (0, 1), has_aux=True))(*given)
    loss, nats_Q, squares_Q, best_Q, dx_Q, dw_DV = want
    close(found.loss, loss, 1e-5)
    close(found.nats_Q, nats_Q, 1e-5)
    close(found.log_z_squared_Q, squares_Q, 1e-5)
    for r, got, wanted in zip(real, found.best_QBN, best_Q, strict=True):
        np.testing.assert_array_equal(np.asarray(got)[r], wanted[r])
    precision = 1e-5 if case.dtype == "float32" else 1e-2
    close(turned(dw), 3 * dw_DV, precision)
    for got, wanted in zip(dx, dx_Q, strict=True):
        close(got, 3 * wanted, precision)


@pytest.mark.parametrize(("T", "V", "X"), [(2048, 257, 2048), (8192, 128_000, 1024)])
def test_chunks_have_at_most_64_mib_or_1024_tokens(T, V, X):
    assert chunk_size(T, V) == X
    assert chunk_size(3 * X + 1, V) <= X or X * V <= head_loss.CHUNK


def test_only_the_loss_has_a_gradient_and_a_frozen_head_none():
    w_DV, (x,), (target,), (real,), weight_Q = draw()

    def run(x, w):
        tokens = Tokens((x,), (jnp.asarray(target),), (jnp.asarray(real),))
        return sum_losses(Head(w), tokens, jnp.asarray(weight_Q), Aim())

    x, w = jnp.float32(x), jnp.float32(w_DV)
    for name in ("nats_Q", "log_z_squared_Q"):
        assert not jax.jit(jax.grad(lambda x, name=name: getattr(run(x, w), name).sum()))(x).any()
    products = str(jax.make_jaxpr(jax.grad(lambda x: run(x, w).loss))(x)).count("dot_general")
    assert products == 2  # logits, and the gradient of states
    both = jax.make_jaxpr(jax.grad(lambda x, w: run(x, w).loss, (0, 1)))(x, w)
    assert str(both).count("dot_general") == 3


# What the compiler makes of it.


def array_sizes(text):
    """The numbers of each array of a compiled program."""
    return {math.prod(targets.array_dims(a)) for a in re.findall(r"\w+\[[\d,]+\]", text)}


def compile_gradient(D, V, B, N, grid=None, fsdp=False, dtype="float32"):
    """Of the loss alone, from shapes."""

    def run(w, x, target, real):
        tokens = Tokens((x,), (target,), (real,))
        w = partition.gather_weight(w, "w_head_DV", fsdp)
        return sum_losses(Head(w), tokens, jnp.ones(1), Aim(smoothing=0.1, z_loss_weight=1e-4)).loss

    def shape(sizes, kind, spec):
        sharding = None if grid is None else jax.NamedSharding(grid, spec)
        return jax.ShapeDtypeStruct(sizes, kind, sharding=sharding)

    rows, w_spec = partition.SPECS["batch_BN"], partition.parameter_spec("w_head_DV", fsdp)
    of_w, x = shape((D, V), dtype, w_spec), shape((B, N, D), dtype, rows)
    tokens = shape((B, N), jnp.int32, rows), shape((B, N), bool, rows)
    out = None if grid is None else (of_w.sharding, x.sharding)
    with jax.set_mesh(grid) if grid else contextlib.nullcontext():
        step = jax.jit(jax.grad(run, (0, 1)), out_shardings=out)
        traced = step.trace(of_w, x, *tokens)
        if grid is None or grid.devices.flat[0].platform == "cpu":
            return traced.lower().compile()
        return traced.lower(lowering_platforms=("tpu",)).compile()


def test_with_128000_tokens_the_memory_is_that_of_a_chunk():
    """Of 8,192 positions, from the compiled program: besides states and their gradient, the logits
    of 1,024 (524 MB in float32; all would be 4.2 GB, and so their gradient), and the gradient of
    the matrix, twice on its way out.
    """
    D, V, B, N = 64, 128_000, 8, 1024
    compiled = compile_gradient(D, V, B, N)
    assert max(array_sizes(compiled.as_text())) == 1024 * V
    held = compiled.memory_analysis()
    at_once = held.temp_size_in_bytes + held.output_size_in_bytes
    assert at_once < 4 * (1.01 * 1024 * V + 2 * D * V + 4 * B * N * D)


def assert_nothing_is_gathered(text, D, V, rows):
    """A device of four token devices and two parts of V: of the matrix its part is gathered, once,
    and nothing else; no loop has a collective of more than a number a token.
    """
    assert targets.count_collectives(text)["all-to-all"] == 0
    gathered = re.findall(r"= \(?(?:.*, )?\w+\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)
    assert [sorted(map(int, dims.split(","))) for dims in gathered] == [sorted((D, V // 2))]
    looped = re.findall(r"(.*) all-reduce(?:-start)?\(.*while/body", text)
    assert looped and all(max(array_sizes(made)) <= rows for made in looped)
    assert max(array_sizes(text)) < 2 * rows * V // 2


def test_on_a_mesh_nothing_of_the_vocabulary_travels_but_the_matrix(monkeypatch):
    monkeypatch.setattr(head_loss, "FEWEST", 96)
    monkeypatch.setattr(head_loss, "CHUNK", 1)
    compiled = compile_gradient(24, 1022, 8, 96, make_grid((2, 2, 2)), fsdp=True)
    assert_nothing_is_gathered(compiled.as_text(), 24, 1022, 96)


@pytest.mark.slow
def test_on_a_mesh_of_tpus_nothing_of_the_vocabulary_travels_but_the_matrix(little_effort):
    """With 4,100 positions of 30,006 tokens on a device of v5e."""
    pytest.importorskip("libtpu")
    grid = make_grid((2, 2, 2), targets.describe_devices("v5e:2x4"))
    compiled = compile_gradient(384, 30_006, 16, 1025, grid, fsdp=True, dtype="bfloat16")
    assert_nothing_is_gathered(compiled.as_text(), 384, 30_006, 1025)


def whole_step(V, **model):
    """Settings with 3 sequences of 701 positions, so that there are three chunks, and a module that
    predicts further tokens.
    """
    moe = MoEConfig(every=0)
    model = ModelConfig(
        num_layers=1, width=128, num_heads=1, vocab_size=V, next_tokens=1, moe=moe, **model
    )
    data = DataConfig(sequence_length=701, batch_size=3, eval_batch_size=3)
    return Config(model=model, data=data)


@pytest.mark.slow
def test_a_training_step_has_no_array_of_all_logits():
    V = 20_011
    config = whole_step(V)
    model, optimizer = DecoderLM(config.model, V), make_optimizer(config.optim)
    state = jax.eval_shape(functools.partial(init_state, model, optimizer, config))
    step = make_step(config, model, optimizer)
    compiled = jax.jit(step).lower(None, state, batch_shapes(config, 3)).compile()
    sizes = array_sizes(compiled.as_text())
    assert max(sizes) == chunk_size(3 * 701, V) * V == 701 * V


@pytest.mark.slow
def test_a_training_step_for_a_tpu_has_no_array_of_all_logits(little_effort):
    pytest.importorskip("libtpu")
    V = 20_011
    grid = make_grid((1, 1, 1), targets.describe_devices("v5e:1x1"))
    compiled = compile_step(whole_step(V, dtype="bfloat16"), grid, V)
    assert max(array_sizes(compiled.as_text())) < 3 * 701 * V
