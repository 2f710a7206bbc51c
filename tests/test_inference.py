"""The commands that run a trained model: `moejax generate` and `moejax eval`."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_guides import run_page

from moejax.commands.generate import GenerateSettings, collect_prompts, place_experts
from moejax.commands.main import run as run_words
from moejax.config import (
    BalanceConfig,
    Config,
    ConfigError,
    DataConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    RunConfig,
    read_config_json,
)
from moejax.config.errors import RunError, UserError
from moejax.data.chat.find_template import NAMED
from moejax.data.tokenizer import ByteTokenizer
from moejax.hf.peft import list_shapes, write_adapter
from moejax.inference.inference_config import inference_config
from moejax.inference.opening import open_model
from moejax.inference.original_config import make_original
from moejax.models.adapters import adapter_shapes
from moejax.models.decoder import DecoderLM
from moejax.routing.routers import ROUTERS
from moejax.runtime import device_mesh
from moejax.train.training import train

ROOT = Path(__file__).parents[1]
N = 16
BYTES = ByteTokenizer()
HELD_OUT = (ROOT / "train.py").read_bytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of eight steps, with a selection bias and without a capacity in evaluation, whose last
    checkpoints are those of steps 4 and 8.
    """
    folder = tmp_path_factory.mktemp("inference")
    (folder / "text").write_bytes((ROOT / "moejax/moe/balance.py").read_bytes())
    (folder / "held_out").write_bytes(HELD_OUT)
    moe = MoEConfig(
        num_experts=4,
        top_k=2,
        hidden_size=8,
        group_size=8,
        router="deepseek_v3",
        capacity_factor=0.8,
        eval_capacity_factor=None,
        balance=BalanceConfig(bias_update="sign", bias_rate=0.05),
    )
    config = Config(
        model=ModelConfig(num_layers=2, width=16, num_heads=2, unroll=False, moe=moe),
        data=DataConfig(
            source="files",
            files=str(folder / "text"),
            validation_files=str(folder / "held_out"),
            sequence_length=N,
            batch_size=8,
            eval_batch_size=8,
            shuffle_window=64,
        ),
        run=RunConfig(
            directory=str(folder / "run"),
            steps=8,
            log_every=4,
            eval_every=4,
            checkpoint_every=4,
            sample_tokens=20,  # more than a sequence
            sample_temperature=0.0,
        ),
    )
    train(config, name="tiny", command="test")
    return folder / "run"


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """The same run, to be changed."""
    return shutil.copytree(run, tmp_path / "run")


def moejax(*words: str | Path) -> None:
    """Run a subcommand in this process; its errors are raised."""
    run_words([str(word) for word in words])


@pytest.fixture
def said(capsys):
    """What a subcommand prints: on the standard output, and on standard error."""

    def run(*words: str | Path) -> SimpleNamespace:
        capsys.readouterr()
        moejax(*words)
        out, errors = capsys.readouterr()
        return SimpleNamespace(out=out, errors=errors)

    return run


@pytest.fixture
def figures(said):
    return lambda *words: json.loads(said("eval", *words, "--json").out)


