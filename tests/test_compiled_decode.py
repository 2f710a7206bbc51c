"""What a decode step takes, read from the compiled program: nothing is run."""

import functools
import math
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from pages import make_pool, make_rows

from moejax.config import Config, MeshConfig, ModelConfig, MoEConfig, changed
from moejax.hf.reading import make_batch
from moejax.inference.compile_decode import compile_decode, decode_state
from moejax.inference.engine.sizes_together import PAGE
from moejax.inference.inference_config import inference_config
from moejax.models.decoder import DecoderLM
from moejax.models.kv_pages import PagedRows, Pool
from moejax.moe import lying
from moejax.moe.quantise_params import Weights, quantise_params
from moejax.moe.quantised import dequantise, is_quantised
from moejax.runtime import device_mesh, targets
from moejax.runtime.program_bytes import count_bytes

SMALL = ModelConfig(
    num_layers=3,
    width=64,
    num_heads=4,
    vocab_size=96,
    moe=MoEConfig(num_experts=8, top_k=2, hidden_size=32),
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_is_written_in_place(dtype: str) -> None:
    """All of it is an argument and a result that share their memory."""
    compiled = compile_decode(Config(model=SMALL), 2, dtype, 128)
    pool = jax.eval_shape(lambda: make_pool(replace(SMALL, dtype=dtype), 2, 128))
    size = sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(pool))
    assert compiled.memory_analysis().alias_size_in_bytes >= size


@functools.cache
def draw(config: ModelConfig) -> dict:
    """Parameters of a model."""
    model, batch = DecoderLM(config, 96), make_batch(np.zeros((1, 1), np.int32))
    return jax.jit(lambda: model.init(jax.random.key(0), batch, False))()


VARIANTS = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "biases": {"moe.expert_bias": True, "moe.shared_experts": 1, "moe.shared_gate": True},
    "latent": {
        "qk_norm": False,
        "attention.kv_rank": 16,
        "attention.rope_head_size": 8,
    },
}


