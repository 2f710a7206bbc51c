"""Where a run lies and what it needs: `~`, refused commands, and a run that is opened elsewhere."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import hf_models
import pytest
from test_run import config, metrics, quick, with_run  # noqa: F401
from test_text_of_a_run import with_data
from tokenizers import Tokenizer, models, pre_tokenizers

from moejax.commands.bench import ScalingSettings
from moejax.commands.command_line import parse_settings
from moejax.commands.export import ExportSettings
from moejax.commands.generate import GenerateSettings, split_lines
from moejax.commands.import_ import ImportSettings
from moejax.commands.main import run as run_command
from moejax.commands.report import ReportSettings
from moejax.commands.serve import ServeSettings
from moejax.commands.specialisation import SpecialisationSettings
from moejax.commands.study import StudySettings
from moejax.commands.upcycle import UpcycleSettings
from moejax.config import Config, ConfigError, RunConfig, load_config_file
from moejax.config.errors import RunError, UserError
from moejax.runs.run_directory import RunDirectory
from moejax.train.base_model import check_beginning

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("kind", "words", "paths"),
    [
        (ImportSettings, ["~/a", "~/b"], {"source": "a", "target": "b"}),
        (ExportSettings, ["~/a", "~/b"], {"source": "a", "target": "b"}),
        (UpcycleSettings, ["~/a", "~/b"], {"source": "a", "target": "b"}),
        (ReportSettings, ["~/a", "~/b", "--output", "~/c"], {"runs": ("a", "b"), "output": "c"}),
        (StudySettings, ["~/a.py", "--directory", "~/b"], {"file": "a.py", "directory": "b"}),
        (
            GenerateSettings,
            ["~/a", "--prompt", "~", "--config", "~/c"],
            {"path": "a", "config": "c"},
        ),
        (SpecialisationSettings, ["~/a", "--output=~/c"], {"path": "a", "output": "c"}),
    ],
)
def test_a_tilde_in_a_command_is_the_home_directory(kind, words, paths, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = parse_settings(kind, words, "moejax", "summary")
    for name, path in paths.items():
        several = isinstance(path, tuple)
        want = tuple(Path("/home/somebody", one) for one in (path if several else (path,)))
        assert getattr(settings, name) == (want if several else want[0])
    assert getattr(settings, "prompt", ("~",)) == ("~",)
    with pytest.raises(ConfigError, match="there is no user nobody-here"):
        parse_settings(kind, [word.replace("~/", "~nobody-here/") for word in words], "m", "s")


def test_a_tilde_in_settings_within_settings_is_it_too(monkeypatch):
    monkeypatch.setenv("HOME", "/tmp")
    settings = parse_settings(ScalingSettings, ["--output=~/c.svg"], "moejax", "summary")
    assert settings.bench.output == Path("/tmp/c.svg")
    words = ["~/a", "--speculate", "draft", "--draft", "~/b"]
    settings = parse_settings(ServeSettings, words, "moejax", "summary")
    assert settings.speculation.draft == Path("/tmp/b")


@pytest.mark.slow
def test_a_tilde_in_a_run_is_the_home_directory(config, tmp_path, monkeypatch, words_file):  # noqa: F811
    """No folder of this name is made, whatever has it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = with_data(config, files="~/*.txt", validation_files="~/held_out")  # noqa: F811
    config = with_data(config, tokenizer=f"~/{words_file.relative_to(tmp_path)}")
    quick(config, directory="~/here", steps=2, eval_every=2, sample_tokens=0)
    assert (tmp_path / "here" / "report.html").exists()
    with pytest.raises(ConfigError, match="--run.directory ~nobody-here/x: there is no user"):
        quick(config, directory="~nobody-here/x")
    with pytest.raises(ConfigError, match="--data.tokenizer ~nobody-here/x: there is no user"):
        quick(with_data(config, tokenizer="~nobody-here/x"), directory="there")
    assert not [path for path in tmp_path.rglob("~*")] and not (tmp_path / "there").exists()


