"""Texts in pages against whole sequences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import make_pool, make_rows

from moejax.config import ModelConfig, MoEConfig, changed
from moejax.hf.reading import make_batch
from moejax.inference.inference_config import inference_config
from moejax.models.decoder import DecoderLM
from moejax.models.kv_pages import PagedRows, empty_pool

V, PAGE, N, SEATS, PAGES = 32, 4, 4, 5, 24
MODEL = ModelConfig(
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    vocab_size=V,
    moe=MoEConfig(num_experts=4, top_k=2, hidden_size=8),
)
LENGTHS = (11, 5, 8)
NOTHING = {"int8": 127, "uint16": 0x7FC0}
"""What is in an array of integers before: the bits of no number."""
SEAT_B = np.array([3, 0, 4], np.int32)


@functools.cache
def draw_params(config: ModelConfig) -> dict:
    batch = make_batch(np.zeros((1, 1), np.int32))
    return jax.jit(lambda: DecoderLM(config, V).init(jax.random.key(0), batch, False))()


def read_whole(config: ModelConfig, token_BN: np.ndarray) -> np.ndarray:
    """Logits of whole sequences."""
    model = DecoderLM(config, V)
    run = jax.jit(lambda p, batch: model.apply(p, batch, False)[0])
    return np.asarray(run(draw_params(config), make_batch(token_BN)))


def cut(length: int, rng: np.random.Generator) -> list[int]:
    """A text in chunks of any size."""
    chunks = []
    while sum(chunks) < length:
        chunks.append(int(rng.integers(1, min(N, length - sum(chunks)) + 1)))
    return chunks


def read_in_pages(config, token_BN, kind=None, drop=0) -> list[np.ndarray]:
    """Logits of each text, all that there are, in chunks of any size, from pages in any order.

    With ``drop``, pages that are so far behind are given back.
    """
    rng = np.random.default_rng(0)
    model = DecoderLM(config, V)
    run = jax.jit(
        lambda p, t, rows, pool: model.apply(p, t, rows, pool, every=True, method="extend")[:2]
    )
    pool = empty_pool(config, 1, SEATS, PAGES, PAGE, kind)
    # What was there before is no matter, even if it is no number.
    pool = jax.tree.map(lambda x: jnp.full_like(x, NOTHING.get(x.dtype.name, np.nan)), pool)
    free = list(rng.permutation(np.arange(1, PAGES)))
    chunks = [cut(length, rng) for length in LENGTHS]
    pages, gone, at, logits = [[] for _ in LENGTHS], [0, 0, 0], [0, 0, 0], [[] for _ in LENGTHS]
    while any(chunks):
        token, table = np.zeros((3, N), np.int32), np.zeros((3, 3), np.int32)
        count = np.zeros(3, np.int32)
        for row, mine in enumerate(chunks):
            if not mine or rng.random() < 0.3:
                continue
            n = count[row] = mine.pop(0)
            while len(pages[row]) + gone[row] < -(-(at[row] + n) // PAGE):
                pages[row].append(free.pop())
            while drop and (gone[row] + 1) * PAGE + drop <= at[row] + 1:
                free.insert(0, pages[row].pop(0))
                gone[row] += 1
            token[row, :n] = token_BN[row, at[row] : at[row] + n]
            token[row, n:] = 7
            table[row, : len(pages[row])] = pages[row]
        rows = PagedRows(
            jnp.asarray(np.where(count > 0, SEAT_B, 0)),
            jnp.asarray(count),
            jnp.asarray(at, jnp.int32),
            jnp.asarray(gone, jnp.int32) * PAGE,
            jnp.asarray(table),
        )
        logits_BNV, pool = run(draw_params(config), token, rows, pool)
        for row in range(3):
            logits[row].append(np.asarray(logits_BNV)[row, : count[row]])
            at[row] += int(count[row])
    return [np.concatenate(one) for one in logits]


VARIANTS = {
    "grouped heads": {},
    "latent": {
        "num_kv_heads": None,
        "qk_norm": False,
        "attention.kv_rank": 8,
        "attention.rope_head_size": 4,
    },
    "windows": {"attention.window": 4, "attention.kinds": ("window", "full")},
    "window": {"attention.window": 4, "attention.kinds": ("window", "window")},
    "sinks": {"attention.sinks": True},
    "memories": {
        "attention.kinds": ("delta", "full"),
        "delta.key_heads": 2,
        "delta.value_heads": 2,
        "delta.key_size": 4,
        "delta.value_size": 4,
    },
}


@pytest.mark.parametrize(
    "variant",
    [v if v == "window" else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS],
)
def test_texts_in_pages_have_the_logits_of_whole_sequences(variant):
    """Chunks of any cut, rows of mixed lengths, some without a text, whatever was in the pages."""
    config = inference_config(changed(MODEL, VARIANTS[variant]))
    token_BN = np.random.default_rng(1).integers(0, V, (3, max(LENGTHS)), dtype=np.int32)
    whole_BNV = read_whole(config, token_BN)
    drop = 4 if variant == "window" else 0
    for row, logits_NV in enumerate(read_in_pages(config, token_BN, drop=drop)):
        np.testing.assert_allclose(logits_NV, whole_BNV[row, : LENGTHS[row]], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["grouped heads", "latent"])
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_shorter_numbers_in_pages_are_the_same_whatever_the_chunks(kind, variant):
    """Rounded alike, with the same scales, as where one token is read after the other."""
    config = inference_config(changed(MODEL, VARIANTS[variant]))
    token_BN = np.random.default_rng(1).integers(0, V, (3, max(LENGTHS)), dtype=np.int32)
    model, slots = DecoderLM(config, V), -(-max(LENGTHS) // PAGE) * PAGE
    pool, one_B = make_pool(config, 3, slots, kind), np.ones(3)
    extend = jax.jit(lambda p, *given: model.apply(p, *given, method="extend")[:2])
    want = []
    for at in range(max(LENGTHS)):
        rows = make_rows(one_B, at * one_B, slots)
        logits_B1V, pool = extend(draw_params(config), token_BN[:, at : at + 1], rows, pool)
        want.append(np.asarray(logits_B1V))
    want_BNV = np.concatenate(want, 1)
    for row, logits_NV in enumerate(read_in_pages(config, token_BN, kind)):
        got = want_BNV[row, : LENGTHS[row]]
        np.testing.assert_allclose(logits_NV, got, atol=1e-5, rtol=1e-5)
