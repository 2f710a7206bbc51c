"""Forms of attention beside a float64 oracle: values and all gradients, for every feature.

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; U: width of a
head's values.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.models.attend import blockwise
from moejax.models.attend.by_form import attend
from moejax.models.attend.seen import Seen, make_mask

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


def see_permuted(**more) -> Seen:
    """Some of the queries, and all keys, both in an order of their own."""
    seen, rng = see_all(**more), np.random.default_rng(1)
    queries, keys = rng.permutation(N)[:13], rng.permutation(N)
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


def see_images(**more) -> Seen:
    one = np.zeros((1, N), np.int32)
    return Seen(of_BN=one, at_BN=one, of_BM=one, at_BM=one, causal=False)


# Heads, key/value heads, width of values, sinks; and what is seen.
CASES = {
    "documents": ((2, 2, 4, False), see_all()),
    "a window, grouped queries, sinks": ((4, 2, 4, True), see_all(window=4)),
    "a layer without the window, one key head, wide values": (
        (4, 1, 6, False),
        see_all(window=4, near=jnp.bool_(False)),
    ),
    "a layer with the window, narrow values, sinks": (
        (2, 1, 3, True),
        see_all(window=4, near=jnp.bool_(True)),
    ),
    "a reach": ((2, 2, 4, False), see_all(reach=5)),
    "a window and a reach, grouped queries, wide values, sinks": (
        (4, 2, 6, True),
        see_all(window=7, near=jnp.bool_(True), reach=5),
    ),
    "permuted": ((2, 2, 4, True), see_permuted()),
    "permuted, a window, grouped queries": ((4, 2, 4, False), see_permuted(window=4)),
    "one query": ((4, 2, 6, True), see_from_cache()),
    "one query, a window": ((4, 2, 4, False), see_from_cache(window=3)),
    "images": ((2, 1, 4, False), see_images()),
    "both ways, documents, a window": ((2, 2, 4, True), see_all(window=4, causal=False)),
}


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


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few positions, so that short sequences have several."""
    for name, size in {"KEYS": 6, "ROWS": 8, "QUERIES": 2}.items():
        monkeypatch.setattr(blockwise, name, size)


@pytest.mark.parametrize("form", ["dense", "blockwise"])
@pytest.mark.parametrize("case", list(CASES))
def test_each_form_is_the_oracle(case, form, small_blocks):
    sizes, seen = CASES[case]
    arrays = draw(sizes, seen)
    dy_BNHU = np.random.default_rng(4).normal(size=(*arrays.q_BNHA.shape[:3], sizes[2]))

    @jax.jit
    def run(arrays, seen):
        def of_arrays(arrays):
            q, k, v, sink = arrays
            return attend(q, k, v, seen, sink, SCALE, form)

        y_BNHU, pull = jax.vjp(of_arrays, arrays)
        return y_BNHU, *pull(jnp.float32(dy_BNHU))[0]

    for got, want in zip(run(arrays, seen), differentiate(arrays, seen, dy_BNHU), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            np.testing.assert_allclose(got, want, atol=1e-5)
