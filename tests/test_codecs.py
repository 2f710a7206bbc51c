"""Codecs of quantised weights: every code against decoders of few lines of numpy, and back."""

import importlib.util

import ml_dtypes
import numpy as np
import pytest
from hf_quantised import (
    BF16,
    F8,
    decode_fp8,
    decode_int4,
    decode_mxfp4,
    draw_fp8,
    draw_int4,
    draw_mxfp4,
)

from moejax.config.errors import ConfigError
from moejax.hf.codecs import encode, find_codec
from moejax.hf.fp8 import Fp8Blocks
from moejax.hf.int4 import PackedInt4
from moejax.hf.mxfp4 import Mxfp4


@pytest.fixture
def rng():
    return np.random.default_rng(0)


SHAPES = [(128, 256), (3, 32), (130, 200), (576, 129), (1, 40)]


@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_in_blocks(shape, rng):
    codes, scales = draw_fp8(rng, shape)
    found = Fp8Blocks().decode([codes, scales], np.arange(shape[0]), shape[1])
    want = decode_fp8(codes, scales, (128, 128))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, want)
    some = rng.permutation(shape[0])[:7]
    np.testing.assert_array_equal(Fp8Blocks().decode([codes, scales], some, shape[1]), want[some])
    assert [part.shape for part in Fp8Blocks().list_parts(shape)] == [codes.shape, scales.shape]


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_comes_back(shape, kind, rng):
    """From float32 codes and weights, from bfloat16 weights: both to the bit."""
    codes, scales = draw_fp8(rng, shape)
    decoded = Fp8Blocks().decode([codes, scales], np.arange(shape[0]), shape[1])
    weights = decoded.astype(BF16 if kind == "bfloat16" else np.float32)
    again = Fp8Blocks().encode(weights)
    np.testing.assert_array_equal(again[0].view(np.uint8), codes.view(np.uint8))
    back = Fp8Blocks().decode(again, np.arange(shape[0]), shape[1]).astype(weights.dtype)
    np.testing.assert_array_equal(back.view(f"u{back.itemsize}"), weights.view(f"u{back.itemsize}"))
    if kind == "float32" and min(shape) > 100:  # enough weights to say it
        np.testing.assert_array_equal(again[1], scales)


@pytest.mark.parametrize("scale_kind", ["U8", "F8_E8M0", "F32"])
def test_fp8_with_powers_of_two(scale_kind, rng):
    """As DeepSeek-V3.1 rounds its scales, up: the largest code of a block is often not 448."""
    codes = rng.integers(0, 0x7C, (130, 140)).astype(np.uint8)  # up to 352
    bytes_ = rng.integers(100, 140, (2, 2)).astype(np.uint8)
    values = 2.0 ** (bytes_.astype(np.float32) - 127)
    scales = {"U8": bytes_, "F8_E8M0": bytes_.view(ml_dtypes.float8_e8m0fnu), "F32": values}
    found = Fp8Blocks().decode([codes.view(F8), scales[scale_kind]], np.arange(130), 140)
    np.testing.assert_array_equal(found, decode_fp8(codes, values, (128, 128)))
    again = Fp8Blocks().encode(found.astype(BF16))
    np.testing.assert_array_equal(again[0].view(np.uint8), codes)
    np.testing.assert_array_equal(again[1], values)


def test_fp8_with_one_scale(rng):
    codes, _ = draw_fp8(rng, (20, 30))
    scale = np.array(0.37, np.float32)
    found = Fp8Blocks(None).decode([codes, scale], np.arange(20), 30)
    np.testing.assert_array_equal(found, decode_fp8(codes, scale.reshape(1, 1), (128, 128)))
    again = Fp8Blocks(None).encode(found)
    np.testing.assert_array_equal(again[0].view(np.uint8), codes.view(np.uint8))
    assert again[1] == scale and again[1].shape == ()


def test_mxfp4(rng):
    blocks, scales = draw_mxfp4(rng, [40, 96], 2, 250)
    found = Mxfp4().decode([blocks, scales], np.arange(40), 96)
    np.testing.assert_array_equal(found, decode_mxfp4(blocks, scales).astype(np.float32))
    some = rng.permutation(40)[:9]
    np.testing.assert_array_equal(Mxfp4().decode([blocks, scales], some, 96), found[some])
    for kind in (np.float32, BF16):  # 4 bits times a power of two: bfloat16 has all of it
        again = Mxfp4().encode(found.astype(kind))
        np.testing.assert_array_equal(again[0], blocks)
        np.testing.assert_array_equal(again[1], scales)


@pytest.mark.parametrize("width", [32, 64, 40, 37, 8])
def test_int4(width, rng):
    packed, scales, shape = draw_int4(rng, [50, width])
    found = PackedInt4().decode([packed, scales, shape], np.arange(50), width)
    np.testing.assert_array_equal(found, decode_int4(packed, scales, width).astype(np.float32))
    for kind in (np.float32, BF16):
        again = PackedInt4().encode(found.astype(kind))
        np.testing.assert_array_equal(again[0], packed)
        np.testing.assert_array_equal(again[1], scales)
        np.testing.assert_array_equal(again[2], shape)


@pytest.mark.parametrize("most", [7, 5, 1])
def test_int4_of_a_group_without_its_largest_code_gives_the_weights_back(most, rng):
    values = rng.integers(-most, most + 1, (60, 64)).astype(np.float32)
    scales = np.exp(rng.normal(-4, 1, (60, 2))).astype(BF16).astype(np.float32)
    for kind in (np.float32, BF16):
        weights = (values * np.repeat(scales, 32, 1)).astype(kind)
        back = PackedInt4().decode(PackedInt4().encode(weights), np.arange(60), 64).astype(kind)
        np.testing.assert_array_equal(back, weights)