@pytest.mark.parametrize("field", ["directory", "init_from"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_path_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"--run.{field.replace('_', '-')} must be a path, not '"):
        RunConfig(**{field: value})


@pytest.fixture
def words_file(tmp_path) -> Path:
    """A tokenizer of words, in a folder with files that say more about it."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "def": 1, "</s>": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tok").mkdir()
    backend.save(str(tmp_path / "tok" / "tokenizer.json"))
    (tmp_path / "tok" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return tmp_path / "tok" / "tokenizer.json"


REFUSED = {
    "no file": lambda c: with_data(c, files="/nowhere/*"),
    "no tokenizer": lambda c: with_data(c, tokenizer="/nowhere/tokenizer.json"),
    "few documents": lambda c: with_data(c, shards=8),
    "no model": lambda c: with_run(c, init_from="/nowhere/model"),
    "devices": lambda c: dataclasses.replace(c, mesh=dataclasses.replace(c.mesh, data=3)),
    "vocabulary": lambda c: dataclasses.replace(
        c, model=dataclasses.replace(c.model, vocab_size=10)
    ),
}


@pytest.mark.parametrize("place", ["new", "deep/in/a/new/one", "there"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_run_leaves_nothing(config, tmp_path, kind, place):  # noqa: F811
    """No folder that was not there, no lock, no settings; a folder that was there stays."""
    (tmp_path / "there").mkdir()
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(UserError):
        quick(REFUSED[kind](config), directory=str(tmp_path / place))
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_model_that_is_to_be_trained_first_is_named_by_its_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tuned = load_config_file(ROOT / "configs/finetune_chat.py")
    place = Path(tuned.run.init_from)
    with pytest.raises(RunError, match="no directory of that name. Give that of a model"):
        check_beginning(tuned)
    Path("configs").symlink_to(ROOT / "configs")
    command = "Train it first: python train.py --config configs/quickstart.py"
    with pytest.raises(RunError, match=f"no directory of that name. {command}"):
        check_beginning(tuned)
    (place / "checkpoints").mkdir(parents=True)
    with pytest.raises(RunError, match=f"has saved no checkpoint yet. {command}"):
        check_beginning(tuned)
    (place / "checkpoints" / "5").mkdir()
    check_beginning(tuned)
    assert load_config_file(ROOT / "configs/quickstart.py").model == tuned.model


@pytest.mark.slow
def test_a_refused_command_harms_no_run(config, tmp_path):  # noqa: F811
    """Nor does it wait for a lock that another one has removed."""
    quick(config, steps=3, eval_every=3, sample_tokens=0)
    directory = Path(config.run.directory)
    before = sorted(path for path in directory.rglob("*"))
    with pytest.raises(RunError, match="data.files"):
        quick(with_data(config, files="/nowhere/*"))
    with pytest.raises(RunError, match="optim.beta2"):
        quick(dataclasses.replace(config, optim=dataclasses.replace(config.optim, beta2=0.5)))
    assert sorted(path for path in directory.rglob("*")) == before
    assert json.loads((directory / "config.json").read_text())["run"]["steps"] == 3
    with RunDirectory(tmp_path / "x"), pytest.raises(RunError, match="another training is running"):
        RunDirectory(tmp_path / "x")
    assert (tmp_path / "x" / ".lock").exists()
    with RunDirectory(tmp_path / "x"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["import", "MODEL", "NEW"],
        ["import", "/nowhere", "NEW"],
        ["upcycle", "MODEL", "NEW"],
        ["export", "RUN", "NEW", "--family", "wings"],
        ["export", "/nowhere", "NEW"],
    ],
)
def test_a_refused_conversion_leaves_nothing(config, tmp_path, words):  # noqa: F811
    hf_models.write(tmp_path / "model", "mixtral")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    if "RUN" in words:
        quick(config, steps=2, eval_every=2, sample_tokens=0)
    places = {"MODEL": tmp_path / "model", "RUN": config.run.directory, "NEW": tmp_path / "a/b"}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError):
        run_command([str(places.get(word, word)) for word in words])
    assert sorted(tmp_path.rglob("*")) == before


def end_of(words: list[str], capsys) -> str:
    run_command(words)
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_opened_from_any_folder(config, tmp_path, monkeypatch, words_file, capsys):  # noqa: F811
    """Its text and its tokenizer were given by relative paths; the tokenizer goes away."""
    monkeypatch.chdir(tmp_path)
    config = with_data(  # noqa: F811
        config, files="*.txt", validation_files="held_out", tokenizer="tok/tokenizer.json"
    )
    config = with_run(config, directory="run", steps=3, eval_every=3, sample_tokens=0)
    quick(config)
    kept = sorted(path.name for path in (tmp_path / "run" / "tokenizer").iterdir())
    assert kept == ["edges.json", "tokenizer.json", "tokenizer_config.json"]
    capsys.readouterr()
    here = end_of(["eval", "run", "--json"], capsys)
    away = tmp_path / "elsewhere"
    away.mkdir()
    monkeypatch.chdir(away)
    there = json.loads(end_of(["eval", "../run", "--json"], capsys))
    assert there["loss"] == json.loads(here)["loss"] and there["tokens"] > 0
    shutil.rmtree(tmp_path / "tok")
    assert end_of(["eval", "../run", "--data", "../a.txt", "--json"], capsys)
    assert end_of(["generate", "../run", "--prompt", "def", "--tokens", "2"], capsys)
    run_command(["export", "../run", "out"])
    assert (away / "out" / "tokenizer.json").is_file()
    monkeypatch.chdir(tmp_path)
    quick(config, steps=4)
    assert metrics("run")[-1]["step"] == 4


@pytest.mark.slow
def test_the_same_tokenizer_by_another_path_is_the_same(config, tmp_path, words_file):  # noqa: F811
    config = with_data(config, tokenizer=str(words_file))  # noqa: F811
    config = with_run(config, steps=2, eval_every=2, sample_tokens=0)
    quick(config)
    shutil.copytree(words_file.parent, tmp_path / "moved")
    os.rename(tmp_path / "moved" / "tokenizer.json", tmp_path / "moved" / "mine.json")
    quick(with_data(config, tokenizer=str(tmp_path / "moved" / "mine.json")), steps=3)
    shutil.rmtree(words_file.parent)
    quick(with_data(config, tokenizer=str(tmp_path / "moved" / "mine.json")), steps=4)
    other = Tokenizer.from_file(str(tmp_path / "moved" / "mine.json"))
    other.add_tokens(["class"])
    other.save(str(tmp_path / "other.json"))
    for name in ("bytes", str(tmp_path / "other.json"), str(tmp_path / "gone.json")):
        with pytest.raises(RunError, match=r"data\.tokenizer: "):
            quick(with_data(config, tokenizer=name))
    assert metrics(config.run.directory)[-1]["step"] == 4


@pytest.mark.slow
def test_a_run_from_a_released_model_keeps_what_it_came_with(tmp_path, monkeypatch):
    """So that it is exported as what it was, from any folder."""
    monkeypatch.chdir(tmp_path)
    hf_models.write(tmp_path / "model", "mixtral", vocab_size=300)
    tensors = hf_models.tensors("mixtral")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = hf_models.values(name, [300, tensors[name].shape[1]])
    hf_models.save_file(tensors, tmp_path / "model" / "model.safetensors")
    run_command(["import", "model", "new"])
    config: Config = load_config_file("new/config.json")  # noqa: F811
    (tmp_path / "new").rename(tmp_path / "moved")
    assert load_config_file("moved/config.json").run.init_from == "moved"
    (tmp_path / "moved").rename(tmp_path / "new")
    assert load_config_file("new/config.json") == config
    (tmp_path / "a.txt").write_text("def train(): ...\n" * 40)
    config = with_data(
        config, source="files", files="a.txt", batch_size=8, eval_batch_size=8, sequence_length=16
    )
    quick(config, directory="run", steps=2, eval_every=2, sample_tokens=0)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    shutil.rmtree(tmp_path / "new")
    run_command(["export", "../run", "out"])
    fields = json.loads((tmp_path / "away" / "out" / "config.json").read_text())
    assert fields["model_type"] == "mixtral"
    kept = json.loads((tmp_path / "run" / "huggingface.json").read_text())
    assert kept == json.loads((tmp_path / "model" / "config.json").read_text())


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb\rc", ["a", "b", "c"]),
        ("a\n\nb", ["a", "", "b"]),
        ("\ufeffa\nb", ["a", "b"]),
        ("a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg\n", ["a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg"]),
        ("a\n\x0c\nb", ["a", "\x0c", "b"]),
        ("\n", [""]),
        ("", []),
        ("\ufeff", []),
    ],
)
def test_prompts_are_the_lines_of_a_file(text, lines):
    assert split_lines(text) == lines


@pytest.mark.parametrize("name", ["run[1]", "a?", "b*", "in[1]/run", "\udcff"])
def test_a_path_in_which_no_checkpoint_can_be_saved_is_refused(config, tmp_path, name):  # noqa: F811
    """Orbax takes it for a pattern, and leaves a checkpoint that cannot be read."""
    with pytest.raises(ConfigError, match="--run.directory .*(in a path with|is not UTF-8)"):
        quick(config, directory=str(tmp_path / name))
    released = hf_models.write(tmp_path / "released", "mixtral")
    with pytest.raises(ConfigError, match="NEW .*(in a path with|is not UTF-8)"):
        run_command(["import", str(released), str(tmp_path / name)])
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["released"]
