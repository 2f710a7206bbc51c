"""`moejax eval --routes`: a model on recorded texts, with the recorded routes and with its own."""

import json
from dataclasses import replace
from pathlib import Path

import hf_models
import numpy as np
import pytest
from test_routing_change import WORDS, write_tokenizer

from moejax.commands.main import run as run_words
from moejax.config import changed
from moejax.config.errors import ConfigError
from moejax.data.route_files import Recording, read_recording, write_recording
from moejax.data.routes import lay_recording
from moejax.data.tokenizer import load_tokenizer
from moejax.hf.configs import read_config
from moejax.lab.replayed import describe_replay

CASE = hf_models.CASES["mixtral"]
L, E, K = (CASE[f"num_{name}"] for name in ("hidden_layers", "local_experts", "experts_per_tok"))


def record(lengths=(9, 5, 7), experts=E, layers=L) -> Recording:
    """Texts that chose at random."""
    rng = np.random.default_rng(0)
    return Recording(
        tokens=[rng.integers(1, hf_models.V, n).astype(np.int32) for n in lengths],
        routes=[np.argsort(rng.random((n, layers, experts)), -1)[..., :K] for n in lengths],
        prompt_lengths=[1] * len(lengths),
        settings={"model": "a test"},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    here = tmp_path_factory.mktemp("eval_routes")
    hf_models.write(here / "model", "mixtral")
    hf_models.write(here / "dense", "llama")
    for name in ("model", "dense"):
        write_tokenizer(here / name, WORDS)
    write_recording(here / "routes", record())
    write_recording(here / "layers", record(layers=L + 1))
    write_recording(here / "experts", record(experts=E + 60))
    write_recording(here / "one", record(lengths=(5, 1)))
    unknown = record()
    unknown.tokens[0][0] = hf_models.V
    write_recording(here / "unknown", unknown)
    (here / "broken").write_bytes(b"no tensors")
    return here


def test_a_recording_becomes_batches_of_as_many_rows(place):
    tokenizer, config = load_tokenizer(str(place / "model")), read_config(CASE)
    batches = lay_recording(config, record(), tokenizer, 8, rows=2)
    assert [len(batch["inputs"]) for batch in batches] == [2, 2]
    assert {name: x.shape for name, x in batches[1].items()} == dict.fromkeys(
        ("inputs", "targets", "segments", "positions", "bytes"), (2, 8)
    ) | {"routes": (2, 8, L, K)}
    np.testing.assert_array_equal(batches[1]["segments"].sum(1), [6, 0])
    assert (batches[1]["routes"][1] == -1).all() and (batches[1]["routes"][0, :6] >= 0).all()
    np.testing.assert_array_equal(
        batches[0]["bytes"][1, :4], tokenizer.count_bytes(record().tokens[1][1:])
    )
    assert not batches[1]["bytes"][1].any()
    with pytest.raises(ConfigError, match="text 2 has 7 tokens, and a row of 5 positions"):
        lay_recording(config, record((5, 5, 7)), tokenizer, 5, rows=2)


def test_the_line_names_the_layer_that_agrees_least():
    figures = {"agreement": 0.75, "agreement_by_layer": [1.0, 0.5], "own_routes_perplexity": 3.0}
    config = changed(read_config(CASE), {"moe.first_dense": 1, "num_layers": 3})
    assert describe_replay(figures, config) == (
        "routes     as recorded; its own are the same in 75.0% of the choices (fewest in layer 2:"
        " 50.0%), and give perplexity 3.000"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model --routes /nowhere", "/nowhere cannot be read as routes"),
        ("model --routes broken", "broken cannot be read as routes"),
        ("model --routes routes --data stdlib", "--routes routes has the texts; leave --data out"),
        ("model --routes layers", f"it has {L} routed layers and {K} experts a token"),
        ("model --routes experts", "is no expert of this model"),
        ("model --routes one", "text 1 has 1 tokens"),
        ("model --routes unknown", f"the token {hf_models.V}"),
        ("model --routes routes --sequence-length 4", "text 0 has 9 tokens, and a row of 4"),
        ("dense --routes routes", "this one has none"),
    ],
)
def test_what_cannot_be_replayed_is_named(words, message, place, monkeypatch, refused):
    monkeypatch.chdir(place)
    assert message in refused("eval", *words.split())


@pytest.mark.slow
def test_its_own_routes_change_nothing_and_others_do(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = ["generate", "model", "--prompt", "word1 word2", "--prompt", "word7", "--tokens", "8"]
    run_words([*words, "--record-routes", "own"])
    capsys.readouterr()

    def evaluate(file: str) -> dict:
        run_words(["eval", "model", "--routes", file, "--json"])
        return json.loads(capsys.readouterr().out)

    own = evaluate("own")
    assert own["agreement"] == 1 and own["agreement_by_layer"] == [1] * L
    assert own["loss"] == pytest.approx(own["own_routes_loss"], rel=1e-5)
    texts = read_recording(Path("own"))
    assert own["tokens"] == sum(len(ids) - 1 for ids in texts.tokens)
    others = [np.where(x < 0, x, (x + 1) % E) for x in texts.routes]
    write_recording(Path("moved"), replace(texts, routes=others))
    moved = evaluate("moved")
    assert moved["agreement"] < 1 and abs(moved["loss"] - own["loss"]) > 1e-4
    assert moved["own_routes_loss"] == pytest.approx(own["loss"], rel=1e-5)
