"""The commands `moejax import`, `export` and `upcycle`, and training from what they write."""

import dataclasses
import json
import shutil
from pathlib import Path

import hf_models
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

import moejax.hf
from moejax.commands.export import ExportSettings, export_model
from moejax.commands.import_ import ImportSettings, import_model
from moejax.commands.merge import MergeSettings, merge_adapters
from moejax.commands.upcycle import UpcycleSettings, upcycle_model
from moejax.config import (
    Config,
    ConfigError,
    DataConfig,
    MeshConfig,
    RunConfig,
    changed,
    load_config_file,
)
from moejax.config.errors import RunError, UserError
from moejax.data.byte_tokenizer import ByteTokenizer, make_byte_tokenizer_files
from moejax.data.tokenizer import load_tokenizer
from moejax.hf.reading import Pretrained
from moejax.inference.opening import open_model
from moejax.runs.stored_arrays import list_arrays
from moejax.runtime import device_mesh
from moejax.train.training import train


def with_tokenizer(directory: Path) -> Path:
    """The directory, with the tokenizer of bytes."""
    for name, content in make_byte_tokenizer_files().items():
        (directory / name).write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory):
    """A DeepSeek-V3 of 300 tokens: the widest of what must survive."""
    place = tmp_path_factory.mktemp("model")
    hf_models.write(place, "deepseek_v3", vocab_size=300)
    tensors = hf_models.tensors("deepseek_v3")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = hf_models.values(name, [300, 32])
    hf_models.save_file(tensors, place / "model.safetensors")
    return with_tokenizer(place)


@pytest.fixture(scope="module")
def there(bytes_model, tmp_path_factory):
    """The same, imported."""
    target = tmp_path_factory.mktemp("imported") / "new"
    import_model(ImportSettings(source=bytes_model, target=target))
    return target


def opened(path: Path, layout: MeshConfig = MeshConfig()):  # noqa: B008 (frozen)
    """The model in a directory."""
    return open_model(path, mesh=device_mesh.make_mesh(layout), layout=layout)


def test_import_and_export_by_command_give_every_byte_back(bytes_model, there, tmp_path, capsys):
    export_model(ExportSettings(source=there, target=tmp_path / "out"))
    assert "as deepseek_v3" in capsys.readouterr().out
    names = sorted(path.name for path in bytes_model.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in names:
        one, other = (directory / name for directory in (bytes_model, tmp_path / "out"))
        if name == "config.json":
            fields = json.loads(other.read_text())
            assert fields.pop("num_nextn_predict_layers") == 0
            assert fields.pop("dtype") == "float32"
            assert fields == json.loads(one.read_text())
        elif name == "model.safetensors":
            one, other = load_file(one), load_file(other)
            assert {n: x.tobytes() for n, x in one.items()} == {
                n: x.tobytes() for n, x in other.items()
            }
        else:
            assert one.read_bytes() == other.read_bytes()


def test_all_three_kinds_of_directory_open_as_the_same_model(bytes_model, there):
    one, other = opened(bytes_model), opened(there)
    assert one.config == other.config
    assert (one.context, one.ends, one.beginning) == (64, frozenset([2]), (256,))
    assert (other.context, other.ends, other.beginning) == (64, frozenset([2]), (256,))
    np.testing.assert_array_equal(one.begin("é"), [256, 0xC3, 0xA9])
    np.testing.assert_array_equal(one.bias_LE, other.bias_LE)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_imported_on_one_mesh_is_opened_on_another(there):
    layout = MeshConfig(data=2, expert=4, fsdp=True)
    model = opened(there, layout)
    bank = flatten_dict(model.params)[("layers_1", "block_0", "moe", "w_up_EDF")]
    assert {shard.data.shape[1] for shard in bank.addressable_shards} == {2}
    with pytest.raises(ConfigError, match="--model.num-heads 4 is not divisible by --mesh.model 8"):
        opened(there, MeshConfig(model=8))


def fine_tuning(there: Path, directory: Path, **run) -> Config:
    """The settings that `moejax import` wrote, with little of everything."""
    config = load_config_file(there / "config.json")
    assert config.run.init_from == str(there)
    data = DataConfig(
        tokenizer=config.data.tokenizer,
        sequence_length=32,
        batch_size=8,
        eval_batch_size=8,
        shuffle_window=64,
    )
    run = {"steps": 2, "eval_batches": 1, "sample_tokens": 4} | run
    run = RunConfig(directory=str(directory), init_from=str(there), log_every=1, **run)
    model = dataclasses.replace(config.model, unroll=False)  # compiles in half the time
    return dataclasses.replace(config, model=model, data=data, run=run)


@pytest.mark.slow
def test_training_begins_from_an_imported_model_and_its_run_is_exported(
    bytes_model, there, tmp_path, capsys
):
    """With a learning rate of almost 0, what comes out is what went in."""
    config = fine_tuning(there, tmp_path / "run")
    optim = dataclasses.replace(config.optim, learning_rate=1e-12)
    train(dataclasses.replace(config, optim=optim), name="run", command="test")
    assert f"reading  {there}" in capsys.readouterr().out
    tuned = opened(tmp_path / "run")
    np.testing.assert_array_equal(tuned.bias_LE, opened(there).bias_LE)
    export_model(ExportSettings(source=tmp_path / "run", target=tmp_path / "out"))
    one, other = (
        load_file(directory / "model.safetensors") for directory in (bytes_model, tmp_path / "out")
    )
    assert sorted(one) == sorted(other)
    for name in one:
        np.testing.assert_allclose(other[name], one[name], atol=1e-9)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (fields["eos_token_id"], fields["max_position_embeddings"]) == (2, 64)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_training_refuses_to_begin_from_another_model(there, tmp_path):
    config = fine_tuning(there, tmp_path / "run")
    model = dataclasses.replace(config.model, rope_theta=5.0)
    with pytest.raises(ConfigError, match="It has --model.rope-theta 10000.0"):
        train(dataclasses.replace(config, model=model), name="run", command="test")
    run = dataclasses.replace(config.run, init_from=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="there is no directory"):
        train(dataclasses.replace(config, run=run), name="run", command="test")


def test_upcycling_by_command(tmp_path, capsys):
    dense = hf_models.write(tmp_path / "dense", "qwen3")
    upcycle_model(UpcycleSettings(source=dense, target=tmp_path / "new", num_experts=4))
    assert "qwen3, upcycled" in capsys.readouterr().out
    model = opened(tmp_path / "new")
    assert model.config.moe.num_experts == 4 and model.tokenizer is None
    params = jax.device_put(jax.device_get(model.params), jax.devices()[0])
    logits_BNV = Pretrained(model.config, params, None, {}, dense).apply(params, hf_models.prompt())
    np.testing.assert_allclose(logits_BNV, hf_models.golden("qwen3")["logits_BNV"], atol=1e-4)
    export_model(ExportSettings(source=tmp_path / "new", target=tmp_path / "out"))
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (fields["model_type"], fields["max_position_embeddings"]) == ("qwen3_moe", 64)
    assert moejax.hf.load(tmp_path / "out").config.moe.num_experts == 4


def test_the_tokenizer_of_bytes_is_written_so_that_others_read_the_same(tmp_path):
    tokenizer = load_tokenizer(str(with_tokenizer(tmp_path)))
    for text in ("def f():\n\treturn 'é'  # \u20ac\x00", "", "  <|endoftext|> "):
        ids, counts = tokenizer.encode(text.encode())
        want, _ = ByteTokenizer().encode(text.encode())
        np.testing.assert_array_equal(ids, want)
        assert counts.sum() == len(text.encode())
        assert tokenizer.decode(ids) == text
    assert (tokenizer.edges.end, tokenizer.vocab_size) == (256, 257)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (lambda p: ImportSettings(source=p / "nowhere", target=p / "new"), "no directory"),
        (lambda p: ExportSettings(source=p / "nowhere", target=p / "new"), "neither a run"),
        (lambda p: UpcycleSettings(source=p, target=p / "new", noise=-1.0), "--noise must be"),
        (lambda p: UpcycleSettings(source=p, target=p / "new", seed=-1), "--seed must lie"),
        (lambda p: ImportSettings(source=p, target=p), "is not empty"),
    ],
)
def test_wrong_commands_say_what_to_do(command, message, tmp_path):
    (tmp_path / "something").write_text("")
    settings = command(tmp_path)
    functions = {"Import": import_model, "Export": export_model, "Upcycle": upcycle_model}
    with pytest.raises(UserError, match=message):
        functions[type(settings).__name__.removesuffix("Settings")](settings)


