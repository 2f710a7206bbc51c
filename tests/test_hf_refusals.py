"""What is wrong with a checkpoint ends in one message that names it, and nothing of it is run."""

import json
import pickle
import struct

import hf_models
import numpy as np
import pytest
from safetensors.numpy import save_file

import moejax.hf
from moejax.config import ModelConfig, MoEConfig
from moejax.config.errors import UserError
from moejax.hf.configs import read_config, write_config

INDEX = "model.safetensors.index.json"


@pytest.fixture
def here(tmp_path):
    """A whole checkpoint of a Mixtral of four experts."""
    return hf_models.write(tmp_path / "model", "mixtral")


def refused(directory) -> str:
    """The message."""
    with pytest.raises(UserError) as caught:
        moejax.hf.load(directory)
    return str(caught.value)


def rewrite(directory, change) -> None:
    """Change the tensors on disk."""
    tensors = hf_models.tensors("mixtral")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        pytest.param(lambda t: t.pop(EXPERT), ("missing", EXPERT), id="missing"),
        pytest.param(
            lambda t: t.update({"model.layers.0.surprise": np.zeros(3, np.float32)}),
            ("unknown", "model.layers.0.surprise"),
            id="unknown",
        ),
        pytest.param(
            lambda t: t.update({EXPERT: t[EXPERT].T.copy()}),
            ("misshapen", f"{EXPERT} [24, 32] instead of [32, 24]"),
            id="misshapen",
        ),
        pytest.param(
            lambda t: t.update({EXPERT: t[EXPERT].astype(np.int8)}), (EXPERT, "I8"), id="integers"
        ),
        pytest.param(
            lambda t: [t.pop(name) for name in list(t) if ".experts.3." in name],
            ("missing", "config.json says 4 experts, but the files have 3"),
            id="fewer experts",
        ),
        pytest.param(
            lambda t: t.update(
                {n.replace("experts.3", "experts.4"): x for n, x in t.items() if "experts.3" in n}
            ),
            ("unknown", "config.json says 4 experts, but the files have 5"),
            id="more experts",
        ),
        pytest.param(
            lambda t: t.update(
                {n.replace("layers.1", "layers.2"): x for n, x in t.items() if "layers.1" in n}
            ),
            ("unknown", "model.layers.2."),
            id="another layer",
        ),
    ],
)
def test_every_tensor_is_accounted_for(change, parts, here):
    rewrite(here, change)
    message = refused(here)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("case", "changes", "parts"),
    [
        ("mixtral", {"model_type": "bert"}, ("model_type 'bert'", "mixtral")),
        ("mixtral", {"hidden_act": "gelu"}, ("hidden_act is 'gelu'", "'silu'")),
        (
            "mixtral",
            {"quantization_config": {"quant_method": "awq"}},
            ("quantization_config", "'awq'", "bfloat16"),
        ),
        (
            "mixtral",
            {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            ("rope scaling type 'longrope'", "yarn"),
        ),
        ("mixtral", {"rope_scaling": {"rope_type": "yarn"}}, ("yarn have no factor",)),
        ("mixtral", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, ("low_freq_factor",)),
        ("mixtral", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor is 0.5",)),
        (
            "mixtral",
            {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
            ("rope_parameters", "only one kind"),
        ),
        ("qwen3_moe", {"use_sliding_window": True}, ("use_sliding_window is True", "False")),
        ("qwen3_moe", {"mlp_only_layers": [1]}, ("mlp_only_layers [1]",)),
        (
            "qwen2_moe",
            {"shared_expert_intermediate_size": 0},
            ("shared_expert_intermediate_size is 0", "at least 1"),
        ),
        ("olmoe", {"clip_qkv": 8.0}, ("clip_qkv is 8.0", "None")),
        ("deepseek_v2", {"topk_method": "best"}, ("topk_method 'best'", "group_limited_greedy")),
        ("deepseek_v3", {"rope_interleave": False}, ("rope_interleave is False",)),
        ("deepseek_v3", {"scoring_func": "softmax"}, ("scoring_func is 'softmax'",)),
        ("deepseek_v3", {"num_key_value_heads": 2}, ("num_key_value_heads is 2",)),
        ("gpt_oss", {"layer_types": ["full_attention"]}, ("layer_types", "3 layers")),
        ("gpt_oss", {"swiglu_limit": 5.0}, ("swiglu_limit is 5.0",)),
        ("mixtral", {"num_experts_per_tok": 5}, ("--model.moe.top-k 5",)),
        ("mixtral", {"hidden_size": "many"}, ("hidden_size is 'many'", "whole number")),
        ("mixtral", {"num_attention_heads": None}, ("num_attention_heads is None",)),
    ],
)
def test_what_a_config_says_is_supported_or_named(case, changes, parts, tmp_path):
    message = refused(hf_models.write(tmp_path, case, **changes))
    assert "config.json" in message
    for part in parts:
        assert part in message, message


def test_fields_that_are_missing_are_named(here):
    fields = json.loads((here / "config.json").read_text())
    del fields["hidden_size"], fields["num_local_experts"]
    (here / "config.json").write_text(json.dumps(fields))
    assert "config.json has no hidden_size, num_local_experts" in refused(here)
    (here / "config.json").write_text("[1, 2")
    assert "config.json cannot be read" in refused(here)
    (here / "config.json").unlink()
    assert "config.json cannot be read" in refused(here)


def header(fields: dict | bytes, body: bytes = bytes(48)) -> bytes:
    """A safetensors file with this head."""
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(shape: list[int], begin: int, end: int) -> dict:
    """A tensor's entry in a head."""
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x08\x00", id="no length"),
        pytest.param(struct.pack("<Q", 2**62) + b"{}", id="a head longer than the file"),
        pytest.param(header(b"hello"), id="no JSON"),
        pytest.param(header({"a": tensor([2, 3], 0, 24)}), id="a hole"),
        pytest.param(header({"a": tensor([2, 3], 0, 24), "b": tensor([6], 0, 24)}), id="overlap"),
        pytest.param(header({"a": tensor([2**62, 8], 0, 48)}), id="an overflow"),
        pytest.param(header({"a": tensor([-2, 6], 0, 48)}), id="a negative size"),
        pytest.param(header({"a": tensor([12], 0, 2**40)}), id="beyond the end"),
        pytest.param(
            header(
                b'{"a":{"dtype":"F32","shape":[12],"data_offsets":[0,48]},'
                b'"a":{"dtype":"F32","shape":[12],"data_offsets":[0,48]}}'
            ),
            id="twice",
        ),
    ],
)
def test_damaged_and_hostile_heads_are_refused(content, here):
    (here / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refused(here)


def test_a_cut_file_is_refused(here):
    whole = (here / "model.safetensors").read_bytes()
    (here / "model.safetensors").write_bytes(whole[:-4])
    assert "model.safetensors is damaged" in refused(here)


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", "", None, 3, ".."],
)
def test_an_index_names_files_of_its_own_directory_alone(name, here):
    (here / "model.safetensors").rename(here.parent / "outside.safetensors")
    (here / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    message = refused(here)
    assert f"names the file {name!r}" in message and "same directory" in message


def test_an_index_must_agree_with_its_files(here):
    names = list(hf_models.tensors("mixtral"))
    right = dict.fromkeys(names, "a.safetensors")
    (here / "model.safetensors").rename(here / "a.safetensors")

    def index(weight_map) -> str:
        (here / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        return refused(here)

    assert "has no weight_map" in index({})
    assert "has no weight_map" in index([1])
    assert "which model.safetensors.index.json does not list" in index(
        dict(list(right.items())[1:])
    )
    assert "surprise is in a.safetensors, but it is not" in index(
        right | {"surprise": "a.safetensors"}
    )
    assert "gone.safetensors is missing" in index(right | {"a": "gone.safetensors"})
    (here / "b.safetensors").write_bytes((here / "a.safetensors").read_bytes())
    assert "must be there once" in index(right | {names[0]: "b.safetensors"})
    (here / INDEX).write_text(json.dumps({"weight_map": right}))
    assert moejax.hf.load(here).config.num_layers == 2


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], True),
        ([], True),
        (["model.safetensors"], False),
    ],
    ids=["older shards", "no index", "its own"],
)
def test_a_single_file_counts_more_than_an_index_of_other_files(files, said, here, capsys):
    """As in transformers, and it is said."""
    names = list(hf_models.tensors("mixtral"))
    mapping = {name: files[i % len(files)] for i, name in enumerate(names)} if files else None
    (here / INDEX).write_text(json.dumps({"weight_map": mapping}))
    assert moejax.hf.load(here).config.num_layers == 2
    err = capsys.readouterr().err
    assert (
        f"reading {here / 'model.safetensors'}: {INDEX} beside it is of other files" in err
    ) == (said)