@pytest.mark.parametrize(
    ("variant", "dtype", "rows", "prompt", "weights"),
    [
        ("plain", "float32", 1, 1, None),
        ("tied", "bfloat16", 3, 2, None),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("plain", "bfloat16", 9, 2, None),
                ("tied", "float32", 9, 2, None),
                ("biases", "bfloat16", 1, 1, None),
                ("biases", "float32", 3, 2, None),
                ("latent", "bfloat16", 3, 2, None),
                ("biases", "float32", 9, 2, Weights(kind="int4")),
                ("latent", "float32", 1, 2, Weights(kind="int8", group=16)),
            ]
        ),
    ],
)
def test_reading_weights_where_they_lie_gives_the_full_forward_pass(
    variant: str,
    dtype: str,
    rows: int,
    prompt: int,
    weights: Weights | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts of some positions, then one more: few rows and many, in blocks of several sizes.
    Quantised weights give what they stand for.
    """
    monkeypatch.setattr(lying, "SMALL", 1)
    monkeypatch.setattr(lying, "BLOCK", 256)
    config = inference_config(changed(SMALL, VARIANTS[variant]))
    model = DecoderLM(config, 96)
    N = prompt + 1
    tokens_BN = jax.random.randint(jax.random.key(1), (rows, N), 0, 96)
    batch = make_batch(tokens_BN)
    params = draw(config)["params"]
    rounded = jax.tree.map(lambda x: x.astype(dtype), params)
    widened = jax.tree.map(lambda x: x.astype("float32"), rounded)
    if weights is not None:
        rounded = quantise_params(rounded, weights)
        widened = jax.tree.map(
            lambda x: dequantise(x) if is_quantised(x) else x.astype("float32"),
            rounded,
            is_leaf=is_quantised,
        )
    expected_BNV, _ = jax.jit(model.apply, static_argnums=2)({"params": widened}, batch, False)
    pool, one_B = make_pool(config, rows, 8), np.ones(rows)

    @jax.jit
    def step(params: dict, token_BN: jax.Array, of: PagedRows, pool: Pool) -> tuple:
        given = (token_BN, of, pool)
        return model.apply({"params": lying.lie(params)}, *given, method="extend")[:2]

    held = lying.hold(rounded)
    _, pool = step(held, tokens_BN[:, :prompt], make_rows(prompt * one_B, 0 * one_B, 8), pool)
    logits_B1V, _ = step(held, tokens_BN[:, prompt:], make_rows(one_B, prompt * one_B, 8), pool)
    np.testing.assert_allclose(logits_B1V[:, 0], expected_BNV[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "tolerance"), [("bfloat16", 2e-2), ("int8", 3e-2)])
@pytest.mark.parametrize("variant", ["plain", pytest.param("latent", marks=pytest.mark.slow)])
def test_a_shorter_cache_changes_little(variant: str, kind: str, tolerance: float) -> None:
    """It is kept in its type, and what comes out is near."""
    config = inference_config(changed(SMALL, VARIANTS[variant]))
    model = DecoderLM(config, 96)
    tokens_BN = jax.random.randint(jax.random.key(1), (2, 6), 0, 96)
    variables, one_B = draw(config), np.ones(2)
    found = []
    for of in (None, kind):
        pool = make_pool(config, 2, 8, of)
        apply = jax.jit(lambda *given: model.apply(variables, *given, method="extend")[:2])
        _, pool = apply(tokens_BN[:, :5], make_rows(5 * one_B, 0 * one_B, 8), pool)
        found.append(apply(tokens_BN[:, 5:], make_rows(one_B, 5 * one_B, 8), pool)[0])
    stored = {x.dtype.itemsize for name, x in pool[0].items() if "scale" not in name}
    assert stored == {1 if kind == "int8" else 2}
    assert 0 < abs(found[1] - found[0]).max() < tolerance * abs(found[0]).max()


WIDE = changed(SMALL, {"width": 512, "vocab_size": 2048, "moe.hidden_size": 512})
OLMOE = ModelConfig(
    width=2048,
    num_heads=16,
    vocab_size=50304,
    moe=MoEConfig(num_experts=64, top_k=8, hidden_size=1024),
)
SIZES = [
    (16, "bfloat16", 8, None),
    (4, "bfloat16", 1, None),
    (2, "float32", 8, None),
    (1, "float32", 1, None),
    (4, "float32", 1, Weights(kind="int8", group=128)),
    (16, "bfloat16", 8, Weights(kind="int4")),
]


@pytest.mark.parametrize(
    ("model", "layers", "dtype", "rows", "weights"),
    [
        (WIDE, 3, "float32", 1, None),
        (WIDE, 3, "bfloat16", 3, None),
        (WIDE, 8, "float32", 1, Weights(kind="int4")),
        *(pytest.param(OLMOE, *size, marks=pytest.mark.slow) for size in SIZES),
    ],
)
def test_a_step_reads_the_chosen_experts_and_keeps_no_copy(
    model: ModelConfig, layers: int, dtype: str, rows: int, weights: Weights | None
) -> None:
    """Temporary memory is at most 5 % of the weights, and what is read at most 1.25 times the
    weights in use (all but the embedding, of the banks as many experts as can be chosen) and the
    cache, which is read where it lies, and written in place. What is quantised counts as the bytes
    of its codes and scales.
    """
    config = Config(model=changed(model, {"num_layers": layers}))
    slots = 1024 if model is WIDE and weights is None else 64
    compiled = compile_decode(config, rows, dtype, slots, weights=weights)
    mesh = device_mesh.make_mesh(config.mesh, jax.devices()[:1])
    typed = changed(config, {"model.dtype": dtype, "model.moe.group_size": 1})
    params = decode_state(typed, model.vocab_size, mesh, weights)["params"]
    held = active = 0
    moe = model.moe
    for path, leaf in flatten_dict(params).items():
        size = sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(leaf))
        held += size
        chosen = min(1, rows * moe.top_k / moe.num_experts)
        share = {"embedding_VD": 0, "w_gate_EDF": chosen, "w_up_EDF": chosen, "w_down_EFD": chosen}
        active += size * share.get(path[-1], 1)
    kept = jax.eval_shape(lambda: make_pool(typed.model, rows, slots))
    cache = sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(kept))
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory.temp_size_in_bytes <= 0.05 * held
    assert memory.alias_size_in_bytes >= cache
    if slots == 1024:  # else a layer's part of it is small
        active += cache
        Q = slots // PAGE
        assert not re.findall(rf"\[(?:1,)?{rows},(?:{slots}|{Q},{PAGE}),\d+,\d+\]", text)
    assert 0.5 * active < count_bytes(text) <= 1.25 * active
    assert compiled.cost_analysis()["bytes accessed"] <= 1.25 * active


@pytest.mark.slow
def test_on_a_tpu_quantised_weights_are_decoded_in_parts() -> None:
    """Temporary memory is at most 5 % of the weights: no bank, nor the head, is decoded whole."""
    pytest.importorskip("libtpu")
    grid = device_mesh.make_mesh(MeshConfig(), targets.describe_devices("v5e:1x1"))
    config = Config(model=changed(OLMOE, {"num_layers": 2}))
    int4 = Weights(kind="int4")
    compiled = compile_decode(config, 1, "bfloat16", 256, mesh=grid, weights=int4)
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes <= 0.05 * memory.argument_size_in_bytes


@pytest.mark.slow
def test_on_a_tpu_no_bank_is_copied() -> None:
    """Compiled ahead of time for one chip of v5e: no array as large as one matrix of a bank is
    written, nor a layer's part of the cache, and the peak is at most 1.1 times weights and cache.
    """
    pytest.importorskip("libtpu")
    grid = device_mesh.make_mesh(MeshConfig(), targets.describe_devices("v5e:1x1"))
    config = Config(model=changed(OLMOE, {"num_layers": 2}))
    compiled = compile_decode(config, 1, "bfloat16", 8192, mesh=grid)
    memory = compiled.memory_analysis()
    assert memory.peak_memory_in_bytes <= 1.1 * memory.argument_size_in_bytes
    sizes = [size for size, *_ in targets.list_largest_buffers(compiled.as_text(), 50)]
    assert sizes[0] < 64 * 2048 * 1024 * 2 and 8192 * 2048 * 2 not in sizes