@pytest.mark.slow
def test_adapters_are_trained_opened_and_merged(there, tmp_path, capsys):
    """A run with adapters beside a quantised base, opened, merged, and exported as adapters, is one
    model; and it knows its base.
    """
    base = tmp_path / "base"
    shutil.copytree(there, base)
    config = fine_tuning(there, tmp_path / "run")
    lora = {"rank": 2, "on": "attention,experts", "base": "int8"}
    config = changed(config, {"run.lora": lora, "run.init_from": str(base)})
    train(config, name="run", command="test")
    train(config, name="run", command="test")  # restores it, and finds nothing to do
    names = {path[-1] for path in list_arrays(tmp_path / "run/checkpoints/2/state")}
    assert {"lora_a", "lora_b"} <= names and "embedding_VD" not in names
    tuned = opened(tmp_path / "run")
    merge_adapters(MergeSettings(source=tmp_path / "run", target=tmp_path / "merged"))
    merged = opened(tmp_path / "merged")
    assert tuned.context and "merged: " in capsys.readouterr().out
    for a, b in zip(jax.tree.leaves(tuned.params), jax.tree.leaves(merged.params), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        tuned.params["embedding_VD"], opened(there).params["embedding_VD"]
    )
    settings = ExportSettings(source=tmp_path / "run", target=tmp_path / "peft", adapters=True)
    export_model(settings)
    found, plain = opened(tmp_path / "peft"), opened(there)
    np.testing.assert_array_equal(tuned.params["embedding_VD"], plain.params["embedding_VD"])
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain.params))
    moved = 0.0
    for a, b, c in zip(
        *map(jax.tree.leaves, (found.params, tuned.params, plain.params)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=size / 100)  # the base was quantised
        moved = max(moved, np.abs(a - c).max())
    assert moved > 0
    with pytest.raises(ConfigError, match="moejax merge .*peft .* --base MODEL"):
        import_model(ImportSettings(source=tmp_path / "peft", target=tmp_path / "no"))
    with pytest.raises(ConfigError, match="has no adapters"):
        export_model(dataclasses.replace(settings, source=there, target=tmp_path / "no"))
    shutil.rmtree(base)
    with pytest.raises(RunError, match="there is no such directory"):
        opened(tmp_path / "run")
    shutil.copytree(tmp_path / "merged", base)
    for use in (
        lambda: opened(tmp_path / "run"),
        lambda: train(config, name="run", command="test"),
    ):
        with pytest.raises(RunError, match="now there is another"):
            use()
