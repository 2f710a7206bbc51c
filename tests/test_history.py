"""Records and settings of a run that have changed, or are gone, are noticed."""

import json
from pathlib import Path

import numpy as np
import pytest

from moejax.commands.check import CheckSettings, check_directory
from moejax.config import Config, changed, to_dict
from moejax.config.errors import RunError
from moejax.runs.checksums import write_checksums
from moejax.runs.history import KEY, explain_run, note_history
from moejax.runs.records import read_run
from moejax.runs.run_directory import RunDirectory

SETTINGS = Config()


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with a checkpoint at step 2, and a line of metrics after it."""
    with RunDirectory(tmp_path / "run") as directory:
        directory.write_config(SETTINGS)
        directory.write_summary({"parameters": 12, "jax": "0.1", "shares": (0.5, 1)})
        for step in (1, 2, 3):
            directory.append_metrics({"step": step, "split": "train", "loss": 1 / step})
            load = np.array([[step]])
            directory.write_load(step, asked_LE=load, seated_LE=load, layers=np.array([0]))
            if step == 2:
                noted = note_history(directory.path, to_dict(SETTINGS))
        place = directory.checkpoints / "2"
        (place / "extra").mkdir(parents=True)
        (place / "extra" / "metadata").write_text(json.dumps({KEY: noted}))
        write_checksums(place)
    return tmp_path / "run"


def rewrite(name: str, old: str, new: str):
    def apply(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))

    return apply


HARM = {
    "a digit": (rewrite("metrics.jsonl", "0.5", "0.7"), "metrics.jsonl is not what was written"),
    "a line": (
        rewrite("metrics.jsonl", '{"step": 1, "split": "train", "loss": 1.0}\n', ""),
        "metrics.jsonl is not what was written up to step 2",
    ),
    "all lines": (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
    "a file": (
        lambda run: (run / "load" / "00000001.npz").unlink(),
        "load/ is not what was written up to step 2: it has 1 files of 2",
    ),
    "a setting": (
        rewrite("config.json", '"top_k": 2', '"top_k": 3'),
        "config.json says model.moe.top_k 3, but checkpoint 2 was saved with 2",
    ),
    "all settings": (lambda run: (run / "config.json").unlink(), "config.json is missing"),
    "half of them": (lambda run: (run / "config.json").write_text("{"), "config.json is missing"),
}


@pytest.mark.parametrize("case", HARM)
def test_what_has_changed_is_named_by_the_report_and_by_check(run, case, capsys):
    harm, words = HARM[case]
    assert explain_run(run) == []
    check_directory(CheckSettings(path=run))
    harm(run)
    assert any(words in damage for damage in read_run(run).damage)
    with pytest.raises(SystemExit, match="1"):
        check_directory(CheckSettings(path=run))
    assert words in capsys.readouterr().out


def test_what_was_written_later_and_settings_that_may_change_are_no_damage(run):
    """So is a checkpoint that is damaged itself, or from before there was a history."""
    rewrite("metrics.jsonl", '"step": 3', '"step": 4')(run)
    rewrite("config.json", '"steps": 1000', '"steps": 2000')(run)
    (run / "load" / "00000003.npz").unlink()
    assert explain_run(run) == []
    rewrite("metrics.jsonl", "0.5", "0.7")(run)
    assert explain_run(run)
    rewrite("checkpoints/2/extra/metadata", KEY, "past")(run)
    assert explain_run(run) == []
    write_checksums(run / "checkpoints" / "2")
    assert explain_run(run) == []


def test_settings_are_compared_with_a_checkpoint_where_config_json_is_gone(run):
    other = changed(SETTINGS, {"model.moe.top_k": 3})
    with RunDirectory(run) as directory, pytest.raises(RunError, match=r"top_k: 2 -> 3"):
        directory.compare(SETTINGS, other)
    with RunDirectory(run) as directory:
        directory.compare(SETTINGS, changed(SETTINGS, {"run.steps": 5}))
        (run / "config.json").write_text('{"model": {"moe": {"router": 3}}')
        with pytest.raises(RunError, match="is damaged: .* Move it away, and the same command"):
            directory.check(SETTINGS)


def test_a_summary_has_a_checksum_of_its_own(run):
    assert read_run(run).damage == ()
    rewrite("summary.json", "12", "13")(run)
    assert read_run(run).damage == ("summary.json is not what was written",)