@pytest.mark.parametrize("codec", [Fp8Blocks(), Mxfp4(), PackedInt4()], ids=lambda c: c.name)
@pytest.mark.parametrize("kind", [np.float32, BF16])
def test_weights_that_were_never_codes_are_near(codec, kind, rng):
    """Of a group's largest weight: half a step of its codes at most. Zeros stay zeros."""
    weights = rng.normal(size=(140, 160)).astype(kind)
    weights[:, 32:64] = 0
    back = codec.decode(codec.encode(weights), np.arange(140), 160)
    assert (back[:, 32:64] == 0).all()
    whole = weights.astype(np.float32)
    group = {"fp8": (128, 128), "mxfp4": (1, 32), "int4": (1, 32)}[codec.name]
    peak = np.zeros_like(whole)
    for i in range(0, 140, group[0]):
        for j in range(0, 160, group[1]):
            at = np.s_[i : i + group[0], j : j + group[1]]
            peak[at] = np.abs(whole[at]).max()
    # fp8: 4 digits. mxfp4: the largest step is 2 of more than 3. int4: 7.5 steps, and the scale is
    # rounded to 8 digits.
    half = {"fp8": 2.0**-4, "mxfp4": 1 / 3, "int4": 1 / 15 + 2.0**-8}[codec.name]
    error = np.abs(back - whole)
    assert (error <= half * peak).all()
    if codec.name == "fp8":
        assert (error <= 2.0**-4 * np.abs(whole) + peak * 2.0**-17).all()


@pytest.mark.parametrize("name", ["fp8", "mxfp4", "int4"])
def test_parts_of_what_is_written_are_those_that_are_read(name, rng):
    codec = {"fp8": Fp8Blocks(), "mxfp4": Mxfp4(), "int4": PackedInt4()}[name]
    tensor = rng.normal(size=(3, 64, 96) if name == "mxfp4" else (64, 96)).astype(np.float32)
    found = dict(encode("a", tensor, codec))
    for part in codec.list_parts(tensor.shape):
        assert found["a" + part.suffix].shape == part.shape
    assert find_codec(codec.write_config(["lm_head"])) == codec


def packed(**changes):
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    weights |= {"group_size": 32} | changes
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


@pytest.mark.parametrize(
    ("told", "part"),
    [
        ("fp8", "quantization_config is 'fp8'"),
        ({}, "quant_method None"),
        *(
            ({"quant_method": name}, f"quant_method {name!r}")
            for name in ("awq", "gptq", "bitsandbytes", "fbgemm_fp8", "modelopt", "torchao", 3)
        ),
        ({"quant_method": ["fp8"]}, "quant_method ['fp8']"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "expert_dtype 'fp4'"),
        *(
            ({"quant_method": "fp8", "weight_block_size": size}, "weight_block_size is ")
            for size in (128, [128], [0, 128], [1.5, 2], [True, 2], [10**30, 1], "x" * 10**6)
        ),
        ({"quant_method": "compressed-tensors"}, "format None"),
        (packed() | {"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized'"),
        (packed() | {"config_groups": {}}, "config_groups is {}"),
        (packed() | {"config_groups": [1]}, "config_groups is [1]"),
        (packed(num_bits=8), "num_bits 8"),
        (packed(type="float"), "type 'float'"),
        (packed(symmetric=False), "symmetric False"),
        (packed(strategy="channel"), "strategy 'channel'"),
        (packed(actorder="group"), "actorder 'group'"),
        (packed(group_size=None), "group_size None"),
        (packed(group_size=10**12), "group_size 1000000000000"),
        (packed() | {"transform_config": {"a": 1}}, "transform_config is {'a': 1}"),
    ],
)
def test_other_formats_are_refused_by_name(told, part):
    with pytest.raises(ConfigError) as caught:
        find_codec(told)
    message = str(caught.value)
    assert part in message and len(message) < 700, message


TORCH = importlib.util.find_spec("torch") is not None


@pytest.mark.slow
@pytest.mark.skipif(not TORCH, reason="transformers with torch")
def test_the_libraries_that_define_them_decode_the_same(rng):
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import _convert_moe_packed_tensors

    codes, scales = draw_fp8(rng, (256, 384))
    told = Fp8Dequantize(None)._dequantize_one(
        torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn), torch.from_numpy(scales)
    )
    found = Fp8Blocks().decode([codes, scales], np.arange(256), 384)
    np.testing.assert_array_equal(found, told.numpy())

    drawn = [draw_mxfp4(rng, [24, 64]) for _ in range(3)]
    blocks, exponents = (np.stack(part) for part in zip(*drawn, strict=True))
    told = _convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(exponents), dtype=torch.float32
    )
    for e in range(3):
        found = Mxfp4().decode([blocks[e], exponents[e]], np.arange(24), 64)
        np.testing.assert_array_equal(found.T, told[e].numpy())


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="compressed-tensors"
)
@pytest.mark.parametrize("width", [64, 40, 37])
def test_compressed_tensors_unpacks_the_same(width, rng):
    import torch
    from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32

    numbers, scales, shape = draw_int4(rng, [20, width])
    told = unpack_from_int32(torch.from_numpy(numbers), 4, torch.Size(map(int, shape)))
    found = PackedInt4().decode([numbers, scales, shape], np.arange(20), width)
    want = told.numpy() * np.repeat(scales.astype(np.float32), 32, 1)[:, :width]
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(pack_to_int32(told, 4).numpy(), numbers)