def validation(run: Path) -> dict[int, dict]:
    """The validation metrics that the run has written, by step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == "validation"}


@pytest.mark.slow
@pytest.mark.parametrize("layout", [[], ["--mesh.data", "2", "--mesh.expert", "4"]])
def test_eval_gives_what_the_run_has_measured(run, figures, layout):
    got, want = figures(run, "--batch-size", "8", *layout), validation(run)[8]
    for name in ("loss", "perplexity", "bits_per_byte", "max_violation", "router_entropy"):
        assert got[name] == pytest.approx(want[name], rel=1e-5), name
    assert got["text_bytes"] == want["text_bytes"] == len(HELD_OUT)
    assert got["dead_experts"] == want["dead_experts"] and got["dropped_fraction"] == 0
    assert "step 8" in got["model"] and "held out" in got["data"]


@pytest.mark.slow
def test_eval_is_the_cross_entropy_of_every_byte(run, figures):
    """By hand, piece for piece, of the parameters that ``open_model`` gives."""
    mesh = device_mesh.make_mesh(MeshConfig(), jax.devices()[:1])
    model = open_model(run, mesh=mesh, layout=MeshConfig())
    assert model.context == N and model.ends == {256} and model.bias_LE.shape == (2, 4)
    assert model.begin("ab").tolist() == [256, 97, 98]
    tokens = [256, *HELD_OUT, 256]
    decoder = DecoderLM(inference_config(model.config), model.vocab_size)
    run_one = jax.jit(lambda b: decoder.apply({"params": model.params}, b, False, model.bias_LE)[0])
    bits, count = 0.0, len(tokens) - 1
    for start in range(0, count, N):
        piece = tokens[start : start + N + 1]
        inputs = np.zeros((1, N), np.int32)
        inputs[0, : len(piece) - 1] = piece[:-1]
        real = (np.arange(N) < len(piece) - 1).astype(np.int32)[None]
        batch = {"inputs": inputs, "segments": real, "positions": real * np.arange(N)}
        log_p = np.asarray(jax.nn.log_softmax(run_one(batch)[0]), np.float64)
        bits -= sum(log_p[n, token] for n, token in enumerate(piece[1:])) / np.log(2)
    got = figures(run)
    assert got["tokens"] == count
    assert got["bits_per_byte"] == pytest.approx(bits / len(HELD_OUT), rel=1e-5)
    assert got["perplexity"] == pytest.approx(2 ** (bits / count), rel=1e-5)


def test_bfloat16_parameters_are_those_that_are_cast_at_each_use(run):
    """Whatever a model casts is there in that type already, and nothing else: the same logits."""
    mesh = device_mesh.make_mesh(MeshConfig(), jax.devices()[:1])
    full, half = (
        open_model(run, mesh=mesh, layout=MeshConfig(), dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    types = {path[-1].key: x.dtype.name for path, x in jax.tree.leaves_with_path(half.params)}
    assert {name for name, kind in types.items() if kind == "float32"} == {"scale_D", "w_router_DE"}
    decoder = DecoderLM(inference_config(half.config), half.vocab_size)
    zeros = np.zeros((1, N), np.int32)
    batch = {"inputs": zeros + np.arange(N), "segments": zeros + 1, "positions": zeros}
    apply = jax.jit(lambda p: decoder.apply({"params": p}, batch, False, half.bias_LE)[0])
    np.testing.assert_array_equal(apply(full.params), apply(half.params))


def test_an_earlier_checkpoint_can_be_chosen(run, figures):
    assert figures(run, "--step", "4")["loss"] == pytest.approx(validation(run)[4]["loss"])
    with pytest.raises(RunError, match="no checkpoint of --step 5 .*; there are: 4, 8"):
        moejax("eval", run, "--step", "5")


@pytest.mark.slow
def test_any_text_can_be_evaluated_on_in_any_pieces(run, figures, said, tmp_path):
    (tmp_path / "a.txt").write_bytes(HELD_OUT)
    glob, known = str(tmp_path / "*.txt"), validation(run)[8]["loss"]
    got = figures(run, "--data", glob, "--dtype", "bfloat16")
    assert got["data"] == f"{glob}: 1 file ({len(HELD_OUT)} B)"
    assert got["loss"] == pytest.approx(known, rel=0.01) and got["loss"] != known
    pieces = ["--sequence-length", "40", "--batches", "1", "--batch-size", "8"]
    longer = figures(run, "--data", glob, *pieces)
    assert longer["sequence_length"] == 40 and longer["batches"] == 1
    assert 200 < longer["tokens"] <= 320 and longer["loss"] != pytest.approx(known)
    text = said("eval", run, "--data", glob, *pieces).out
    assert f"bits/byte  {longer['bits_per_byte']:.4f} ({longer['text_bytes']} bytes)" in text
    assert f"perplexity {longer['perplexity']:.3f} a token" in text
    assert f"dead experts {longer['dead_experts']} of 8" in text


def test_generate_prints_the_prompt_and_the_text(run, said):
    flags = ["--temperature", "0", "--tokens", "20"]
    got = said("generate", run, "--prompt", "def ", *flags)
    assert got.out == (run / "sample.txt").read_text() + "\n"  # made at the end of the training
    assert got.errors.startswith("20 tokens, ") and "tokens/s after" in got.errors
    prompts = ["--prompt", "import", "--prompt", "def "]
    several = said("generate", run, *prompts, *flags).out
    assert several.startswith("--- 1 (20 tokens; --tokens)\nimport")
    assert several.endswith("--- 2 (20 tokens; --tokens)\n" + got.out)


@pytest.mark.slow
def test_a_quantised_run_is_kept_and_opened_like_it(run, figures, said, tmp_path):
    """On eight devices, with the text that was held out; and with a short cache."""
    kept = tmp_path / "kept"
    assert "int8: " in said("quantise", run, kept, "--weights", "int8").out
    measured = validation(run)[8]["bits_per_byte"]
    assert 0 < abs(figures(kept)["bits_per_byte"] / measured - 1) < 0.005
    words = ["--prompt", "def ", "--tokens", 3, "--temperature", 0, "--cache", "int8"]
    assert said("generate", kept, *words).out.startswith("def ")


@pytest.mark.slow
def test_generate_prints_one_object(run, said, tmp_path):
    (tmp_path / "prompts").write_text("two é\n", encoding="utf-8")
    flags = ["--json", "--tokens", "6", "--top-k", "20", "--top-p", "0.9", "--seed", "5"]
    prompts = ["--prompt", "one", "--prompt-file", tmp_path / "prompts"]
    got = json.loads(said("generate", run, *prompts, *flags).out)
    assert [text["prompt"] for text in got["texts"]] == ["one", "two é"]
    for text in got["texts"]:
        assert text["ended"] == "length" and len(text["ids"]) == 6
        assert text["text"] == BYTES.decode(text["ids"])
    assert got["tokens_per_second"] > 0 and got["first_seconds"] > 0


@pytest.fixture
def placement(said, tmp_path) -> Path:
    """A plan for the run's experts: four of them in eight places on four devices."""
    load = tmp_path / "load.npy"
    np.save(load, np.array([[9, 1, 1, 1], [1, 1, 9, 1]]))
    plan = said("plan", "placement", "--load", load, "--devices", 4, "--replicas", 8, "--json")
    file = tmp_path / "plan.json"
    file.write_text(plan.out)
    return file


