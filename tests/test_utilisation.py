"""MFU, HFU and bandwidth: peaks of devices, the work of compiled programs, and lines that tell."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from moejax.config import Config, MoEConfig, changed
from moejax.models.counts import cost
from moejax.runtime import device_mesh, device_peaks
from moejax.runtime.device_peaks import PEAKS, FoundPeak, find_peak, look_up
from moejax.runtime.program_flops import Work, count_flops, read_work
from moejax.train.utilisation import Utilisation, make_utilisation


@pytest.mark.parametrize("kind", PEAKS)
def test_the_table_of_peaks_is_sound(kind):
    """Units are one thing that may be wrong in a row: all devices lie within these ranges."""
    peak = PEAKS[kind]
    assert {"bfloat16", "float16"} & set(peak.flops) and "float32" in peak.flops
    assert all(1e12 < value < 1e16 for value in peak.flops.values())
    assert 1e11 < peak.memory < 1e13 and (peak.links is None or 1e11 < peak.links < 1e12)
    assert peak.source.startswith(("https://docs.cloud.google.com/tpu", "https://www.nvidia.com/"))


def test_a_device_is_looked_up_by_its_name_and_its_cores():
    assert look_up("TPU v5p") is PEAKS["TPU v5"] and look_up("TPU v5 lite", 1).cores == 1
    one, both = look_up("TPU v4", 1), look_up("TPU v4", 2)
    assert one.flops["bfloat16"] == both.flops["bfloat16"] / 2 == 137.5e12
    assert (one.memory, one.links) == (both.memory / 2, both.links / 2)
    assert look_up("TPU v99") is None


def test_a_peak_is_given_measured_or_in_the_table(monkeypatch):
    monkeypatch.setattr(device_peaks, "measure_product", lambda: 8e9)
    cpu = jax.devices()[0]
    assert find_peak(cpu, "bfloat16", 3.0) == FoundPeak(3.0, "as given")
    here = find_peak(cpu, "float32")
    assert here.flops == 8e9 / jax.local_device_count() and "matrix product here" in here.words
    gpu = SimpleNamespace(platform="gpu", device_kind="Tesla T4")
    assert find_peak(gpu, "float16").flops == 65e12
    assert find_peak(gpu, "bfloat16") is None  # it has none
    assert find_peak(SimpleNamespace(platform="gpu", device_kind="new"), "float32") is None


def test_a_product_is_measured():
    assert 1e8 < device_peaks.measure_product() < 1e15


def test_figures_are_work_over_time_and_peak():
    told = Utilisation(6e9, 4, "some chip", FoundPeak(1e9, "as given"))
    assert told.measure(10, 30.0) == {"mfu": 0.5}
    told._work = Work(flops=2e9, bytes=3e6)
    assert told.measure(10, 30.0) == {"mfu": 0.5, "hfu": 2 / 3, "bandwidth": 1e6}
    said = told.describe()
    assert "1.5G FLOPs of the model" in said and "2G as compiled, 3MB moved" in said
    unknown = Utilisation(6e9, 4, "some chip", None)
    assert unknown.measure(10, 30.0) == {} and unknown.mfu(10, 30.0) is None
    assert "of a some chip is not known: --run.peak-flops" in unknown.describe()


def test_a_frozen_weight_needs_no_gradient():
    """Of adapters, the model's FLOPs are two forward passes instead of three."""
    config = changed(Config(), {"model.vocab_size": 64, "run.peak_flops": 1.0})
    adapters = changed(config, {"run.init_from": "x", "run.lora.rank": 2})
    mesh = device_mesh.make_mesh(config.mesh, jax.devices()[:1])
    plain, beside = (make_utilisation(c, 64, mesh, True).mfu(1, 1.0) for c in (config, adapters))
    tokens = config.data.batch_size * config.data.sequence_length
    assert plain == tokens * cost(config.model, 64, config.data.sequence_length).flops_per_token
    assert beside == pytest.approx(plain * 2 / 3)


