"""Libraries' kernels for attention: interpreted beside the oracle, refused where they cannot carry
a case, and compiled ahead of time.
"""

import importlib.util
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from test_attend import CASES, SCALE, differentiate, draw

from moejax.config import (
    AttentionConfig,
    Config,
    ConfigError,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    changed,
)
from moejax.inference.inference_config import inference_config
from moejax.lab.plan.compile_step import compile_step
from moejax.lab.plan.devices import paper_mesh
from moejax.lab.plan.step_sizes import choose_attention
from moejax.models.attend.by_form import attend
from moejax.models.attend.carried import BLOCK_BYTES
from moejax.models.attend.case import Case, describe
from moejax.models.attend.choose_form import KERNELS, choose_form
from moejax.models.attend.cudnn import attend_cudnn
from moejax.models.attend.of_model import choose_training_form
from moejax.models.attend.seen import Seen
from moejax.models.attend.splash import BLOCKS, Band, attend_splash, choose_block, count_blocks
from moejax.runtime import device_mesh, targets

SPLASH = partial(attend_splash, interpret=True)
CUDNN = partial(attend_cudnn, implementation="xla")
"""The same arguments as cuDNN's, computed by XLA: so a CPU says what is asked of it."""
LONG = Case(
    platform="tpu",
    queries=4096,
    keys=4096,
    heads=16,
    key_heads=4,
    head_size=128,
    value_size=128,
    dtype="bfloat16",
)


def agree(function, case: str) -> None:
    """The output and all gradients, beside the oracle. Where layers differ in the window, one
    program is run with and without it.
    """
    sizes, seen = CASES[case]
    arrays, seen = draw(sizes, seen), replace(seen, in_order=True)
    dy_BNHU = np.random.default_rng(4).normal(size=(*arrays.q_BNHA.shape[:3], sizes[2]))

    @jax.jit
    def run(arrays, seen):
        def of_arrays(arrays):
            q, k, v, sink = arrays
            return function(q, k, v, seen, sink, SCALE)

        y_BNHU, pull = jax.vjp(of_arrays, arrays)
        return y_BNHU, *pull(jnp.float32(dy_BNHU))[0]

    for near in (None,) if seen.near is None else (True, False):
        now = seen if near is None else replace(seen, near=jnp.bool_(near))
        for got, want in zip(run(arrays, now), differentiate(arrays, now, dy_BNHU), strict=True):
            assert (got is None) == (want is None)
            if want is not None:
                np.testing.assert_allclose(got, want, atol=1e-5)


def carried(form: str) -> list[str]:
    """The cases that a kernel carries, whatever the type."""
    found = []
    for name, (sizes, seen) in CASES.items():
        q, k, v, sink = jax.eval_shape(partial(draw, sizes, seen))
        in_order = "permuted" not in name
        case = describe(q, k, v, replace(seen, in_order=in_order), sink)
        if KERNELS[form].refuse(replace(case, dtype="bfloat16")) is None:
            found.append(name)
    return found


QUICK = next(iter(CASES))


@pytest.mark.slow
def test_splash_is_the_oracle_with_and_without_a_window_with_sinks_and_wide_values():
    agree(SPLASH, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in carried("splash") if case not in list(CASES)[:2]]
)
def test_splash_is_the_oracle(case):
    agree(SPLASH, case)


@pytest.mark.parametrize("case", carried("cudnn"))
def test_what_cudnn_is_asked_is_the_oracle(case):
    agree(CUDNN, case)


REFUSED = {
    "splash": {
        "float16": {"dtype": "float16"},
        "room": {"head_size": 16384},
        "as many queries": {"queries": 1},
        "in another order": {"in_order": False},
        "only where later positions are hidden": {"causal": False, "limited": True},
    },
    "cudnn": {
        "not float32": {"dtype": "float32"},
        "no sinks": {"sinks": True},
        "at most 256": {"head_size": 256},
        "at most 128": {"head_size": 112, "capability": (8, 0)},
        "as many queries": {"queries": 1},
        "in another order": {"in_order": False},
        "only where later positions are hidden": {"causal": False, "limited": True},
    },
}


@pytest.mark.parametrize("form", list(REFUSED))
def test_a_kernel_says_what_it_cannot_carry_and_blockwise_does_it(form):
    case = replace(LONG, platform=KERNELS[form].platform)
    assert choose_form("auto", case)[0] == choose_form(form, case)[0] == form
    for named, change in REFUSED[form].items():
        other = replace(case, **change)
        chosen, why = choose_form(form, other)
        assert chosen == ("blockwise" if other.queries > 1 else "dense")
        assert why.startswith(form) and named in why
        if other.queries > 1:
            assert choose_form("auto", other) == (chosen, why)
    with pytest.raises(ConfigError, match=f"form {form} is for {case.platform}.*runs on cpu"):
        choose_form(form, replace(case, platform="cpu"))
    assert choose_form("auto", replace(case, queries=256, keys=256))[0] == "dense"