@pytest.mark.slow
def test_where_experts_lie_changes_no_text(said, run, placement):
    words = ["generate", run, "--prompt", "def ", "--prompt", "import", "--tokens", 12, "--json"]
    words += ["--temperature", 0.5, "--mesh.data", 2, "--mesh.expert", 4]
    plain = json.loads(said(*words).out)
    placed = json.loads(said(*words, "--placement", placement).out)
    assert [one["ids"] for one in placed["texts"]] == [one["ids"] for one in plain["texts"]]
    assert [one["text"] for one in placed["texts"]] == [one["text"] for one in plain["texts"]]


def test_a_placement_lays_each_bank_out_over_the_devices(run, placement):
    mesh = device_mesh.make_mesh(MeshConfig(expert=4))
    model = open_model(run, mesh=mesh, layout=MeshConfig(expert=4))
    params, place_LER = place_experts(placement, model, mesh)
    bank = params["layers_0"]["block_0"]["moe"]["w_up_EDF"]
    assert bank.shape[-3] == 8 and bank.addressable_shards[0].data.shape[-3] == 2
    assert place_LER.shape[:2] == (2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.pop("expert"), "it has no 'expert'. It should be what `moejax plan"),
        (lambda plan: plan.update(expert=[[0, 1], [2]]), "cannot be read"),
        (lambda plan: plan.update(expert=[[0.5, 1.0]] * 2), "whole numbers"),
        (lambda plan: plan.update(device_load=[[1.0] * 3] * 2), "as many places"),
        (lambda plan: plan["expert"][1].__setitem__(slice(None), [0, 1, 3] * 2 + [0, 1]),
         "gives expert 2 no place in layer 1"),
        (lambda plan: plan.update(device_load=[[1.0] * 2] * 2),
         "for 2 devices that hold experts, but on this mesh there are 4: give --mesh.expert 2"),
        (lambda plan: plan.update(expert=plan["expert"] * 2, device_load=plan["device_load"] * 2),
         "of 4 layers of 4 experts, but the model has 2 routed layers of 4"),
    ],
)  # fmt: skip
def test_a_placement_that_does_not_fit_is_refused(run, placement, change, message):
    plan = json.loads(placement.read_text())
    change(plan)
    placement.write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        moejax(
            *("generate", run, "--prompt", "a", "--mesh.expert", 4, "--placement", placement),
        )
    assert str(refused.value).startswith(f"--placement {placement}")


