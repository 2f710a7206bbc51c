"""A run may begin from a model by one path, and resume with another that leads to it."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from moejax.config import Config, changed
from moejax.config.errors import RunError
from moejax.inference.opening import open_model
from moejax.runs.run_directory import RunDirectory
from moejax.runs.same_model import is_same_model

KINDS = {
    "an import": "model/d/1",
    "a run": "checkpoints/20/state/d/1",
    "a released model": "model.safetensors",
}


def make_model(place: Path, file: str, content: bytes = b"weights") -> Path:
    (place / file).parent.mkdir(parents=True)
    (place / file).write_bytes(content)
    (place / "config.json").write_text("{}")
    return place


@pytest.mark.parametrize("file", KINDS.values(), ids=KINDS)
def test_place_or_content_is_compared(tmp_path, file):
    model = make_model(tmp_path / "model_a", file)
    (tmp_path / "link").symlink_to(model)
    shutil.copytree(model, tmp_path / "copy")
    other = make_model(tmp_path / "other", file, b"weighty")
    assert is_same_model(model, tmp_path / "link") and is_same_model(model, tmp_path / "copy")
    assert is_same_model(model, tmp_path / "." / "model_a")
    assert not is_same_model(model, other) and not is_same_model(other, tmp_path)
    assert not is_same_model(tmp_path / "gone", tmp_path / "gone too")


def test_of_a_run_the_last_checkpoint_counts(tmp_path):
    one = make_model(tmp_path / "one", "checkpoints/9/state/a", b"early")
    other = make_model(tmp_path / "other", "checkpoints/9/state/a", b"early")
    make = one / "checkpoints/10/state/a"
    make.parent.mkdir(parents=True)
    make.write_bytes(b"later")
    assert not is_same_model(one, other)


def begin(run: Path, place: str) -> None:
    config = changed(Config(), {"run.init_from": place})
    with RunDirectory(run) as directory:
        directory.check(config)
        directory.write_config(config)
        directory.write_summary({"folder": os.getcwd()})
        directory.append_metrics({"step": 1, "split": "train"})


@pytest.mark.parametrize("other", ["../a/model", "{}/a/model", "{}/copy", "model"])
def test_a_run_resumes_with_the_same_model_by_another_path(tmp_path, monkeypatch, other):
    model = make_model(tmp_path / "a" / "model", KINDS["an import"])
    shutil.copytree(model, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "run", "a/model")
    monkeypatch.chdir(tmp_path / "a")  # and from another folder
    begin(tmp_path / "run", other.format(tmp_path))


def test_another_model_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "a", KINDS["an import"])
    make_model(tmp_path / "b", KINDS["an import"], b"weighty")
    begin(tmp_path / "run", "a")
    for other in ("b", "gone"):
        with pytest.raises(RunError, match=f"run.init_from: 'a' -> '{other}'"):
            begin(tmp_path / "run", other)


def test_checkpoints_without_their_settings_are_no_unknown_directory(tmp_path):
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(RunError, match="has checkpoints, but no config.json"):
        open_model(tmp_path, mesh=None, layout=replace(Config().mesh))  # type: ignore[arg-type]
