"""The text model of a release that sees images, too, with the experts of a layer in one tensor."""

import json
import re

import hf_models
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import moejax.hf
from moejax.config.errors import CheckpointError
from moejax.hf.configs import read_config
from moejax.hf.reading import survey

CASE = "qwen3_5_moe"
OTHERS = {
    "mtp.fc.weight": (32, 64),
    "mtp.layers.0.mlp.experts.gate_up_proj": (6, 32, 32),
    "model.visual.patch_embed.proj.bias": (8,),
    "model.visual.blocks.0.attn.qkv.weight": (24, 8),
}


def as_released(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under the names of the release, with experts side by side."""
    found = {name: np.ones(shape, np.float32) for name, shape in OTHERS.items()}
    for name, tensor in flat.items():
        released = name.replace("model.", "model.language_model.", 1)
        expert = re.fullmatch(r"(.*\.experts)\.0\.(gate|down)_proj\.weight", released)
        if ".experts." not in name:
            found[released] = tensor
        elif expert:
            each = [re.sub(r"experts\.0\.", f"experts.{e}.", name) for e in range(6)]
            if expert[2] == "down":
                found[f"{expert[1]}.down_proj"] = np.stack([flat[one] for one in each])
                continue
            both = [(one, one.replace("gate_proj", "up_proj")) for one in each]
            found[f"{expert[1]}.gate_up_proj"] = np.stack(
                [np.concatenate([flat[gate], flat[up]]) for gate, up in both]
            )
    return found


@pytest.fixture
def released(tmp_path):
    """A release's directory."""
    place = tmp_path / "released"
    place.mkdir()
    text = hf_models.CASES[CASE]
    whole = {field: x for field, x in text.items() if field != "tie_word_embeddings"}
    hf = {"model_type": CASE, "architectures": ["Qwen3_5MoeForConditionalGeneration"]}
    hf |= {"text_config": whole | {"attn_output_gate": True, "mamba_ssm_dtype": "float32"}}
    hf |= {"tie_word_embeddings": False, "vision_config": {"depth": 1}}
    (place / "config.json").write_text(json.dumps(hf))
    save_file(as_released(hf_models.tensors(CASE)), place / "model.safetensors")
    return place


def test_the_text_model_of_a_release_is_that_model_alone(released, tmp_path, capsys):
    model = moejax.hf.load(released)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("left out")] == [
        "left out: what predicts a second token (mtp)",
        "left out: what sees images",
    ]
    alone = moejax.hf.load(hf_models.write(tmp_path / "alone", CASE))
    assert model.config == alone.config == read_config(hf_models.CASES[CASE])
    for one, other in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(alone.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    family = moejax.hf.save(tmp_path / "out", model.config, model.params, hf=model.hf)
    assert family == "qwen3_5_moe_text"
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["architectures"] == ["Qwen3_5MoeForCausalLM"] and "vision_config" not in told
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    moejax.hf.save(tmp_path / "same", alone.config, alone.params, hf=alone.hf)
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == written


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hf: hf.pop("text_config"), "text_config is None: it must be an object"),
        (lambda hf: hf.update(text_config=3), "text_config is 3: it must be an object"),
        (lambda hf: hf["text_config"].update(attn_output_gate=False), "attn_output_gate is False"),
        (lambda hf: hf["text_config"].update(attention_bias=True), "attention_bias is True"),
        (
            lambda hf: hf["text_config"].update(layer_types=["linear_attention"]),
            "must name full_attention or linear_attention for each of the 2 layers",
        ),
        (
            lambda hf: hf["text_config"].update(full_attention_interval=0),
            "full_attention_interval is 0: it must be a whole number greater than 0",
        ),
        (
            lambda hf: hf["text_config"].update(linear_num_value_heads=5),
            "--model.delta.value-heads 5 is not divisible by --model.delta.key-heads 2",
        ),
    ],
)
def test_what_a_release_cannot_mean_is_named(released, change, words):
    hf = json.loads((released / "config.json").read_text())
    change(hf)
    (released / "config.json").write_text(json.dumps(hf))
    with pytest.raises(CheckpointError, match=re.escape(words)):
        survey(released)


@pytest.mark.parametrize("prefix", ["language_model.", ""])
def test_the_text_model_of_kimi_k25_is_read_alone(prefix, tmp_path, capsys):
    """As released, and as transformers writes it; what sees images is left out."""
    alone = hf_models.write(tmp_path / "alone", "deepseek_v3_as_kimi_k2")
    want, case = moejax.hf.load(alone), "deepseek_v3_as_kimi_k2"
    text = hf_models.CASES[case] | {"model_type": "kimi_k2"}
    hf = {"model_type": "kimi_k25", "text_config": text, "vision_config": {"hidden_size": 3}}
    place = tmp_path / "whole"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(hf))
    tensors = {
        prefix + name if prefix else name.replace("model.", "model.language_model.", 1): x
        for name, x in hf_models.tensors(case).items()
    }
    tensors |= {"vision_tower.encoder.weight": np.zeros(3, np.float32)}
    tensors |= {"mm_projector.linear_1.bias": np.zeros(3, np.float32)}
    save_file(tensors, place / "model.safetensors")
    read = moejax.hf.load(place)
    assert "left out: what sees images" in capsys.readouterr().err
    assert read.config == want.config and read.hf["model_type"] == "kimi_k2"
    for one, other in zip(jax.tree.leaves(read.params), jax.tree.leaves(want.params), strict=True):
        np.testing.assert_array_equal(one, other)
    tensors["surprise.weight"] = tensors.pop("mm_projector.linear_1.bias")
    save_file(tensors, place / "model.safetensors")
    with pytest.raises(CheckpointError, match="unknown: surprise.weight"):
        moejax.hf.load(place)
