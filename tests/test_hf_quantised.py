"""Checkpoints with codes: read as the same model without, written back, and refused if damaged."""

import importlib.util
import json

import hf_models
import hf_quantised
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hf_quantised import CASES

import moejax.hf
from moejax.commands import main
from moejax.config import MeshConfig
from moejax.config.errors import ConfigError
from moejax.hf import arrays as reading_arrays
from moejax.hf.accounts import INPUTS, list_entries
from moejax.hf.configs import read_config
from moejax.hf.files import open_tensors, read_tensor
from moejax.hf.quantise import choose_codec
from moejax.hf.reading import array_shapes
from moejax.runtime import device_mesh


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A function that writes a model with codes and the same without, once."""
    written = {}

    def of(name: str):
        if name not in written:
            root = tmp_path_factory.mktemp(name)
            coded = hf_quantised.write(root / "coded", name)
            written[name] = coded, hf_quantised.write(root / "plain", name, coded=False)
        return written[name]

    return of


def arrays(model) -> dict:
    found = flatten_dict(model.params)
    return found if model.bias_LE is None else found | {"bias_LE": model.bias_LE}


def assert_same(one, other):
    one, other = arrays(one), arrays(other)
    assert one.keys() == other.keys()
    for path, array in one.items():
        assert array.dtype == other[path].dtype
        np.testing.assert_array_equal(np.asarray(array), np.asarray(other[path]), str(path))


@pytest.mark.parametrize("name", CASES)
def test_a_model_with_codes_is_the_model_without(name, models):
    """It is decoded in float32, and rounded once."""
    coded, plain = models(name)
    assert_same(moejax.hf.load(coded, "bfloat16"), moejax.hf.load(plain, "bfloat16"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8", "mxfp4"])
def test_a_matrix_is_read_in_parts(name, models, monkeypatch):
    """As those of large models are, with codes and without."""
    coded, plain = models(name)
    whole = moejax.hf.load(plain)
    monkeypatch.setattr(reading_arrays, "BLOCK_BYTES", 1000)
    assert_same(moejax.hf.load(coded, "float32"), whole)
    assert_same(moejax.hf.load(plain), whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_device_decodes_its_own_part(name, models):
    model = 1 if name == "mxfp4" else 2  # its experts have biases
    layout = MeshConfig(data=4 // model, expert=2, model=model)
    mesh = device_mesh.make_mesh(layout)
    coded, plain = models(name)
    assert_same(
        moejax.hf.load(coded, mesh=mesh, layout=layout),
        moejax.hf.load(plain, mesh=mesh, layout=layout),
    )


@pytest.mark.parametrize("name", CASES)
def test_what_was_read_is_written_back(name, models, tmp_path):
    """Codes to the bit, in the blocks in which they were; scales where bfloat16 does not round
    them. The model is the same to the bit.
    """
    coded, _ = models(name)
    model = moejax.hf.load(coded, "auto")
    assert model.config.dtype == "float32"  # as its embeddings
    moejax.hf.save(
        tmp_path / "new", model.config, model.params, model.bias_LE, hf=model.hf, quantise=name
    )
    assert_same(moejax.hf.load(tmp_path / "new", "auto"), model)
    told = json.loads((tmp_path / "new" / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == hf_quantised.CONFIGS[name]["quant_method"]
    plain = told.get("ignore") or told["modules_to_not_convert"]
    assert "lm_head" in plain and "model.embed_tokens" in plain
    assert ("model.layers.1.self_attn.o_proj" in plain) == (name != "fp8")
    assert not any(".experts." in module for module in plain)
    files = (tmp_path / "new" / "model.safetensors", coded / "model.safetensors")
    written, was = (open_tensors([file], {}, 10**4) for file in files)
    assert written.keys() == was.keys()
    for tensor, one in written.items():
        other = was[tensor]
        assert (one.kind, one.shape) == (other.kind, other.shape)
        if not tensor.endswith("_scale_inv"):
            assert read_tensor(one).tobytes() == read_tensor(other).tobytes(), tensor


@pytest.mark.parametrize(
    ("codec", "case", "part"),
    [
        ("mxfp4", "mixtral", "that of gpt_oss alone, not of mixtral. There are fp8 and int4"),
        ("fp8", "gpt_oss", "gpt_oss models have all experts of a layer in one tensor"),
        ("int4", "granitemoe", "granitemoe models have all experts of a layer in one tensor"),
        ("int4", "llama", "llama models have none. Give fp8"),
        ("int4", "mixtral", "w2.weight is 24 wide, which groups of 32 do not divide"),
        ("mxfp4", "gpt_oss", "down_proj is 16 wide, which groups of 32 do not divide"),
        ("int3", "llama", "--quantise int3: there are fp8, mxfp4, int4"),
    ],
)
def test_a_codec_is_written_where_the_family_has_a_layout_for_it(codec, case, part):
    fields = hf_models.CASES[case]
    config = read_config(fields)
    entries = list_entries(fields["model_type"], config, array_shapes(config))
    with pytest.raises(ConfigError) as caught:
        choose_codec(codec, fields["model_type"], entries, {})
    assert part in str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_check_says_what_a_checkpoint_is(name, models, capsys):
    """From the heads alone; in words and as JSON."""
    coded, _ = models(name)
    main.run(["check", str(coded)])
    words = capsys.readouterr().out
    told = {"fp8": "fp8 in blocks of 16 x 12", "mxfp4": "mxfp4 in groups of 32"}.get(name)
    assert (told or "int4 of compressed-tensors in groups of 16") in words
    assert CASES[name] in words and f"moejax import {coded} NEW" in words
    main.run(["check", str(coded), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["refused"] is None and facts["quantised"] in words
    assert name in facts["export_quantised"]
    parts = {"fp8": 2, "mxfp4": 2, "int4": 3}[name]
    assert facts["tensors"] == facts["types"]["F32"] + parts * facts["quantised_weights"]
    assert facts["memory"]["float32"] > facts["memory"]["auto"] > facts["memory"]["bfloat16"]


def test_check_says_why_a_checkpoint_is_refused(models, capsys, tmp_path, refused):
    """What is known of it is said, too."""
    here = hf_quantised.write(tmp_path, "fp8", hidden_act="gelu")
    assert "hidden_act is 'gelu'" in refused("check", here)
    out = capsys.readouterr().out
    assert "deepseek_v3" in out and "fp8 in blocks of 16 x 12" in out
    assert "hidden_act" in refused("check", here, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert "hidden_act is 'gelu'" in facts["refused"] and facts["files"] == 1


def test_check_says_what_is_left_out(tmp_path, capsys):
    here = hf_quantised.write(tmp_path, "fp8")
    tensors, _ = hf_quantised.draw("fp8")
    name = "model.layers.0.self_attn.o_proj.activation_scale"
    hf_quantised.save(tensors | {name: np.ones((), np.float32)}, here)
    main.run(["check", str(here)])
    assert f"left out  1 tensor: {INPUTS}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "accelerate"))), reason="transformers"
)
@pytest.mark.parametrize("name", ["fp8", "mxfp4"])
def test_transformers_computes_the_same_with_what_was_written(name, tmp_path, monkeypatch):
    """Its own decoder of fp8 takes blocks that divide all sizes only."""
    import torch
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

    monkeypatch.setattr(hf_quantised, "BLOCK", (4, 4))
    told = hf_quantised.CONFIGS[name] | ({"weight_block_size": [4, 4]} if name == "fp8" else {})
    here = hf_quantised.write(tmp_path / "in", name, quantization_config=told)
    model = moejax.hf.load(here, "float32")
    moejax.hf.save(
        tmp_path / "out", model.config, model.params, model.bias_LE, hf=model.hf, quantise=name
    )
    kind = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}[name]
    theirs, told = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        dtype=torch.float32,
        quantization_config=kind(dequantize=True),
        output_loading_info=True,
    )
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    with torch.no_grad():
        want = theirs(torch.from_numpy(hf_models.prompt().astype(np.int64))).logits.numpy()
    logits_BNV = model.apply(model.params, hf_models.prompt())
    np.testing.assert_allclose(logits_BNV, want, atol=1e-4, rtol=0)