@pytest.mark.parametrize(
    ("device", "changes", "words"),
    [
        ("v5e", {}, "splash (the kernel for tpu)"),
        ("h100", {"model.dtype": "bfloat16"}, "cudnn (the kernel for cuda)"),
        ("h100", {}, "blockwise (cudnn has bfloat16, not float32)"),
        ("v5e", {"mesh.context": 2}, "blockwise (splash is for as many queries as keys, not"),
        ("cpu", {}, "blockwise (no 4,096 x 4,096 scores in memory)"),
    ],
)
def test_a_plan_says_the_form_and_why(device, changes, words):
    config = changed(Config(), changes | {"data.sequence_length": 4096})
    grid = paper_mesh(config.mesh, config.mesh.context, device)
    with jax.sharding.use_abstract_mesh(grid):
        assert "{} ({})".format(*choose_attention(config)).startswith(words)


def test_what_was_trained_on_tpus_is_run_on_a_cpu(tiny):
    model = replace(tiny.model, attention=AttentionConfig(form="splash"))
    with pytest.raises(ConfigError, match="form splash is for tpu"):
        choose_training_form(model, 8)
    assert choose_training_form(inference_config(model), 8)[0] == "dense"


@pytest.mark.parametrize("limit", [None, 1, 3, 8, 12, 40])
def test_blocks_are_all_or_none_or_in_part_seen_as_pair_by_pair(limit):
    band, N, block = Band(24, limit), 24, 4
    at = np.arange(N)
    distance = at[:, None] - at
    want = (distance >= 0) & (distance < (limit or N))
    seen = 0
    for q in range(0, N, block):
        for k in range(0, N, block):
            rows, columns = slice(q, q + block), slice(k, k + block)
            got, part = band[rows, columns], want[rows, columns]
            np.testing.assert_array_equal(np.broadcast_to(got, part.shape), part)
            assert got.size == 1 or 0 < part.sum() < part.size
            seen += part.any()
    assert count_blocks(N, block, limit, causal=True) == seen


def test_blocks_are_large_where_that_costs_little():
    def choose(N, limit=None, width=512):
        return choose_block(N, limit, True, width)

    assert [choose(N) for N in (100, 1000, 4096, 32768)] == [128, 256, 512, 1024]
    assert choose(32768, limit=1024) == 256  # a block of queries looks at more than its window
    for width in (512, 4096, 16384):
        assert choose(32768, width=width) * width <= BLOCK_BYTES or choose(32768) == BLOCKS[-1]


ONE, FOUR = ("v5e:1x1", MeshConfig()), ("v5e:2x2", MeshConfig(data=2, model=2))
PROGRAMS = {
    "latent, float32": (ONE, (1, 4096, 2, 2, 192, 128), "float32", None),
    "a window in some layers, sinks, on a mesh": (FOUR, (2, 4000, 4, 2, 64, 64), "bfloat16", 1024),
}


def compile_gradient(program: str) -> jax.stages.Compiled:
    """Of attention of documents in their order."""
    (target, layout), (B, N, H, J, A, U), dtype, window = PROGRAMS[program]
    grid = device_mesh.make_mesh(layout, targets.describe_devices(target))
    some = window is not None

    def gradient(arrays, places, near):
        def loss(*arrays):
            of_BN, at_BN = places
            seen = Seen(of_BN=of_BN, at_BN=at_BN, of_BM=of_BN, at_BM=at_BN, in_order=True)
            sink = arrays[3] if some else None
            seen = replace(seen, window=window, near=near)
            y_BNHU = attend(*arrays[:3], seen, sink, 0.1)
            return jnp.square(y_BNHU.astype(jnp.float32)).sum()

        return jax.grad(loss, range(len(arrays)))(*arrays)

    def shape(spec, sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=jax.NamedSharding(grid, jax.P(*spec)))

    tokens = ("data", "expert")
    sizes = (B, N, H, A), (B, N, J, A), (B, N, J, U)
    arrays = [shape((tokens, None, "model"), each) for each in sizes]
    arrays += [shape(("model",), (H,), "float32")] * some
    places = [shape((tokens,), (B, N), "int32")] * 2
    near = shape((), (), "bool") if some else None
    with jax.set_mesh(grid):
        traced = jax.jit(gradient).trace(arrays, places, near)
        return traced.lower(lowering_platforms=("tpu",)).compile()


