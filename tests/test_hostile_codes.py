"""Damaged checkpoints with codes: one message that names the part.

A case is a row of a table: the codec, what is changed on disk, and parts of the message.
"""

import json
from dataclasses import replace

import hf_models
import hf_quantised
import jax
import ml_dtypes
import numpy as np
import pytest
from hf_quantised import BF16

from moejax.config.errors import CheckpointError
from moejax.hf.accounts import check_tensors, list_entries
from moejax.hf.arrays import list_pieces, read_part
from moejax.hf.codecs import find_codec, rename_scales
from moejax.hf.configs import read_config
from moejax.hf.files import open_tensors
from moejax.hf.reading import array_shapes

FP8 = "model.layers.1.mlp.experts.3.down_proj.weight"
DENSE = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
GPT = "model.layers.1.mlp.experts.down_proj"
INT4 = "model.layers.1.mlp.experts.5.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


def drop(name):
    return lambda t: t.pop(name)


def put(name, tensor):
    return lambda t: t.update({name: tensor})


def convert(name, change):
    return lambda t: t.update({name: change(t[name])})


def spoil(name, value):
    def change(t):
        t[name] = t[name].copy()
        t[name].reshape(-1)[-1] = value

    return change


HEADS = [
    ("fp8", drop(f"{FP8}_scale_inv"), f"missing: {FP8}_scale_inv"),
    ("fp8", drop(FP8), f"missing: {FP8}"),
    ("fp8", drop(f"{DENSE}_scale_inv"), f"missing: {DENSE}_scale_inv"),
    ("fp8", convert(f"{FP8}_scale_inv", lambda x: x[:-1]), f"misshapen: {FP8}_scale_inv [1, 2]"),
    ("fp8", convert(f"{FP8}_scale_inv", lambda x: x[0, 0]), f"misshapen: {FP8}_scale_inv []"),
    ("fp8", convert(FP8, lambda x: x[:, :-1]), f"misshapen: {FP8} [32, 15] instead of [32, 16]"),
    ("fp8", convert(FP8, lambda x: x.view(np.uint8)), f"{FP8} U8 instead of F8_E4M3"),
    ("fp8", convert(FP8, lambda x: x.astype(BF16)), f"{FP8} BF16 instead of F8_E4M3"),
    ("fp8", convert(f"{FP8}_scale_inv", np.int32), f"{FP8}_scale_inv I32 instead of F32 or BF16"),
    ("fp8", put(f"{NORM}_scale_inv", np.ones(1, np.float32)), f"unknown: {NORM}_scale_inv"),
    ("fp8", put("lm_head.weight_scale_inv", np.ones((4, 3), np.float32)), "lm_head.weight F32"),
    ("fp8", put("a.weight_scale_inv", np.ones((4, 3), np.float32)), "unknown: a.weight_scale_inv"),
    ("fp8", put("a.activation_scale", np.ones((), np.float32)), "unknown: a.activation_scale"),
    ("fp8", convert(FP8, lambda x: x.view(ml_dtypes.float8_e5m2)), "is of type F8_E5M2: only"),
    ("mxfp4", drop(f"{GPT}_scales"), f"missing: {GPT}_scales"),
    ("mxfp4", drop(f"{GPT}_blocks"), f"missing: {GPT}_blocks"),
    ("mxfp4", convert(f"{GPT}_blocks", lambda x: x[:5]), f"misshapen: {GPT}_blocks [5, 32, 1, 16]"),
    ("mxfp4", convert(f"{GPT}_scales", lambda x: x[..., None]), f"{GPT}_scales [6, 32, 1, 1]"),
    ("mxfp4", convert(f"{GPT}_blocks", np.int32), f"{GPT}_blocks I32 instead of U8"),
    ("mxfp4", convert(f"{GPT}_scales", np.float32), f"{GPT}_scales F32 instead of U8"),
    ("mxfp4", put(GPT, np.zeros((6, 32, 32), np.float32)), f"unknown: {GPT}"),
    ("int4", drop(f"{INT4}_packed"), f"missing: {INT4}_packed"),
    ("int4", drop(f"{INT4}_scale"), f"missing: {INT4}_scale"),
    ("int4", drop(f"{INT4}_shape"), f"missing: {INT4}_shape"),
    ("int4", convert(f"{INT4}_packed", lambda x: x[:, :3]), f"misshapen: {INT4}_packed [16, 3]"),
    ("int4", convert(f"{INT4}_scale", lambda x: x[:1]), f"misshapen: {INT4}_scale [1, 2]"),
    ("int4", convert(f"{INT4}_shape", lambda x: x[:1]), f"misshapen: {INT4}_shape [1]"),
    ("int4", convert(f"{INT4}_packed", np.int64), f"{INT4}_packed I64 instead of I32"),
    ("int4", convert(f"{INT4}_scale", np.int32), f"{INT4}_scale I32 instead of BF16"),
    ("int4", put(INT4, np.zeros((16, 32), np.float32)), f"unknown: {INT4}"),
]


@pytest.fixture(scope="module")
def models():
    """Of each codec: tensors, fields, settings, codec, entries and shapes."""
    found = {}
    for name in hf_quantised.CASES:
        fields = hf_models.CASES[hf_quantised.CASES[name]] | hf_quantised.changes_of(name)
        config = replace(read_config(fields), next_tokens=0)
        shapes = array_shapes(config)
        entries = list_entries(fields["model_type"], config, shapes)
        codec = find_codec(fields["quantization_config"])
        found[name] = hf_quantised.draw(name)[0], fields, config, codec, entries, shapes
    return found


