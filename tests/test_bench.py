"""The benchmarks: what they count is what runs, and what compilers say of the accelerators' forms.

Compilers for accelerators are no part of the test environment. For TPUs: pip install -e '.[tpu]';
for NVIDIA: pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12.
"""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config.errors import ConfigError
from moejax.lab.bench.compile_layer import CompiledBench, count_visits, find_kernels, random_sizes
from moejax.moe.kernels import megablox

HERE = Path(__file__).parent
CPU_ONLY = {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def run(*arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | CPU_ONLY
    words = [sys.executable, *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=env, cwd=HERE.parent)


def test_visits_are_those_of_the_kernel():
    rng = np.random.default_rng(0)

    @partial(jax.jit, static_argnames="tm")
    def tiles_of_the_kernel(sizes, tm):
        start = jnp.int32(0)
        make = megablox.kernels.make_group_metadata
        rest = {"start_group": start, "num_nonzero_groups": 3, "visit_empty_groups": False}
        return make(group_sizes=sizes, m=1024, tm=tm, **rest)[1]

    for sizes in ([0, 0, 0], [256, 0, 0], [0, 100, 28], *rng.integers(0, 300, (20, 3))):
        sizes = np.array(sizes, np.int32)
        for tile in (128, 256):
            assert count_visits(sizes, tile) == tiles_of_the_kernel(sizes, tm=tile)


def test_random_sizes_are_those_of_uniform_routing():
    sizes = random_sizes(CompiledBench(tokens=4096, experts=16, top_k=4))
    assert sizes.sum() == 4096 * 4
    assert abs(sizes - 1024).max() < 5 * 1024**0.5


def test_grouped_products_are_found_in_a_program():
    line = (
        "  %{name} = bf16[{made}]{{1,0:T(8,128)(2,1)}} custom-call(%a, %b), custom_call_target="
        '"tpu_custom_call", operand_layout_constraints={{s32[], s32[9]{{0}}, bf16[{x}]{{1,0}},'
        ' bf16[{other}]{{1,0}}}}, metadata={{op_name="jit(f)/jit({name})/pallas_call"}},'
        ' backend_config={{"cost_estimate":{{"flops":"12","transcendentals":"0",'
        '"bytes_accessed":"34"}}}}'
    )
    text = "\n".join(
        [
            line.format(name="gmm", made="1024,384", x="1024,256", other="8,256,384"),
            line.format(name="tgmm", made="8,256,384", x="1024,256", other="1024,384"),
            '  %other = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call"',
        ]
    )
    product, gradient = find_kernels(text, np.full(8, 128))
    assert product.work == megablox.Work(1024, 256, 384, 8, 2)
    assert gradient.work == megablox.Work(1024, 256, 384, 8, 2, gradient=True)
    assert (product.declared_flops, product.declared_bytes) == (12, 34)
    assert product.flops == gradient.flops == 2 * 1024 * 256 * 384  # nothing hangs over


def test_wrong_shapes_are_refused():
    with pytest.raises(ConfigError, match="--tokens 100 cannot be spread over 3 devices"):
        CompiledBench(tokens=100, data=3)
    with pytest.raises(ConfigError, match="--width must be greater than 0"):
        CompiledBench(width=0)
    with pytest.raises(ConfigError, match=r"^--top-k 9 .* at most --experts, 8\.$"):
        CompiledBench(experts=8, top_k=9)


@pytest.mark.slow
def test_the_command_prints_figures():
    shape = "--tokens 256 --width 16 --hidden 16 --experts 4 --rounds 1 --dispatch grouped"
    shape += " --skew 0.5"
    result = run("-m", "moejax", "bench", "layer", *shape.split(), "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["forward_ratio"] > 0 and figures["shape"]["tokens"] == 256
    assert figures["forward_backward_skew_ratio"] > 0


@pytest.mark.skipif(bool(importlib.util.find_spec("libtpu")), reason="libtpu is installed")
def test_a_missing_compiler_has_a_message():
    result = run("-m", "moejax", "bench", "compiled", "--tokens", "256")
    assert result.returncode == 2 and "pip install -e '.[tpu]'" in result.stderr
    assert "Traceback" not in result.stderr


needs_tpu_compiler = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="needs libtpu: pip install -e '.[tpu]'"
)


def compiled(shape: str) -> dict:
    """The figures of `moejax bench compiled`."""
    words = ["bench", "compiled", "--json", *shape.split()]
    result = run("-m", "moejax", *words)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


FINE = "--width 2048 --hidden 1408 --experts 64 --top-k 8"
COARSE = "--width 4096 --hidden 14336 --experts 8 --top-k 2"


@pytest.mark.slow
@needs_tpu_compiler
@pytest.mark.parametrize(
    ("shape", "most", "beside"),
    [
        (f"{FINE} --tokens 16384", 1.10, False),
        (f"{COARSE} --tokens 16384", 1.10, True),
        (f"{FINE} --tokens 2048", 1.5, False),
    ],
)
def test_grouped_products_cost_little_more_than_the_ideal_on_tpus(
    shape, most, beside, little_effort
):
    figures = compiled(shape)
    assert figures["flops_ratio"] <= most
    assert figures["recomputed_ratio"] == 0 and len(figures["kernels"]) == 9
    assert not any(figures["collectives"].values())
    if beside:  # the form that everyone knows
        einsum = compiled(f"{shape} --dispatch einsum")
        assert figures["flops_ratio"] < einsum["flops_ratio"]
        assert figures["peak_gigabytes"] < 1.05 * einsum["peak_gigabytes"]


@pytest.mark.slow
@needs_tpu_compiler
@pytest.mark.parametrize(
    ("target", "dtype", "shape"),
    [
        ("v5e:2x2", "bfloat16", "--width 200 --hidden 328 --experts 6"),
        *(
            (target, dtype, "--width 2880 --hidden 2880 --experts 8")
            for target, dtype in [("v4:2x2x1", "bfloat16"), ("v5e:2x2", "bfloat16")]
            + [("v5e:2x2", "float32"), ("v5p:2x2x1", "bfloat16"), ("v6e:2x2", "bfloat16")]
        ),
    ],
)
def test_the_kernels_compile_for_tpus(target, dtype, shape, little_effort):
    """Where no dimension is a multiple of 128: on every kind of chip as wide as gpt-oss; smaller
    than two tiles on one.
    """
    flags = f"--tokens 1000 {shape} --top-k 3 --target {target} --dtype {dtype}"
    assert len(compiled(flags)["kernels"]) == 9


@pytest.mark.slow
@needs_tpu_compiler
def test_each_chip_computes_its_own_tokens(little_effort):
    figures = compiled("--tokens 4096 --width 256 --hidden 384 --experts 16 --data 4")
    assert len(figures["kernels"]) == 9 and figures["collectives"]["all-gather"] == 0


COMPILE_FOR_HOPPER = """
import sys, types, jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from moejax.lab.bench.compile_layer import CompiledBench
from moejax.moe.layer import MoELayer

tokens, width, hidden, experts, top_k = map(int, sys.argv[2:])
(gpu,) = topologies.get_topology_desc(
    platform="cuda", topology_name="h100", target_config=open(sys.argv[1]).read(), topology="1x1x1"
).devices
here = SingleDeviceSharding(gpu)
bench = CompiledBench(tokens=tokens, width=width, hidden=hidden, experts=experts, top_k=top_k)
layer = MoELayer(bench.moe(), "swiglu")
x = jax.ShapeDtypeStruct((1, tokens, width), "bfloat16", sharding=here)
real = jax.ShapeDtypeStruct((1, tokens), bool, sharding=here)
params = jax.eval_shape(lambda x, r: layer.init(jax.random.key(0), x, r, training=True), x, real)
params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=here), params)

def gradient(params, x, real, dy):
    run = lambda params, x: layer.apply(params, x, real, training=True)[0]
    y, pull = jax.vjp(run, params, x)
    return y, pull(dy)

traced = jax.jit(gradient).trace(params, x, real, x)
jax.devices = lambda *args: [gpu]  # a kernel asks the devices in this machine for their cores
compiled = traced.lower(lowering_platforms=("cuda",)).compile()
print(compiled.as_text().count('custom_call_target="mosaic_gpu'))
print(compiled.memory_analysis().peak_memory_in_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda12_plugin"), reason="needs jax-cuda12-plugin"
)
@pytest.mark.parametrize("shape", ["16384 2048 1408 64 8", "16384 4096 14336 8 2"])
def test_the_layer_compiles_for_hopper(shape):
    result = run("-c", COMPILE_FOR_HOPPER, str(HERE / "h100.textproto"), *shape.split())
    assert result.returncode == 0, result.stderr
    kernels, peak_bytes = map(int, result.stdout.split())
    assert kernels == 9
    assert peak_bytes < 17e9  # with products computed densely it would be more
