"""Weights as codes and scales, against arithmetic in float64 with numpy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from moejax.moe import lying
from moejax.moe.lying import Lying
from moejax.moe.quantised import KINDS, Quantised, dequantise, quantise

SHAPES = {"matrix": (64, 12), "stack": (3, 64, 12), "bank": (2, 3, 64, 12)}
ERRORS = {"int8": 0.01, "fp8": 0.04, "int4": 0.12}
"""Of normal numbers, at most: the root of the mean squared error over that of the numbers."""


def draw(shape: tuple[int, ...]) -> np.ndarray:
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    w[..., 3] = 0  # a channel of zeros
    return w


def decode(q: Quantised) -> np.ndarray:
    """What codes and scales stand for, in float64, entry by entry of the summed dimension."""
    codes, scales = np.asarray(q.codes), np.asarray(q.scales).astype(np.float64)
    codes, scales = (np.moveaxis(x, q.axis, 0) for x in (codes, scales))
    rows = []
    for row in range(q.shape[q.axis]):
        if q.kind == "int4":
            code = (codes[row // 2] >> (4 * (row % 2))) & 15
            code = code.astype(np.float64) - 16 * (code > 7)
        elif q.kind == "fp8":
            code = codes[row].view(ml_dtypes.float8_e4m3fn).astype(np.float64)
        else:
            code = codes[row].astype(np.float64)
        rows.append(code * scales[row // q.group])
    return np.moveaxis(np.array(rows), 0, q.axis)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("form", "group"), [("matrix", 32), ("stack", 8), ("bank", 32), ("bank", None)]
)
def test_codes_and_scales_stand_for_the_weights(form: str, kind: str, group: int | None) -> None:
    w = draw(SHAPES[form])
    q = quantise(jnp.asarray(w), kind, group)
    assert (q.shape, q.ndim, q.size, q.group) == (w.shape, w.ndim, w.size, group or 64)
    assert q.nbytes == w.size // (2 if kind == "int4" else 1) + 2 * w.size // q.group
    expected = decode(q)
    np.testing.assert_allclose(np.asarray(dequantise(q)), expected, rtol=1e-6, atol=0)
    assert np.sqrt(np.square(expected - w).mean() / np.square(w).mean()) < ERRORS[kind]
    assert not expected[..., 3].any()


@pytest.mark.parametrize("kind", KINDS)
def test_each_code_is_the_nearest(kind: str) -> None:
    """The next code up or down is no nearer to any weight."""
    w = draw((2, 64, 12))
    q = quantise(jnp.asarray(w), kind, 32)
    scales = np.repeat(np.asarray(q.scales).astype(np.float64), 32, -2)
    wrong, found = abs(decode(q) - w), np.asarray(dequantise(q)) / scales
    table = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    codes = {"int8": np.arange(-127, 128), "int4": np.arange(-8, 8), "fp8": table[table == table]}
    best = np.min([abs(code * scales - w) for code in codes[kind]], 0)
    assert np.isin(np.round(found, 6), np.round(codes[kind].astype(np.float64), 6)).all()
    np.testing.assert_allclose(wrong, best, atol=1e-6)


def test_scales_of_int4_beat_the_largest_number() -> None:
    """In each group, the squared error is at most that of scales which map it to 7."""
    w = draw((64, 12)).astype(np.float64)
    wrong = np.square(decode(quantise(jnp.asarray(w, jnp.float32), "int4", 32)) - w)
    groups = w.reshape(2, 32, 12)
    plain = np.maximum(abs(groups).max(1, keepdims=True), 1e-9) / 7
    plain = plain.astype(ml_dtypes.bfloat16).astype(np.float64)
    of_plain = np.square(np.clip(np.round(groups / plain), -8, 7) * plain - groups).sum(1)
    of_ours = wrong.reshape(2, 32, 12).sum(1)
    assert (of_ours <= of_plain + 1e-9).all()
    assert of_ours.sum() < 0.8 * of_plain.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_leading_dimensions_are_sliced_like_arrays(kind: str) -> None:
    """A layer of a stack, and each layer in a scan."""
    q = quantise(jnp.asarray(draw(SHAPES["bank"])), kind, 32)
    whole = np.asarray(dequantise(q))
    one = jax.tree.map(lambda x: x[1], q)
    np.testing.assert_array_equal(dequantise(one), whole[1])
    _, each = jax.lax.scan(lambda carry, layer: (carry, dequantise(layer)), None, q)
    np.testing.assert_array_equal(each, whole)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_an_embedding_is_summed_over_its_width(kind: str) -> None:
    w = draw((12, 64)) * np.arange(1, 13)[:, None]
    q = quantise(jnp.asarray(w, jnp.float32), kind, 32, -1)
    np.testing.assert_allclose(np.asarray(dequantise(q)), decode(q), rtol=1e-6)
    rows = jax.tree.map(lambda x: x[np.array([3, 5])], q)
    np.testing.assert_array_equal(dequantise(rows), np.asarray(dequantise(q))[[3, 5]])


@pytest.mark.parametrize("rows", [1, 2, 16, 32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_decoded_alone(kind: str, rows: int) -> None:
    """One row, a part of a group, a group, several: from a stack, at an index that only the running
    program knows. Scales may be held as their bits.
    """
    q = quantise(jnp.asarray(draw(SHAPES["bank"])), kind, 32)
    bits = Quantised(q.codes, jax.lax.bitcast_convert_type(q.scales, jnp.uint16), kind)
    whole = np.asarray(dequantise(q))
    cut = jax.jit(lambda q, i, e, row: q.cut((i, e, row, 2), (rows, 5)))
    for row in range(0, 64, rows):
        for held in (q, bits):
            found = cut(held, 1, 2, row)
            np.testing.assert_array_equal(found, whole[1, 2, row : row + rows, 2:7])


@pytest.mark.parametrize(
    ("size", "kind", "group", "words"),
    [
        (64, "int8", 48, "groups of 48 do not divide the 64 numbers"),
        (64, "int8", 128, "groups of 128 do not divide the 64 numbers"),
        (64, "int8", 0, "groups of 0"),
        (63, "int4", None, "63 numbers are summed, but int4 takes two to a byte"),
    ],
)
def test_what_does_not_divide_is_refused(
    size: int, kind: str, group: int | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        quantise(jnp.ones((size, 4)), kind, group)


@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize(
    ("kind", "group"), [("int8", None), ("int4", 16), ("int4", 2), ("fp8", 64)]
)
def test_a_product_in_place_is_that_with_the_weights(
    kind: str, group: int | None, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows and many, in blocks that are smaller and larger than a group; and the transposed
    product of an embedding.
    """
    monkeypatch.setattr(lying, "SMALL", 1)
    monkeypatch.setattr(lying, "BLOCK", 160)
    q = quantise(jnp.asarray(draw(SHAPES["bank"])), kind, group)
    x = np.random.default_rng(1).normal(size=(rows, 64)).astype(np.float32)
    wanted = x.astype(np.float64) @ decode(q)[1, 2]
    found = jax.jit(lambda q, i: lying.multiply(x, Lying(q, (i, 2))))(q, 1)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * abs(wanted).max())
    if kind == "int8":
        table = quantise(jnp.asarray(draw((12, 64))), kind, group, -1)
        found = jax.jit(lambda q: lying.multiply_transposed(x, Lying(q)))(table)
        np.testing.assert_allclose(found, x @ decode(table).T, atol=1e-4)
        taken = lying.take(Lying(table), np.array([[3, 5]]))
        np.testing.assert_allclose(taken, decode(table)[[3, 5]][None], rtol=1e-6)