def test_adapters_of_a_run_are_merged_into_it(run, tmp_path, said):
    """A run knows its tokenizer, its settings have no size of the vocabulary, and its groups are of
    many tokens; what comes out is opened and exported as any model.
    """
    mesh, layout = device_mesh.make_mesh(MeshConfig()), MeshConfig()
    model = open_model(run, mesh=mesh, layout=layout)
    family = make_original(run, model)["model_type"]
    shapes = list_shapes(model.params, model.bias_LE)
    adapters = jax.tree.map(
        lambda p: np.ones(p.shape, "f4"), adapter_shapes(model.params, LoraConfig(rank=1))
    )
    (tmp_path / "peft").mkdir()
    write_adapter(tmp_path / "peft", family, model.config, shapes, adapters, 0.5, str(run))
    assert f"{family}, merged" in said("merge", tmp_path / "peft", tmp_path / "merged").out
    merged = open_model(tmp_path / "merged", mesh=mesh, layout=layout)
    assert merged.config == model.config and merged.tokenizer is not None
    block, old = (m.params["layers_0"]["block_0"]["moe"] for m in (merged, model))
    np.testing.assert_allclose(block["w_up_EDF"], old["w_up_EDF"] + 0.5, atol=1e-6)
    assert f"as {family}" in said("export", tmp_path / "merged", tmp_path / "out").out