def test_what_a_head_does_not_name_is_missing_and_its_bytes_are_unknown(here):
    """Both are said: a tensor whose line was lost in the head, at any place of the file."""
    whole = (here / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    fields = json.loads(whole[8 : 8 + length])
    in_order = sorted(hf_models.tensors("mixtral"), key=lambda name: fields[name]["data_offsets"])
    for number in (0, 7, len(in_order) - 1):
        lost = in_order[number]
        left = {name: about for name, about in fields.items() if name != lost}
        (here / "model.safetensors").write_bytes(header(left, whole[8 + length :]))
        begin, end = fields[lost]["data_offsets"]
        after = in_order[number - 1] if number else "its head"
        message = refused(here)
        assert f"{end - begin:,} bytes of model.safetensors after {after}, of no" in message
        assert f"missing: {lost}" in message


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_a_pickle_is_refused_unopened(here, tmp_path):
    trace = tmp_path / "trace"
    (here / "model.safetensors").unlink()
    (here / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trace)))
    message = refused(here)
    assert "pytorch_model.bin is a pickle" in message and "safetensors" in message
    assert not trace.exists()


def test_a_head_beside_tied_embeddings_must_be_the_embedding(tmp_path):
    here = hf_models.write(tmp_path, "qwen3_moe_first_dense_tied")
    tensors = hf_models.tensors("qwen3_moe_first_dense_tied")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, here / "model.safetensors")
    moejax.hf.load(here)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, here / "model.safetensors")
    assert "lm_head.weight is not model.embed_tokens.weight" in refused(here)