@pytest.mark.slow
@pytest.mark.parametrize("program", list(PROGRAMS))
def test_the_kernel_for_tpus_has_no_array_of_all_pairs(program, little_effort):
    """Compiled ahead of time, forward and backward; each chip has its own rows and heads."""
    pytest.importorskip("libtpu")
    (_, layout), (B, N, H, _, A, U), dtype, window = PROGRAMS[program]
    compiled = compile_gradient(program)
    text = compiled.as_text()
    kernels = set(re.findall(r"splash_mha_(fwd|dkv|dq)\w*?(?:\.\d+)? = ", text))
    assert kernels == {"fwd", "dkv", "dq"}
    largest = targets.list_largest_buffers(text, 1)[0]
    assert np.prod(targets.array_dims(largest[1])) < N * N / 4, largest
    here = B * N * H / (layout.data or 1) / layout.model
    arrays = here * ((A + U) * jnp.dtype(dtype).itemsize + 128 * 4)  # and sums for 128 lanes
    assert compiled.memory_analysis().peak_memory_in_bytes < 8 * arrays * (
        1 if window is None else 2
    )
    # The gradients of sinks are added up over the rows.
    found = {name for name, count in targets.count_collectives(text).items() if count}
    assert found == ({"all-reduce"} if layout.model > 1 else set())


@pytest.mark.parametrize("window", [None, 7])
def test_a_program_for_gpus_calls_cudnn_forward_and_backward(window, monkeypatch):
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000
    )
    N = 64

    def gradient(q, k, v, places, near):
        def loss(q, k, v):
            of_BN, at_BN = places
            seen = Seen(of_BN=of_BN, at_BN=at_BN, of_BM=of_BN, at_BM=at_BN, in_order=True)
            seen = replace(seen, window=window, near=near)
            return attend_cudnn(q, k, v, seen, None, 0.1).astype(jnp.float32).sum()

        return jax.grad(loss, (0, 1, 2))(q, k, v)

    shape = jax.ShapeDtypeStruct
    near = None if window is None else shape((), bool)
    heads = [shape((2, N, H, A), "bfloat16") for H, A in ((4, 16), (2, 16), (2, 24))]
    traced = jax.jit(gradient).trace(*heads, (shape((2, N), "int32"),) * 2, near)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = set(re.findall(r"@(__cudnn\$\w+)", text))
    assert calls == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    assert f"{N}x{N}x" not in text  # no mask, no scores
    windows = set(re.findall(r"sliding_window_length\\22: (\d+)", text))
    assert windows == ({"0"} if window is None else {"0", "7"})  # of layers with and without


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda12_plugin"), reason="needs jax-cuda12-plugin"
)
def test_cudnn_compiles_for_hopper():
    """Ahead of time. JAX asks the GPUs that are here how wide heads may be, so these are narrow."""
    text = (Path(__file__).parent / "h100.textproto").read_text()
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", target_config=text, topology="1x1x1"
    )
    here = jax.sharding.SingleDeviceSharding(described.devices[0])
    B, N, H, J, A = 2, 4096, 8, 2, 64

    def gradient(q, k, v, of_BN):
        def loss(q, k, v):
            seen = Seen(of_BN=of_BN, at_BN=of_BN, of_BM=of_BN, at_BM=of_BN, in_order=True)
            return attend_cudnn(q, k, v, seen, None, 0.1).astype(jnp.float32).sum()

        return jax.grad(loss, (0, 1, 2))(q, k, v)

    def shape(*sizes, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=here)

    arrays = shape(B, N, H, A), shape(B, N, J, A), shape(B, N, J, A), shape(B, N, dtype="int32")
    compiled = jax.jit(gradient).trace(*arrays).lower(lowering_platforms=("cuda",)).compile()
    assert compiled.as_text().count('custom_call_target="__cudnn$fmhaSoftmax') == 2
    assert compiled.memory_analysis().peak_memory_in_bytes < B * H * N * N / 2


@pytest.mark.slow
def test_a_training_step_on_a_long_text_fits_a_tpu(little_effort):
    """32k tokens, 4 layers of 2,048, a vocabulary of 128k, on one chip with 16 GB: no array has a
    number for each pair of positions, or for each token and word.
    """
    pytest.importorskip("libtpu")
    N, V = 2**15, 2**17
    moe = MoEConfig(router="mixtral", num_experts=8, top_k=2, hidden_size=1024, group_size=1024)
    sizes = {"num_layers": 4, "width": 2048, "num_heads": 16, "num_kv_heads": 4}
    config = Config(
        model=ModelConfig(**sizes, dtype="bfloat16", remat="layer", moe=moe),
        data=DataConfig(sequence_length=N, batch_size=1, eval_batch_size=1),
    )
    grid = device_mesh.make_mesh(config.mesh, targets.describe_devices("v5e:1x1"))
    compiled = compile_step(config, grid, V)  # which raises where it does not fit
    text = compiled.as_text()
    assert "splash_mha_fwd" in text and "splash_mha_dkv" in text and "splash_mha_dq" in text
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) < N * N
    peak = compiled.memory_analysis().peak_memory_in_bytes
    assert peak < targets.HBM_BYTES["TPU v5 lite"]