def test_a_run_that_no_family_can_hold_is_not_pruned_in_vain(copy, tmp_path, monkeypatch):
    settings = json.loads((copy / "config.json").read_text())
    settings["model"]["embedding_scale"] = 2.0
    (copy / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("moejax.commands.prune._prune", None)
    with (
        pytest.warns(UserWarning, match="embedding_scale 2.0, but checkpoint 8"),
        pytest.raises(ConfigError, match="no family of Hugging Face's models can hold this one"),
    ):
        moejax("prune", copy, tmp_path / "new")


def test_prompts_come_from_flags_and_lines(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\r\n\nt\xc3\xa9\xff")))
    given = GenerateSettings(path=tmp_path, prompt=("zero", "\udcff"), prompt_file="-")
    assert collect_prompts(given) == ["zero", "\ufffd", "one", "", "té\ufffd"]
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigError, match="--prompt-file .*empty is empty"):
        collect_prompts(GenerateSettings(path=tmp_path, prompt_file=str(tmp_path / "empty")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*but checkpoint 8 was saved with")
def test_a_run_on_conversations_is_talked_to(run, tmp_path, monkeypatch, said):
    """By the command and by the Python of the guide."""
    place = shutil.copytree(run, tmp_path / "runs/finetune_chat")
    settings = json.loads((place / "config.json").read_text())
    settings["data"] |= {"train": "x.jsonl", "chat_template": "plain", "sequence_length": 128}
    (place / "config.json").write_text(json.dumps(settings))
    (place / "tokenizer").mkdir()
    (place / "tokenizer/chat_template.jinja").write_text(NAMED["plain"])
    monkeypatch.chdir(tmp_path)
    names = run_page("docs/guides/chats.md")
    answer = names["answer"].text
    words = ("generate", place, "--chat", "--prompt", "Hi", "--tokens", "100")
    found = said(*words)
    assert found.out == f"{answer}\n" and "tokens/s" in found.errors
    assert BYTES.show(names["prompt"]) == "User: Hi\nAssistant: "


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_left_alone(copy, figures):
    for file in (copy / "checkpoints" / "8" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            os.truncate(file, file.stat().st_size // 2)
    before = sorted(copy.rglob("*"))
    with pytest.warns(UserWarning, match="checkpoint 8 cannot be read"):
        got = figures(copy)
    assert got["loss"] == pytest.approx(validation(copy)[4]["loss"])
    assert sorted(copy.rglob("*")) == before
    shutil.rmtree(copy / "checkpoints" / "4")
    with (
        pytest.warns(UserWarning, match="checkpoint 8 cannot be read"),
        pytest.raises(RunError, match="no checkpoint in .* can be read: "),
    ):
        moejax("eval", copy)
    shutil.rmtree(copy / "checkpoints" / "8")
    with pytest.raises(RunError, match="no checkpoint in .* can be read: there are none"):
        moejax("eval", copy)


def changed(directory: Path, section: str, **settings) -> None:
    """Change settings in ``config.json``."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    at = config
    for name in section.split("."):
        at = at[name]
    at |= settings
    file.write_text(json.dumps(config))


@pytest.mark.slow
def test_what_a_run_needs_beside_its_directory_is_named(copy, tmp_path, figures):
    want = figures(copy)["loss"]
    changed(copy, "data", tokenizer=str(tmp_path / "gone.json"))
    with pytest.raises(
        RunError, match="tokenizer that .* was trained with is missing: .*gone.json"
    ):
        moejax("eval", copy)
    changed(copy, "data", tokenizer="bytes")
    changed(copy, "model.moe", router="made_up_for_this_test")
    with pytest.raises(
        RunError, match="made_up_for_this_test, which is not one of moejax's.* give --config"
    ):
        moejax("eval", copy)
    file = tmp_path / "mine.py"
    file.write_text(
        "from moejax.config import Config\n"
        "from moejax.routing.routers import ROUTERS\n"
        "ROUTERS['made_up_for_this_test'] = ROUTERS['deepseek_v3']\n"
        "get_config = Config\n"
    )
    try:
        with pytest.warns(UserWarning, match="says model.moe.router 'made_up_for_this_test'"):
            assert figures(copy, "--config", file)["loss"] == want
    finally:
        del ROUTERS["made_up_for_this_test"]


def test_a_run_of_another_tokenizer_is_refused(copy, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "fingerprint", "other bytes")
    with pytest.raises(RunError, match=r"another tokenizer .* \(bytes, not other bytes\)"):
        moejax("generate", copy, "--prompt", "x")


@pytest.mark.slow
def test_a_router_that_generates_no_text_can_be_evaluated(run, tmp_path, figures):
    """Experts choose in groups of 8 tokens."""
    config = read_config_json(run / "config.json")
    moe = dataclasses.replace(
        config.model.moe,
        router="expert_choice",
        capacity_factor=1.0,
        balance=BalanceConfig(bias_update="none"),
    )
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, moe=moe),
        run=dataclasses.replace(config.run, directory=str(tmp_path / "run"), steps=2),
    )
    with pytest.warns(UserWarning, match="looks at later tokens"):
        train(config, name="tiny", command="test")
    got = figures(tmp_path / "run", "--batch-size", "8")
    assert got["loss"] == pytest.approx(validation(tmp_path / "run")[2]["loss"], rel=1e-5)
    with pytest.raises(ConfigError, match="no text can be generated"):
        moejax("generate", tmp_path / "run", "--prompt", "x")
    with pytest.raises(ConfigError, match="--sequence-length 12 must divide the 8 tokens"):
        moejax("eval", tmp_path / "run", "--sequence-length", "12")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "/nowhere", "--prompt", "x"], "there is no directory /nowhere"),
        (["generate", "TMP", "--prompt", "x"], "holds no model. Looked for: a run of train.py"),
        (["generate", "RUN"], "there is no prompt: give --prompt TEXT"),
        (["generate", "RUN", "--prompt-file", "/nowhere"], "--prompt-file /nowhere cannot be read"),
        (["generate", "RUN", "--prompt", "x" * 16], "prompt 1 has 17 tokens, more than the 16"),
        (["generate", "RUN", "--prompt", "x", "--top-p", "0"], "--top-p must lie in"),
        (["generate", "RUN", "--prompt", "x", "--temperature", "-1"], "--temperature must be at"),
        (["generate", "RUN", "--prompt", "x", "--tokens", "0"], "--tokens must be greater than 0"),
        (["generate", "RUN", "--prompt", "x", "--window", "0"], "--window must be greater than 0"),
        (["generate", "RUN", "--prompt", "x", "--mesh.data", "3"], "needs 3 devices"),
        (["eval", "RUN", "--data", "/nowhere/*"], "--data: no file matches /nowhere"),
        (["eval", "RUN", "--data", "tfds:"], "--data tfds: names no data set"),
        (["eval", "RUN", "--data", "tfds:lm1bb"], "near are lm1b"),
        (["eval", "RUN", "--batch-size", "6"], "make it a multiple of 8"),
        (["eval", "RUN", "--mesh.expert", "8"], "--model.moe.num-experts 4 is not divisible"),
        (["eval", "RUN", "--batches", "0"], "--batches must be greater than 0"),
        (["eval", "RUN", "--weights", "int4", "--group", "5"], "groups of 5 do not divide"),
        (["eval", "RUN", "--group", "8"], "has no effect without --weights int8, int4 or fp8"),
    ],
)
def test_wrong_input_is_named(run, tmp_path, words, message):
    places = {"RUN": str(run), "TMP": str(tmp_path)}
    with pytest.raises(UserError) as caught:
        moejax(*(places.get(word, word) for word in words))
    assert message in str(caught.value) and caught.value.exit_code == 2


def test_wrong_input_ends_in_one_message_and_exit_code_two(run):
    words = [sys.executable, "-m", "moejax", "generate", str(run), "--prompt", "x", "--top-p", "2"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --top-p must lie in (0, 1], not 2.0.\n"


def test_text_that_gives_no_tokens_is_refused(run, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr(
        ByteTokenizer, "encode", lambda self, text: (jnp.zeros(0, int), jnp.zeros(0, int))
    )
    with pytest.raises(ConfigError, match="the text gives no tokens"):
        moejax("eval", run, "--data", tmp_path / "a")


@pytest.mark.slow
def test_the_guide_on_routes_replays_what_was_generated(run, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/quickstart").symlink_to(run)
    prompts = sum(
        (["--prompt", text] for text in ("def", "x", "", "abc", "if", "for", "y", "z")), []
    )
    plain = ("generate", "runs/quickstart", *prompts, "--tokens", 6, "--seed", 3)
    without = said(*plain).out
    assert said(*plain, "--record-routes", "routes.safetensors").out == without
    names = run_page("docs/guides/routes.md")
    texts, model = names["texts"], names["model"]
    assert texts.settings["router"] == model.config.moe.router
    assert texts.prompt_lengths == [len(model.begin(text)) for text in prompts[1::2]]
    log_BN, batch = np.asarray(names["log_BN"]), names["batch"]
    assert ((log_BN < 0) == (batch["segments"] > 0)).all()
    for row, (tokens, routes) in enumerate(zip(texts.tokens, texts.routes, strict=True)):
        np.testing.assert_array_equal(batch["routes"][row, : len(tokens) - 1], routes[:-1])
    turned = (names["placed"]["routes"] + 1) % model.config.moe.num_choices
    with jax.set_mesh(names["mesh"]):
        other_BN = names["log_probabilities"](model.params, names["placed"] | {"routes": turned})
    assert np.abs(log_BN - other_BN).max() > 1e-3


@pytest.mark.parametrize(
    "name, words", [("nowhere/routes", "there is no nowhere"), ("", "is a folder: name a file")]
)
def test_a_file_of_routes_that_cannot_be_is_refused_at_once(name, words):
    with pytest.raises(ConfigError, match=words):
        GenerateSettings(path=Path("run"), prompt=("a",), record_routes=Path(name))