PROGRAM = """HloModule jit_step, is_scheduled=true

%fused (param_0: f32[8,4], param_1: f32[4,16]) -> f32[8,16] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %param_1 = f32[4,16]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,16]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/jvp(M)/moe/moe._experts/feed_forward/dot_general"}
}

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  %w = f32[4,16]{1,0} constant({...})
  %fusion.1 = f32[8,16]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused
  %copy.7 = f32[8,16]{1,0} copy(%fusion.1)
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%arg, %x)
}

%condition (arg.1: (s32[], f32[8,4])) -> pred[] {
  %constant.6 = s32[] constant(6)
  %arg.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[] compare(%n, %constant.6), direction=LT
}

%dear (p: f32[8,4]) -> f32[] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %gemm = (f32[2,2]{1,0}, s8[9]{0}) custom-call(%p, %p), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
}

%cheap (q: f32[8,4]) -> f32[] {
  %q = f32[8,4]{1,0} parameter(0)
  ROOT %zero = f32[] constant(0)
}

ENTRY %main (x.1: f32[8,4]) -> f32[] {
  %x.1 = f32[8,4]{1,0} parameter(0)
  %constant.2 = s32[] constant(2)
  %start = (s32[], f32[8,4]{1,0}) tuple(%constant.2, %x.1)
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%condition, body=%bodyKNOWN
  %kernel = f32[8]{0} custom-call(%x.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"transcendentals":"0","flops":"1000"}}}
  %pick = pred[] constant(true)
  ROOT %last = f32[] conditional(%pick, %x.1, %x.1), true_computation=%dear, false_computation=%cheap
}
"""  # noqa: E501
ONE, GEMM, KERNEL = 2 * 8 * 4 * 16, 2 * 2 * 2 * 4, 1000


@pytest.mark.parametrize(
    ("known", "times"),
    [("", 4), (', backend_config={"known_trip_count":{"n":"9"}}', 9)],
    ids=["by its counter", "as the compiler says"],
)
def test_the_body_of_a_loop_counts_as_often_as_it_runs(known, times):
    """With products in fusions, of libraries, of kernels; and the dearer branch."""
    text = PROGRAM.replace("KNOWN", known)
    assert count_flops(text) == times * ONE + GEMM + KERNEL


@pytest.mark.parametrize("unlike", ["direction=GT", "direction=NE"])
def test_a_loop_of_unknown_length_leaves_figures_out(unlike):
    text = PROGRAM.replace("KNOWN", "").replace("direction=LT", unlike)
    assert read_work(text) is None
    with pytest.raises(ValueError, match="unknown length"):
        count_flops(text)


def test_products_and_convolutions_count_as_xla_counts_them():
    """A scan's gradient, whose body XLA counts once; and a window over the edges of an image."""

    def over_layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    x, w = jnp.ones((32, 32)), jnp.ones((6, 32, 32))
    text = jax.jit(jax.grad(over_layers, argnums=1)).lower(x, w).compile().as_text()
    # The input of the first layer needs no gradient, but the loop computes it.
    assert count_flops(text) == 3 * 6 * 2 * 32**3
    image, window = jnp.ones((2, 4, 9, 9)), jnp.ones((5, 4, 3, 3))

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME")

    compiled = jax.jit(convolve).lower(image, window).compile()
    assert count_flops(compiled.as_text()) == compiled.cost_analysis()["flops"]


def test_the_model_of_a_step_that_wastes_nothing_is_what_is_compiled(tiny):
    """MFU is the FLOPs of the compiled step over time and peak within 3 %, where the step does no
    more than the model needs: a dense one, nothing recomputed, AdamW.
    """
    from test_plan import V, compile_tiny, wider

    config = wider(tiny, moe=MoEConfig(every=0), dense_hidden_size=512)
    compiled = compile_tiny(config)
    mesh = device_mesh.make_mesh(config.mesh, jax.devices()[:1])
    told = make_utilisation(changed(config, {"run.peak_flops": 1e12}), V, mesh, True)
    told.read(compiled)
    figures = told.measure(10, 2.0)
    assert figures["mfu"] == pytest.approx(figures["hfu"], rel=0.03)
    # XLA counts what is no product, too; and each parameter costs AdamW and the norm 20 FLOPs.
    counted = compiled.cost_analysis()["flops"]
    assert figures["hfu"] == pytest.approx(10 * counted / 2.0 / 1e12, rel=0.1)
