"""An exported run has its own tokenizer, whole, and all files say the same of how texts begin."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from test_text_edges import END, EOS, WORDS, S, bytes_level, write
from tokenizers import Tokenizer, processors

from moejax.commands.eval import EvalSettings, evaluate
from moejax.commands.export import ExportSettings, export_model
from moejax.commands.import_ import ImportSettings, import_model
from moejax.config import Config, DataConfig, ModelConfig, MoEConfig, RunConfig
from moejax.data.text_edges import TextEdges, make_edges
from moejax.data.tokenizer import load_tokenizer
from moejax.hf.tokenizer_files import PAST_THE_END, write_tokenizer
from moejax.train.training import train


def edges(*before: int, end: int = END, more: tuple[int, ...] = ()) -> TextEdges:
    """Texts that begin with ``before``, as a run has learned them."""
    made = make_edges(end, "test")
    return dataclasses.replace(made, before_document=before, ends=frozenset([end, *more]))


PAST = len(WORDS)
NAMED = {"bos_token": "<s>", "eos_token": "<EOS>", "add_bos_token": True, "model_max_length": 9}
GENERATION = {"bos_token_id": EOS, "eos_token_id": [EOS], "temperature": 0.5}
BYTES = processors.ByteLevel(trim_offsets=True)
CASES = {
    # What was given to the run, and how its texts begin and end.
    "no beginning in the file": ({}, edges(END)),
    "a beginning that was learned": ({"single": "<s> $A"}, edges(S)),
    "a beginning that was never learned": ({"single": "<s> $A"}, edges(END)),
    "a beginning and an end in the template": ({"single": "<s> $A </s>"}, edges(END)),
    "an end in the template, which is for documents alone": ({"single": "<s> $A </s>"}, edges(S)),
    "several before a text": ({"single": "<s> <eos> $A"}, edges(S, EOS)),
    "two ends": ({}, edges(S, more=(EOS,))),
    "a rule for places alone": ({"post": BYTES}, edges(S)),
    "an end past the vocabulary": ({"special": ("<unk>",)}, edges(PAST, end=PAST)),
    "another file name": ({"name": "my.json", "single": "<s> $A"}, edges(END)),
    "files beside that say otherwise": (
        {"single": "<s> $A", "tokenizer_config": NAMED, "generation_config": GENERATION}
        | {"special_tokens_map": NAMED},
        edges(END),
    ),
}


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_all_files_say_how_texts_begin_and_end(case, released, tmp_path):
    given, learned = CASES[case]
    file = write(tmp_path / "given", **given)
    if file.name != "tokenizer.json":  # another one beside it, which is none of ours
        (file.parent / "tokenizer.json").write_text("other")
        (file.parent / "tokenizer_config.json").write_text("other")
    target = tmp_path / "out"
    target.mkdir()
    config = {"model_type": "mixtral", "bos_token_id": EOS, "eos_token_id": EOS, "vocab_size": 99}
    (target / "config.json").write_text(json.dumps(config))
    write_tokenizer(target, str(file), learned, released=released)

    found = load_tokenizer(str(target))
    assert found.edges.before_text == found.edges.before_document == learned.before_document
    assert (found.edges.end, found.edges.ends) == (learned.end, learned.ends)
    text = "the sea the"
    ids, _ = load_tokenizer(str(file)).encode(text.encode())
    np.testing.assert_array_equal(found.encode(text.encode())[0], ids)
    theirs = Tokenizer.from_file(str(target / "tokenizer.json")).encode(text).ids
    assert theirs == [*learned.before_document, *ids]
    said = {path.name: json.loads(path.read_text()) for path in target.glob("*.json")}
    assert sorted(said) == [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    ends = [learned.end, *sorted(learned.ends - {learned.end})]
    for name in ("config.json", "generation_config.json"):
        assert said[name]["bos_token_id"] == learned.before_document[0]
        assert said[name]["eos_token_id"] == (ends if len(ends) > 1 else learned.end)
    assert said["config.json"]["vocab_size"] == 99
    names = [*WORDS, PAST_THE_END]
    settings = said["tokenizer_config.json"]
    assert settings["bos_token"] == names[learned.before_document[0]]
    assert settings["eos_token"] == names[learned.end]
    assert not {"add_bos_token", "add_eos_token"} & set(settings)


def test_a_run_on_an_exported_tokenizer_gives_the_same_one(tmp_path):
    given, learned = CASES["an end past the vocabulary"]
    places = [write(tmp_path / "given", **given).parent, tmp_path / "out", tmp_path / "again"]
    for before, after in itertools.pairwise(places):
        after.mkdir()
        (after / "config.json").write_text('{"model_type": "mixtral"}')
        write_tokenizer(after, str(before), learned, released=False)
    for path in places[1].iterdir():
        assert json.loads((places[2] / path.name).read_text()) == json.loads(path.read_text())


def test_files_of_a_released_model_that_say_so_are_left_as_they_are(tmp_path):
    config = {"model_type": "mixtral", "bos_token_id": S, "eos_token_id": END}
    file = write(tmp_path / "given", config=config, tokenizer_config=NAMED, single="<s> $A")
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    write_tokenizer(target, str(file), edges(S), released=True)
    for path in target.iterdir():
        assert path.read_bytes() == (file.parent / path.name).read_bytes()


def test_the_rule_of_bytes_for_places_stays_inside(tmp_path):
    backend = bytes_level()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.save(str(tmp_path / "my.json"))
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    write_tokenizer(tmp_path, str(tmp_path / "my.json"), edges(5, end=6), released=False)
    rules = json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"]["processors"]
    assert [rule["type"] for rule in rules] == ["ByteLevel", "TemplateProcessing"]
    assert load_tokenizer(str(tmp_path)).edges.before_text == (5,)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["bytes", "my.json"])
def test_perplexity_is_the_same_after_export_and_import(given, tmp_path, capsys):
    """Of a run, of its export, and of the export's import; another tokenizer lies beside."""
    place, rng = tmp_path / "given", np.random.default_rng(0)
    tokenizer = str(write(place, name=given)) if given != "bytes" else "bytes"
    write(place, single="<s> $A", special=("<unk>",))
    for name, lines in (("text.txt", 400), ("held.txt", 40)):
        words = rng.choice(["the", "sea"], (lines, 9))
        (tmp_path / name).write_text("\n\n".join(map(" ".join, words)))
    model = ModelConfig(
        num_layers=1,
        width=32,
        num_heads=4,
        qk_norm=False,
        moe=MoEConfig(num_experts=4, hidden_size=16, group_size=32, capacity_factor=None),
    )
    data = DataConfig(
        source="files",
        files=str(tmp_path / "text.txt"),
        validation_files=str(tmp_path / "held.txt"),
        tokenizer=tokenizer,
        sequence_length=32,
        batch_size=8,
        eval_batch_size=8,
        shuffle_window=64,
    )
    run = RunConfig(directory=str(tmp_path / "run"), steps=4, eval_batches=1, sample_tokens=0)
    train(Config(model=model, data=data, run=run), name="run", command="test")
    export_model(ExportSettings(source=tmp_path / "run", target=tmp_path / "out"))
    import_model(ImportSettings(source=tmp_path / "out", target=tmp_path / "back"))
    found = []
    for name in ("run", "out", "back"):
        capsys.readouterr()
        held = str(tmp_path / "held.txt")
        evaluate(EvalSettings(path=tmp_path / name, data=held, sequence_length=32, json=True))
        figures = json.loads(capsys.readouterr().out)
        found.append((figures["perplexity"], figures["tokens"]))
    assert found[0][1] == found[1][1] == found[2][1]
    np.testing.assert_allclose([figure for figure, _ in found], found[0][0], rtol=1e-5)
