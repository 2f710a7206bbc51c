"""A command that is refused leaves nothing behind: no folder, no lock, no half-written file."""

import hashlib
import json
from pathlib import Path

import hf_models
import pytest

from moejax.commands.main import COMMANDS, Group, list_commands, run
from moejax.config import Config, changed, to_dict
from moejax.config.errors import UserError

TRAIN = ["train", "--config", "tiny.py"]
STUDY = """
from moejax import Study, changed
from moejax.config import load_config_file
def get_study():
    config = load_config_file("tiny.py")
    return Study(title="a", question="b", flops_tolerance=None, runs={"one": config, "two": TWO})
"""
SETTINGS = changed(
    Config(),
    {"data.source": "files", "data.files": "text.txt", "data.validation_files": "held_out.txt"},
)

REFUSED = [
    # Each word list ends in a UserError, or in an exit code that is not 0.
    [*TRAIN, "--data.files", "/nowhere/*"],
    [*TRAIN, "--data.tokenizer", "/nowhere"],
    [*TRAIN, "--data.files", "blank.txt", "--data.validation-files", "blank.txt"],
    [*TRAIN, "--data.files", "packed.txt"],
    [*TRAIN, "--data.train", "packed.txt"],
    [*TRAIN, "--data.train", "text.txt", "--data.validation", "text.txt"],
    [*TRAIN, "--data.train", "/nowhere/*.jsonl.zst"],
    [*TRAIN, "--mesh.data", "3"],
    [*TRAIN, "--run.init-from", "/nowhere"],
    [*TRAIN, "--run.init-from", "model"],
    [*TRAIN, "--run.directory", "text.txt/run"],
    [*TRAIN, "--run.directory", "new/[a]"],
    [*TRAIN, "--run.directory", ""],
    [*TRAIN, "--model.moe.wings", "2"],
    ["train", "--config", "/nowhere.py"],
    ["train"],
    ["study", "/nowhere.py"],
    ["study", "no_study.py"],
    ["study", "refused.py"],
    ["study", "study.py", "--only", "three"],
    ["study", "study.py", "--directory", "text.txt/study"],
    ["report", "/nowhere"],
    ["report", "run", "--output", "new/page.html"],
    ["report", "run", "--output", "run"],
    ["report", "whole", "model"],
    ["report", "whole", "/nowhere", "--json"],
    ["report", "text.txt"],
    ["generate", "/nowhere", "--prompt", "a"],
    ["generate", "run", "--prompt", "a"],
    ["generate", "model", "--prompt", "a", "--mesh.data", "3"],
    ["eval", "/nowhere"],
    ["eval", "run"],
    ["eval", "model", "--data", "/nowhere"],
    ["eval", "whole", "--routes", "/nowhere"],
    ["specialisation", "/nowhere"],
    ["specialisation", "run", "--output", "new/page.html"],
    ["specialisation", "model", "--data", "/nowhere"],
    ["data", "show", "--config", "/nowhere.py"],
    ["data", "show", "--config", "tiny.py", "--data.train", "packed.txt"],
    ["check", "/nowhere"],
    ["check", "model"],
    ["import", "/nowhere", "new/model"],
    ["import", "model", "new/model"],
    ["import", "whole", "text.txt/model"],
    ["import", "whole", "run"],
    ["export", "/nowhere", "new/model"],
    ["export", "run", "new/model"],
    ["export", "model", "new/model"],
    ["quantise", "/nowhere", "new/model"],
    ["quantise", "model", "new/model"],
    ["quantise", "codes", "new/model"],
    ["quantise", "whole", "text.txt/model"],
    ["prune", "/nowhere", "new/model"],
    ["prune", "model", "new/model"],
    ["prune", "run", "new/model"],
    ["prune", "whole", "new/model", "--data", "text.txt"],
    ["prune", "whole", "text.txt/model", "--keep", "0.1"],
    ["prune", "codes", "new/model"],
    ["export", "codes", "new/model"],
    ["import", "codes", "new/model"],
    ["merge", "/nowhere", "new/model"],
    ["merge", "model", "new/model"],
    ["merge", "codes", "new/model"],
    ["upcycle", "codes", "new/model"],
    [*TRAIN, "--run.init-from", "codes"],
    [*TRAIN, "--run.directory", "codes"],
    [*TRAIN, "--run.directory", "whole"],
    [*TRAIN, "--run.directory", "adapters"],
    [*TRAIN, "--run.directory", "imported"],
    ["upcycle", "/nowhere", "new/model"],
    ["upcycle", "model", "new/model"],
    ["upcycle", "whole", "new/model"],
    ["serve", "/nowhere", "--port", "0"],
    ["plan", "cost", "--config", "/nowhere.py"],
    ["plan", "cost", "--hf", "/nowhere"],
    ["plan", "placement", "--replicas", "0", "--load", "/nowhere", "--devices", "2"],
    ["plan", "placement", "--replicas", "0", "--load", "run", "--devices", "2"],
    ["plan", "compile", "--config", "tiny.py"],
    ["plan", "compile", "--config", "tiny.py", "--target", "abacus:2x2"],
    ["bench", "layer", "--tokens", "0"],
    ["bench", "compiled", "--experts", "0"],
    ["bench", "peers", "--tokens", "0"],
    ["bench", "scaling", "--tokens", "0"],
    ["bench", "gpu", "--tokens", "0"],
    ["bench", "steps", "/nowhere.py"],
    ["bench", "generate"],
    ["bench", "serve"],
    ["bench", "serve", "model", "--url", "http://localhost:8000"],
    ["bench", "serve", "--url", "localhost:8000"],
    ["bench", "serve", "--url", "http://localhost:8000", "--seats", "3"],
    ["bench", "generate", "--hf", "model", "--batch", "0"],
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the commands are given: texts, a model that is damaged and one that is
    whole, what says that one is quantised, and a run without checkpoints.
    """
    here = tmp_path_factory.mktemp("refused")
    (here / "text.txt").write_text("def f(): pass\n" * 20_000)
    (here / "held_out.txt").write_text("def g(): pass\n" * 100)
    (here / "blank.txt").write_text("")
    (here / "packed.txt").write_bytes(b"\x1f\x8b\x08\x00" * 100)
    (here / "tiny.py").write_text(
        "from moejax.config import Config, from_dict\n"
        f"def get_config():\n    return from_dict(Config, {to_dict(SETTINGS)!r})\n"
    )
    (here / "no_study.py").write_text("x = 1\n")
    (here / "study.py").write_text(STUDY.replace("TWO", "config"))
    no_text = 'changed(config, {"data.files": "/nowhere/*"})'
    (here / "refused.py").write_text(
        STUDY.replace('"one": config', f'"one": {no_text}').replace("TWO", no_text)
    )
    hf_models.write(here / "model", "mixtral")
    (here / "model" / "model.safetensors").write_bytes(b"")
    hf_models.write(here / "whole", "mixtral")
    (here / "codes").mkdir()
    mark = {"weights": {"kind": "int4", "group": None}, "source": "run"}
    (here / "codes" / "quantised.json").write_text(json.dumps(mark))
    (here / "adapters").mkdir()
    (here / "adapters" / "adapter_config.json").write_text("{}")
    (here / "imported" / "model").mkdir(parents=True)
    (here / "imported" / "config.json").write_text(json.dumps(to_dict(SETTINGS)))
    (here / "run" / "checkpoints").mkdir(parents=True)
    (here / "run" / "config.json").write_text(json.dumps(to_dict(SETTINGS)))
    return here


def take_picture(place: Path) -> dict[str, str]:
    """Every file with its content, and every folder."""
    return {
        path.relative_to(place).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in place.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.mark.slow
@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_it_leaves_nothing_behind(words, place, monkeypatch):
    monkeypatch.chdir(place)
    before = take_picture(place)
    with pytest.raises((UserError, SystemExit)) as ended:
        run(words)
    assert getattr(ended.value, "exit_code", getattr(ended.value, "code", None)) not in (0, None)
    assert take_picture(place) == before


def test_every_command_is_in_the_table():
    groups = {name for name, command in COMMANDS.items() if isinstance(command, Group)}
    rows = {" ".join(words[: 1 + (words[0] in groups)]) for words in REFUSED}
    assert rows == {name for name, _ in list_commands(COMMANDS)} - groups
