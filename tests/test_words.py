"""Messages are in words: no dataclasses or tuples of the code, counts of one, paths to paste."""

from pathlib import Path

import pytest

from moejax.commands.describe_import import describe_import
from moejax.config import Config, ConfigError, ModelConfig, changed
from moejax.hf.configs import write_config
from moejax.lab.study.definition import Study
from moejax.runtime.number_words import count

MODEL = ModelConfig(vocab_size=32)
INSIDES = ("Config(", "Rule(", "((", "<class", "object at")


def study(**settings) -> None:
    Study(**{"title": "t", "question": "q", "runs": {"a": Config()}} | settings)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: study(runs=[Config()]), "Study.runs must be a dict"),
        (lambda: study(runs={}), "at least one config by name"),
        (lambda: study(runs={"a": ModelConfig()}), "Study.runs['a'] must be"),
        (lambda: study(title=Config()), "Study.title must be a text"),
        (lambda: study(seeds=[0]), "Study.seeds must be a tuple"),
        (lambda: study(baseline="b"), "must be the name of a run (a)"),
        (lambda: changed([Config()], {}), "changed() needs a config"),
        (lambda: changed(Config(), {"run": [ModelConfig()]}), "--run must be RunConfig"),
        (lambda: write_config(ModelConfig(), family="nix"), "--family nix: there are mixtral"),
        (lambda: write_config(MODEL, family="mixtral"), "mixtral: "),
        (
            lambda: write_config(changed(MODEL, {"moe.first_dense": 1}), family="mixtral"),
            "--model.moe.every False True, by layer",
        ),
        (
            lambda: write_config(changed(MODEL, {"moe.router": "deepseek_v3"}), family="mixtral"),
            "--model.moe.router with score sigmoid",
        ),
    ],
)
def test_a_message_shows_no_insides(make, words):
    with pytest.raises(ConfigError) as error:
        make()
    said = str(error.value)
    assert words in said
    assert [inside for inside in INSIDES if inside in said] == [], said


def test_one_thing_is_not_several():
    assert count(1, "update", "was", "were") == "1 update was"
    assert count(1200, "update", "was", "were") == "1,200 updates were"
    assert count(0, "token") == "0 tokens"


def test_commands_to_paste_have_their_paths_quoted(tmp_path):
    target = Path(tmp_path, "a new model")
    said = describe_import("olmoe", ModelConfig(vocab_size=256), target)
    assert f"moejax generate '{target}' --prompt" in said
    assert f"--config '{target / 'config.json'}' --run.directory" in said