def find_sources(name, change, models, tmp_path):
    """What lies where, after a change."""
    tensors, fields, config, codec, entries, _ = models[name]
    tensors = dict(tensors)
    change(tensors)
    hf_quantised.save(tensors, tmp_path)
    there = open_tensors([tmp_path / "model.safetensors"], {}, 1000)
    return check_tensors(entries, there, fields, config, codec)[0]


@pytest.mark.parametrize(("name", "change", "part"), HEADS)
def test_parts_that_do_not_fit_are_named(name, change, part, models, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        find_sources(name, change, models, tmp_path)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "at"),
    [
        ("fp8", spoil(FP8, np.nan), FP8),
        ("fp8", spoil(f"{FP8}_scale_inv", np.nan), FP8),
        ("fp8", spoil(f"{FP8}_scale_inv", np.inf), FP8),
        ("fp8", spoil(f"{DENSE}_scale_inv", -np.inf), DENSE),
        ("fp8", convert(f"{FP8}_scale_inv", lambda x: np.full(x.shape, 255, np.uint8)), FP8),
        ("mxfp4", spoil(f"{GPT}_scales", 255), f"{GPT}_blocks"),
        ("mxfp4", spoil(f"{GPT}_scales", 254), f"{GPT}_blocks"),  # 2^127 times 6
        ("int4", spoil(f"{INT4}_scale", np.nan), f"{INT4}_packed"),
        ("int4", spoil(f"{INT4}_scale", np.inf), f"{INT4}_packed"),
    ],
)
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BF16], ids=str)
def test_codes_that_are_not_finite_are_named(name, change, at, dtype, models, tmp_path):
    sources = find_sources(name, change, models, tmp_path)
    _, _, config, _, entries, shapes = models[name]
    spoilt: dict[str, None] = {}
    for entry in entries:
        pieces = list_pieces(entry, sources)
        for part in range(len(entry.paths)):
            shape = shapes[entry.paths[part]]
            shape = shape if entry.index is None else shape[1:]
            like = jax.ShapeDtypeStruct(shape, dtype)
            index = tuple(slice(0, size) for size in shape)
            read_part(spoilt, entry, part, config, pieces, like, index)
    assert list(spoilt) == [at]


@pytest.mark.parametrize("size", [[2**62, 2**62], [-1, 32], [32, 16], [0, 0]])
def test_another_shape_in_the_file_is_named(size, models, tmp_path):
    change = put(f"{INT4}_shape", np.array(size))
    source = find_sources("int4", change, models, tmp_path)[INT4]
    with pytest.raises(CheckpointError) as caught:
        source.read(None, np.arange(16), BF16)
    told = f"{INT4}_packed: its weight_shape is {size}, where config.json asks for [16, 32]."
    assert str(caught.value) == told


CONFIGS = [
    (None, "config.json has no quantization_config, which says how codes are read"),
    ({"quant_method": "mxfp4"}, "F8_E4M3 instead of"),
    ({"quant_method": "gptq"}, "quant_method 'gptq'"),
    (hf_quantised.CONFIGS["int4"], "F8_E4M3 instead of"),
    ({"quant_method": "fp8", "weight_block_size": [2**31 - 1, 2**31 - 1]}, "instead of [1, 1]"),
    ({"quant_method": "fp8", "weight_block_size": [1, 1]}, "instead of [56, 20]"),
    ({"quant_method": "fp8", "weight_block_size": None}, "_scale_inv [2, 3] instead of []"),
    ({"quant_method": "fp8", "weight_block_size": [10**400, 1]}, "a number has 401 digits"),
]


@pytest.mark.parametrize(("told", "part"), CONFIGS)
def test_a_config_that_is_not_of_its_files(told, part, tmp_path, refused):
    here = hf_quantised.write(tmp_path / "model", "fp8", quantization_config=told)
    assert part in refused("check", here)


def cut(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])


def lie(file):
    """One tensor says that it has 2^62 rows."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    fields = json.loads(whole[8 : 8 + length])
    fields[FP8]["shape"] = [2**62, 16]
    text = json.dumps(fields).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


@pytest.mark.parametrize("harm", [cut, lie])
def test_damaged_files_are_named(harm, tmp_path, refused):
    here = hf_quantised.write(tmp_path / "model", "fp8")
    harm(here / "model.safetensors")
    for words in (["import", here, tmp_path / "new"], ["check", here]):
        assert "model.safetensors is damaged" in refused(*words)
    assert not (tmp_path / "new").exists()


def test_a_weight_may_be_in_another_file_than_its_scale(models, tmp_path):
    """And a scale may have one of its other names."""
    tensors, fields, config, codec, entries, _ = models["fp8"]
    tensors = {n.replace("weight_scale_inv", "scale"): x for n, x in tensors.items()}
    files = {}
    for number, end in enumerate((".weight", ".scale", "correction_bias")):
        (tmp_path / str(number)).mkdir()
        some = {n: x for n, x in tensors.items() if n.endswith(end)}
        hf_quantised.save(some, tmp_path / str(number))
        files |= dict.fromkeys(some, tmp_path / str(number) / "model.safetensors")
    there = open_tensors(sorted(set(files.values())), files, 1000)
    rename_scales(there, codec)
    sources, _ = check_tensors(entries, there, fields, config, codec)
    assert len({part.file for part in sources[FP8].parts}) == 2