@pytest.mark.parametrize("case", ["qwen3_moe_first_dense_tied", "llama_linear_tied"])
def test_tied_weights_may_lie_under_the_name_of_the_head(case, tmp_path):
    here, tensors = hf_models.write(tmp_path, case), hf_models.tensors(case)
    want = moejax.hf.load(here).params["embedding_VD"]
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, here / "model.safetensors")
    np.testing.assert_array_equal(moejax.hf.load(here).params["embedding_VD"], want)


def test_a_selection_bias_that_released_files_have_not_is_0(tmp_path):
    """A.X-K1's; they have norms of dense layers' output instead, which nothing uses."""
    here, tensors = hf_models.write(tmp_path / "axk1", "axk1"), hf_models.tensors("axk1")
    kept = {name: x for name, x in tensors.items() if not hf_models.is_selection_bias(name)}
    kept["model.layers.0.post_mlp_layernorm.weight"] = np.ones(32, np.float32)
    save_file(kept, here / "model.safetensors")
    np.testing.assert_array_equal(moejax.hf.load(here).bias_LE, np.zeros((2, 8)))
    some = kept | {
        n: x for n, x in tensors.items() if n.endswith("2.mlp.gate.e_score_correction_bias")
    }
    save_file(some, here / "model.safetensors")
    assert "missing: model.layers.1.mlp.gate.e_score_correction_bias" in refused(here)
    there, tensors = (
        hf_models.write(tmp_path / "v3", "deepseek_v3"),
        hf_models.tensors("deepseek_v3"),
    )
    kept = {name: x for name, x in tensors.items() if not hf_models.is_selection_bias(name)}
    save_file(kept, there / "model.safetensors")
    assert "missing: model.layers.1.mlp.gate.e_score_correction_bias" in refused(there)


def test_there_must_be_a_directory_and_a_known_type(tmp_path):
    assert "there is no directory" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "neither model.safetensors nor" in refused(tmp_path / "empty")
    with pytest.raises(UserError, match="dtype 'float64'"):
        moejax.hf.load(tmp_path, "float64")


def test_what_no_family_can_hold_is_named_for_each():
    config = read_config(hf_models.CASES["mixtral"])
    assert write_config(config)["model_type"] == "mixtral"
    odd = ModelConfig(
        vocab_size=64, moe=MoEConfig(router="expert_choice", num_experts=4, hidden_size=8)
    )
    with pytest.raises(UserError) as caught:
        write_config(odd)
    message = str(caught.value)
    assert "mixtral: " in message and "--model.moe.router expert_choice" in message
    assert "--model.qk-norm True" in message
    with pytest.raises(UserError, match="--model.qk-norm True"):
        write_config(ModelConfig(vocab_size=64), family="mixtral")
    with pytest.raises(UserError, match="--family gpt5: there are mixtral"):
        write_config(config, family="gpt5")


def test_nothing_is_written_over(here, tmp_path):
    model = moejax.hf.load(here)
    with pytest.raises(UserError, match=r"is not empty \(config.json, model.safetensors\)"):
        moejax.hf.save(here, model.config, model.params)
