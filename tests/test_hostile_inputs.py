"""Whatever a file or a flag says: one message, within 10 seconds and 500 MB.

A case is a row of a table: what is wrong, the command, and parts of the message. Commands run in
this process. Their time is that of the processor, as the machine may be busy.
"""

import json
import os
import re
import time
from pathlib import Path

import hf_models
import ml_dtypes
import numpy as np
import pytest
from hostile import MEGABYTES, SECONDS, read_peak

from moejax.commands import main
from moejax.config import changed
from moejax.config.errors import ConfigError, UserError
from moejax.data.tokenizer import load_tokenizer
from moejax.hf.arrays import is_finite
from moejax.lab.plan.devices import paper_mesh
from moejax.lab.plan.memory import plan_memory
from moejax.models import training_room
from moejax.models.training_room import check_training_room
from moejax.moe.parallel.placement import place
from moejax.moe.parallel.placement_file import read_placement
from moejax.runtime import room


@pytest.fixture
def here(tmp_path):
    """A whole checkpoint of a Mixtral of two layers and four experts."""
    return hf_models.write(tmp_path / "model", "mixtral")


READERS = {
    "import": lambda here: ["import", here, here.parent / "new"],
    "upcycle": lambda here: ["upcycle", here, here.parent / "new"],
    "plan": lambda here: ["plan", "--hf", here / "config.json"],
    "generate": lambda here: ["generate", here, "--prompt", "a"],
    "eval": lambda here: ["eval", here, "--data", "stdlib"],
    "specialisation": lambda here: ["specialisation", here, "--data", "stdlib"],
}
"""Commands that read a released model's config.json."""

HUGE = {"hidden_size": 2**31 - 4, "num_hidden_layers": 10**5, "head_dim": 2**20}
FIELDS = [
    ({"num_hidden_layers": 10**5 + 1}, "num_hidden_layers is 100001"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ({"num_hidden_layers": 1e30}, "num_hidden_layers is 1e+30"),
    ({"num_hidden_layers": 10**30}, "at most 100,000"),
    ({"num_hidden_layers": 10**100}, "a number has 101 digits"),
    ({"num_hidden_layers": [1] * 100_000}, "num_hidden_layers is [1, 1,"),
    ({"num_local_experts": 10**9}, "--model.moe.num-experts must be at most 1,048,576"),
    ({"num_experts_per_tok": 10**9}, "--model.moe.top-k 1000000000"),
    ({"hidden_size": 10**12}, "--model.width must be at most 2,147,483,647"),
    (HUGE, "a model of these sizes has more than"),
    ({"head_dim": 2**30}, "a head must be at most 1,048,576 wide"),
    ({"num_attention_heads": 2**30}, "--model.head-size must be greater than 0"),
    ({"num_key_value_heads": 10**9}, "--model.num-kv-heads 1000000000"),
    ({"sliding_window": 10**20}, "--model.attention.window must be at most"),
    ({"max_position_embeddings": 10**30}, "max_position_embeddings is 10000"),
    ({"max_position_embeddings": "many"}, "max_position_embeddings is 'many'"),
    ({"num_nextn_predict_layers": "many"}, "num_nextn_predict_layers is 'many'"),
    ({"rms_norm_eps": float("inf")}, "--model.norm-epsilon must be greater than 0, not inf"),
    ({"rope_theta": float("nan")}, "--model.rope-theta must be greater than 0, not nan"),
    ({"rope_theta": 10**39, "rope_scaling": "x" * 10**6}, "rope_parameters 'xxx"),
    ({"model_type": "x" * 10**6}, "model_type 'xxx"),
]


@pytest.mark.parametrize(("fields", "part"), FIELDS)
@pytest.mark.parametrize("reader", ["import", "plan"])
def test_monstrous_numbers_of_a_config_are_named(reader, fields, part, here, refused):
    config = json.loads((here / "config.json").read_text())
    (here / "config.json").write_text(json.dumps(config | fields))
    assert part in refused(*READERS[reader](here))


@pytest.mark.parametrize(
    ("case", "fields", "part"),
    [
        ("qwen3_moe", {"mlp_only_layers": [5], "num_hidden_layers": 10**5}, "mlp_only_layers"),
        ("gpt_oss", {"layer_types": ["full_attention"] * 10**5}, "layer_types"),
        ("qwen2_moe", {"moe_intermediate_size": 0}, "out of its range"),
        ("granitemoe", {"logits_scaling": 0}, "out of its range"),
        ("deepseek_v3", {"n_routed_experts": 10**6}, "too many to sort"),
    ],
)
def test_monstrous_numbers_of_other_families_are_named(case, fields, part, tmp_path, refused):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(hf_models.CASES[case] | fields))
    assert part in refused("plan", "--hf", file)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"num_hidden_layers": 10**5}, "config.json says 100,000 layers, but the files have"),
        ({"num_local_experts": 10**5}, "config.json says 100,000 experts, but the files have"),
        ({"hidden_size": 2**22}, "tensors and config.json do not agree"),
    ],
)
def test_tensors_that_are_not_there_are_not_listed(fields, part, here, refused):
    config = json.loads((here / "config.json").read_text())
    (here / "config.json").write_text(json.dumps(config | fields))
    assert part in refused("import", here, here.parent / "new")


@pytest.mark.slow
def test_half_a_million_unknown_tensors_are_not_read(here, refused):
    count = 500_000
    head = {
        f"model.layers.{i}.unknown": {
            "dtype": "F32",
            "shape": [1],
            "data_offsets": [4 * i, 4 * i + 4],
        }
        for i in range(count)
    }
    text = json.dumps(head).encode()
    with open(here / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 4 * count)
    del head
    assert "its head has 4" in refused("import", here, here.parent / "new")


ROUTER = "model.layers.1.block_sparse_moe.gate.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.3.w2.weight"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("spoilt", "part"),
    [
        ({ROUTER: np.nan}, f"a tensor has weights that are NaN or infinite: {ROUTER}."),
        ({EXPERT: -np.inf}, f"a tensor has weights that are NaN or infinite: {EXPERT}."),
        ({"lm_head.weight": np.inf, EXPERT: np.nan}, "2 tensors have"),
    ],
)
def test_weights_that_are_not_finite_are_named(spoilt, part, dtype, here, refused, capsys):
    tensors = hf_models.tensors("mixtral")
    for name, value in spoilt.items():
        tensors[name][-1, -2] = value
    hf_models.save_file(tensors, here / "model.safetensors")
    words = ["import", here, here.parent / "new", "--dtype", dtype]
    assert part in refused(*words)
    main.run([*map(str, words), "--allow-not-finite", "True"])
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_number_that_is_not_finite_is_found_anywhere(dtype):
    array = np.full((3, 70_000), ml_dtypes.finfo(dtype).max, dtype).T
    assert is_finite(array) and is_finite(array[:0])
    for at in ((0, 0), (69_999, 2), (33_000, 1)):
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            changed = array.copy("K")
            changed[at] = value
            assert not is_finite(changed)


def make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def link_to_zeros(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def nest(file: Path) -> None:
    file.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def nest_a_little(file: Path) -> None:
    file.write_text('{"a": ' + "[" * 70 + "]" * 70 + "}")


def make_huge(file: Path) -> None:
    with open(file, "w") as opened:
        opened.truncate(10**12)


FILES = [
    (make_pipe, "not a regular file"),
    (link_to_zeros, "not a regular file"),
    (nest, "nested more than 64 deep"),
    (nest_a_little, "nested more than 64 deep"),
    (make_huge, "has more than the 4,194,304 bytes"),
]


@pytest.mark.parametrize(("spoil", "part"), FILES)
@pytest.mark.parametrize("reader", READERS)
def test_files_that_are_no_config_are_refused(reader, spoil, part, here, refused):
    spoil(here / "config.json")
    message = refused(*READERS[reader](here))
    assert part in message or f"{here} holds no model" in message


@pytest.mark.parametrize(("spoil", "part"), FILES)
def test_files_that_are_no_run_settings_are_refused(spoil, part, tmp_path, refused):
    file = tmp_path / "config.json"
    file.write_text("{}")
    spoil(file)
    message = refused("train", "--config", file, "--run.directory", tmp_path / "run")
    assert part in message or "no config file" in message


@pytest.mark.parametrize(("spoil", "part"), FILES[:3])
def test_files_that_are_no_plan_of_experts_are_refused(spoil, part, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text("{}")
    spoil(file)
    with pytest.raises(UserError, match=part):
        read_placement(file)


@pytest.mark.slow
def test_a_pipe_of_the_shell_is_read(here, capsys):
    reading, writing = os.pipe()
    os.write(writing, (here / "config.json").read_bytes())
    os.close(writing)
    main.run(["plan", "--hf", f"/dev/fd/{reading}"])
    os.close(reading)
    assert "Parameters" in capsys.readouterr().out


def replace(before: dict, after: str) -> dict:
    return {"type": "Replace", "pattern": before, "content": after}


def sequence(*parts: dict) -> dict:
    return {"type": "Sequence", "normalizers": parts}


WORDS = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
TENFOLD = replace({"String": "a"}, "a" * 10)
BEGUN = {"type": "TemplateProcessing", "special_tokens": {}, "pair": []}
BEGUN["single"] = [
    {"SpecialToken": {"id": "X", "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}},
]
BYTES = {"type": "BPE", "vocab": {"a": 0, "b": 5}, "merges": ["a b"], "unk_token": None}
GROWING = "has normalisers that make a text of"
TOKENIZERS = [
    ({"model": BYTES}, "range end index"),  # panics of the library
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "precompiled"),
    ({"post_processor": BEGUN}, "has a post-processor that cannot be"),
    ({"model": WORDS | {"vocab": {"a": 2**32 - 1, "[UNK]": 1}}}, "has ids up to 4,294,967,296"),
    ({"model": {"type": "WordLevel", "vocab": {"b": 1}, "unk_token": "?"}}, "fails on the text"),
    ({"normalizer": sequence(*[TENFOLD] * 9)}, GROWING),
    ({"normalizer": sequence(TENFOLD, sequence(*[TENFOLD] * 8))}, GROWING),
    ({"normalizer": replace({"Regex": "a"}, "a" * 10**6)}, GROWING),
    ({"normalizer": sequence(*[replace({"String": ""}, "a" * 99)] * 5)}, GROWING),
    ({"decoder": replace({"String": "a"}, "a" * 10**6)}, "has decoders that make 1,000,000"),
    ({"model": "x" * 10**6}, "is not a Hugging Face tokenizer.json"),
]


@pytest.mark.parametrize(("fields", "part"), TOKENIZERS)
def test_hostile_tokenizers_are_refused(fields, part, tmp_path, capfd):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({"version": "1.0", "model": WORDS, "added_tokens": []} | fields))
    Path("/proc/self/clear_refs").write_text("5")
    before, start = read_peak(), time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(file)).encode(b"aba a")
    assert part in str(caught.value) and str(file) in str(caught.value)
    assert len(str(caught.value)) < 1000 and capfd.readouterr().err == ""
    assert time.process_time() - start < SECONDS and read_peak() - before < MEGABYTES


@pytest.mark.parametrize(("spoil", "part"), [*FILES[:2], (make_huge, "more than the 134,217,728")])
def test_files_that_are_no_tokenizer_are_refused(spoil, part, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    spoil(file)
    with pytest.raises(ConfigError, match=f"{part}|there is no file"):
        load_tokenizer(str(file))


def test_normalisers_that_might_grow_a_text_but_do_not_are_taken(tmp_path):
    """Each of twelve letters becomes two; no text grows 4096 times."""
    letters = [replace({"String": x}, f"{x}e") for x in "abcdfghijklm"]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({"model": WORDS, "normalizer": sequence(*letters)}))
    tokenizer = load_tokenizer(str(file))
    assert tokenizer.encode(b"bad face" * 1000)[0].size == 1
    assert tokenizer.decode([0]) == "a"


def say_much(file: Path) -> None:
    """A shape of a million million numbers."""
    np.save(file, np.zeros(3))
    file.write_bytes(file.read_bytes().replace(b"(3,)", b"(10000000000,)"))


def pack_zeros(file: Path) -> None:
    """A small file that unpacks to 80 MB."""
    with open(file, "wb") as opened:
        np.savez_compressed(opened, asked_LE=np.zeros((1, 2 * 10**7), np.int32))


@pytest.mark.parametrize(
    ("spoil", "part"),
    [*FILES[:2], (make_huge, "bytes"), (say_much, "cannot read"), (pack_zeros, "67,108,864 bytes")],
)
def test_files_that_are_no_load_are_refused(spoil, part, tmp_path, refused):
    file = tmp_path / "load.npy"
    file.write_bytes(b"")
    spoil(file)
    words = ["plan", "placement", "--load", file, "--devices", 2, "--replicas", 4]
    assert part in refused(*words)


@pytest.mark.parametrize(
    ("experts", "devices", "places"), [(512, 2**13, 2**16), (4096, 8, 2**15), (512, 1024, 2**15)]
)
def test_large_placements_are_quick(experts, devices, places):
    load_LE = np.random.default_rng(0).gamma(1, 1, (1, experts))
    start = time.process_time()
    plan = place(load_LE, devices=devices, places=places)
    assert time.process_time() - start < SECONDS
    assert plan.expert_LP.shape == (1, places) and plan.replicas_LE.all()


def train(*flags):
    return lambda here: ["train", "--run.directory", here.parent / "run", "--config", TINY, *flags]


def bench(*flags):
    return lambda here: ["bench", "layer", *flags]


def upcycle(*flags):
    return lambda here: ["upcycle", hf_models.write(here.parent / "llama", "llama"), "new", *flags]


def placement(*flags):
    def make(here):
        np.save(here / "load.npy", np.random.default_rng(0).gamma(1, 1, (2, 64)))
        return ["plan", "placement", "--load", here / "load.npy", *flags]

    return make


TINY = Path(__file__).parent.parent / "configs/quickstart.py"
FLAGS = [
    (train("--model.moe.num-experts", 10**8), "--model.moe.num-experts must be at most 1,048,576"),
    (train("--moe.num-experts", 10**6), "takes at least"),
    (train("--model.width", 10**6), "--model.width"),
    (train("--model.vocab-size", 2**31 - 1), "the largest part is"),
    (train("--data.sequence-length", 10**8), "make --data.sequence-length smaller"),
    (train("--data.sequence-length", 10**9, "--moe.group-size", 10**9), "Not one sequence"),
    (train("--data.eval-batch-size", 2**30), "--data.eval-batch-size"),
    (train("--data.batch-size", 2**30), "would fit, or a shorter --data.sequence-length"),
    (train("--model.num-layers", 10**9), "--model.num-layers must be at most 100,000"),
    (train("--model.num-layers", 10**5), "--run.force True tries it anyway"),
    (train("--mesh.data", 10**12), "needs 1000000000000 devices"),
    (bench("--tokens", 10**10), "--tokens must be at most 2,147,483,647, not 10000000000"),
    (bench("--tokens", 10**9), "the layer, with its input, takes at least"),
    (bench("--experts", 10**6), "the layer, with its input, takes at least"),
    (bench("--experts", 10**9), "--experts must be at most 1,048,576"),
    (bench("--hidden", 10**9), "the layer, with its input, takes at least"),
    (placement("--devices", 8, "--replicas", 10**8), "at most 512 are planned"),
    (placement("--devices", 10**6, "--replicas", 10**6), "at most 131,072 are planned"),
    (placement("--devices", 10**12, "--replicas", 10**12), "at most 131,072 are planned"),
    (upcycle("--num-experts", 10**9), "--num-experts must be at most 1,048,576"),
    (upcycle("--num-experts", 10**6), "the new model, beside the old one, takes at least"),
]


@pytest.mark.parametrize(("words", "part"), FLAGS)
def test_monstrous_flags_are_named(words, part, here, refused, monkeypatch):
    monkeypatch.setattr(room, "read_host_memory", lambda: 24e9)
    assert part in refused(*words(here))


def test_what_is_said_to_fit_fits(tiny, monkeypatch):
    """The batch and the number of experts that a message names are accepted."""
    mesh = {"data": 1, "expert": 1, "model": 1}
    monkeypatch.setattr(room, "find_room", lambda: (1e6, "this machine has 1MB"))
    monkeypatch.setattr(training_room, "find_room", room.find_room)
    for path, value in (("data.batch_size", 4096), ("model.moe.num_experts", 4096)):
        config = changed(tiny, {path: value})
        with pytest.raises(UserError) as caught:
            check_training_room(config, 257, mesh)
        fitting = int(re.findall(r"([\d,]+) would fit", str(caught.value))[0].replace(",", ""))
        assert fitting > 8
        check_training_room(changed(tiny, {path: fitting}), 257, mesh)
        with pytest.raises(UserError):
            check_training_room(changed(tiny, {path: 2 * fitting}), 257, mesh)
        check_training_room(changed(config, {"run.force": True}), 257, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_least_memory_is_less_than_that_of_the_plan(optimizer, tiny):
    """So nothing that fits is refused."""
    for mesh in ({"data": 1}, {"data": 2, "expert": 2, "fsdp": True}, {"data": 2, "model": 2}):
        config = changed(tiny, {"optim.optimizer": optimizer, "mesh": mesh})
        grid = paper_mesh(config.mesh, None, "v5p")
        least = training_room.find_least(config, 257, grid.shape)
        rows = max(least.rows.values())
        planned = plan_memory(config, 257, grid)
        assert least.state <= sum(planned.state.values())
        assert least.state + rows * least.row <= planned.peak
