"""Runs on images: what they leave, how they resume, and what can be done with them afterwards."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_inference import moejax, validation
from test_run import metrics

from moejax.config import (
    Config,
    DataConfig,
    ImageConfig,
    ImageDataConfig,
    ModelConfig,
    MoEConfig,
    RunConfig,
    from_dict,
    load_config_file,
    to_dict,
)
from moejax.config.errors import ConfigError, RunError, UserError
from moejax.config.material import IMAGES
from moejax.data import tfds_source
from moejax.data.images import InMemory, open_images
from moejax.lab.study.definition import Study
from moejax.lab.study.run_study import run_study
from moejax.lab.study.side_by_side import compare_runs
from moejax.lab.study.train_one import train_one
from moejax.runs.lift import expected_counts, lift
from moejax.runs.records import read_run
from moejax.train import tasks
from moejax.train.training import train

ROOT = Path(__file__).parents[1]


def tiny(directory: Path, **moe) -> Config:
    """A vision transformer of two layers on digits in four patches."""
    settings = {"num_experts": 4, "top_k": 2, "hidden_size": 8, "group_size": 8}
    return Config(
        model=ModelConfig(
            kind="vit",
            image=ImageConfig(size=8, patch_size=4),
            num_layers=2,
            width=16,
            num_heads=2,
            unroll=False,
            moe=MoEConfig(**settings | moe),
        ),
        data=DataConfig(
            source="digits",
            batch_size=16,
            eval_batch_size=128,
            images=ImageDataConfig(shift=1),
        ),
        run=RunConfig(
            directory=str(directory), steps=8, log_every=4, eval_every=4, checkpoint_every=4
        ),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("images") / "run"
    train(tiny(directory, router="v_moe", seating="priority"), name="tiny", command="test")
    return directory


def test_a_run_says_how_many_images_were_right(run, capsys):
    lines = metrics(run)
    last = lines[-1]
    assert last["split"] == "validation" and last["images"] == 360
    assert last["accuracy"] == pytest.approx(1 - last["error_rate"])
    assert not {"bits_per_byte", "perplexity", "text_bytes"} & set(last)
    first = next(line for line in lines if line["split"] == "train")
    assert first["images"] == 4 * 16 and "images_per_second" in first
    summary = json.loads((run / "summary.json").read_text())
    assert summary["classes"] == list("0123456789")
    assert summary["parameters_total"] == sum(
        part["parameters_total"] for part in summary["parts"].values()
    )
    assert not (run / "sample.txt").exists()


def test_a_run_goes_on_with_the_very_images_that_it_began_with(run, tmp_path, monkeypatch):
    """One pixel of an image that is held out is another one."""
    shutil.copytree(run, tmp_path / "run")
    images = open_images(tiny(run).data)
    pixels, classes = map(np.array, zip(*images.validation, strict=True))
    pixels[0, 0, 0] ^= 1
    other = dataclasses.replace(images, validation=InMemory(pixels, classes))
    monkeypatch.setattr(tasks, "open_images", lambda config: other)
    config = tiny(tmp_path / "run", router="v_moe", seating="priority")
    with pytest.raises(RunError, match="changed: image 0 of those held out"):
        train(config, name="tiny", command="test")


def test_counts_by_class_are_those_of_the_evaluation(run):
    found = read_run(run).sorted
    assert found.confusion_VV.sum() == 360
    right = validation(run)[8]["accuracy"]
    assert np.trace(found.confusion_VV) / 360 == pytest.approx(right)
    assert found.asked_LEV.shape == (2, 4, 10)
    per_image = found.asked_LEV.sum(1) / found.confusion_VV.sum(1)
    np.testing.assert_allclose(per_image, 4 * 2)  # patches, choices


def test_the_report_shows_classes(run):
    page = (run / "report.html").read_text()
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    wanted = {"Confusion", "Classes by expert, layer 0", "Classes by expert, layer 1"}
    assert wanted | {"Error rate, %", "Throughput, images a second"} <= set(titles)
    assert "of 360 held-out images right (top-1 accuracy)" in page
    assert "Bits per byte" not in page and "bits per byte" not in page


def test_lift_by_hand():
    """Expert 0 has half of all choices, and all of class 1: twice as many as chance gives it."""
    asked_EV = np.array([[0, 4], [4, 0]])
    assert lift(asked_EV).tolist() == [[0, 2], [2, 0]] and (expected_counts(asked_EV) == 2).all()


@pytest.mark.slow
def test_the_same_command_goes_on_and_ends_as_if_never_stopped(run, tmp_path):
    """From the checkpoint in the middle, as if all that came after it had been lost."""
    again = shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "8")
    (again / "report.html").unlink()
    (again / "classes" / "00000008.npz").unlink()
    config = tiny(again, router="v_moe", seating="priority")
    train(config, name="tiny", command="test")
    assert untimed(again) == untimed(run)
    got, want = (read_run(directory).sorted for directory in (again, run))
    np.testing.assert_array_equal(got.confusion_VV, want.confusion_VV)
    np.testing.assert_array_equal(got.asked_LEV, want.asked_LEV)
    with pytest.raises(RunError, match="data.images.shift: 1 -> 0"):
        images = ImageDataConfig(shift=0)
        data = dataclasses.replace(config.data, images=images)
        train(dataclasses.replace(config, data=data), name="tiny", command="test")


def untimed(directory: Path) -> list[dict]:
    """The lines of metrics without what the clock says."""
    return [{k: v for k, v in x.items() if k != "images_per_second"} for x in metrics(directory)]


@pytest.mark.slow
def test_eval_gives_what_the_run_has_measured(run, capsys):
    given = ["--capacity-factor", "2", "--seating", "priority", "--json"]
    moejax("eval", run, *given)
    got = json.loads(capsys.readouterr().out)
    assert got["accuracy"] == pytest.approx(validation(run)[8]["accuracy"])
    assert got["loss"] == pytest.approx(validation(run)[8]["loss"], rel=1e-5)
    moejax("eval", run, "--capacity-factor", "0.5")
    text = capsys.readouterr().out
    assert re.search(r"accuracy +\d+\.\d\d% \(\d+ of 360 images\), loss", text)
    assert float(re.search(r"dropped (\d+\.\d)%", text)[1]) > 20
    moejax("eval", run)
    assert "dropped 0.0%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval", "RUN", "--data", "stdlib"), "leave out --data and --sequence-length"),
        (("eval", "RUN", "--seating", "priority"), "give --capacity-factor, too"),
        (("eval", "RUN", "--capacity-factor", "0"), "--capacity-factor must be greater than 0"),
        (("eval", "RUN", "--batch-size", "3"), "--batch-size 3 cannot be spread"),
        (("generate", "RUN", "--prompt", "x"), "is a classifier of images: `moejax eval`"),
        (("specialisation", "RUN"), "is a classifier of images: `moejax eval`"),
        (("eval", "RUN", "--weights", "int8"), "only language models are quantised"),
        (("quantise", "RUN", "OUT"), "only language models are quantised"),
        (("export", "RUN", "OUT"), "only language models are exported"),
        (("plan", "cost", "--config", ROOT / "configs/digits.py"), "a plan is of a language model"),
    ],
)
def test_what_is_for_texts_says_so(run, tmp_path, words, message):
    places = {"RUN": run, "OUT": tmp_path / "out"}
    with pytest.raises(UserError, match=message):
        moejax(*(places.get(word, word) for word in words))


@pytest.mark.slow
def test_where_tokens_do_not_choose_nothing_limits_their_choices(tmp_path, capsys):
    soft = {"router": "soft", "group_size": 4, "capacity_factor": 1.0}
    directory = tmp_path / "soft"
    train(tiny(directory, **soft), name="soft", command="test")
    with pytest.raises(ConfigError, match="--model.moe.router soft tokens do not choose"):
        moejax("eval", directory, "--capacity-factor", "0.5")
    capsys.readouterr()
    moejax("eval", directory, "--json")
    got = json.loads(capsys.readouterr().out)
    assert got["loss"] == pytest.approx(validation(directory)[8]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_study_of_images_is_judged_by_the_error_rate(tmp_path):
    routed = tiny(tmp_path)
    dense_model = dataclasses.replace(
        routed.model, moe=dataclasses.replace(routed.model.moe, every=0)
    )
    dense = dataclasses.replace(routed, model=dense_model)
    study = Study(
        title="T", question="Q", runs={"dense": dense, "routed": routed}, baseline="dense"
    )
    comparison = run_study(study, tmp_path / "study", train=train_one, command="test")
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    twin = validation(tmp_path / "study" / "dense")[8]["error_rate"]
    assert results["baseline"]["error_rate"] == pytest.approx(twin)
    assert results["runs"]["routed"]["mean"]["images"] == 8 * 16
    table = (tmp_path / "study" / "table.md").read_text()
    assert "error rate" in table and "images/s" in table and f"{twin:.2%}" in table
    page = (tmp_path / "study" / "study.html").read_text()
    assert "Validation, error rate, %" in page and "bits per byte" not in page.lower()
    assert comparison.measure.key == "error_rate"


def test_runs_of_text_and_of_images_do_not_compare(run, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    (text / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0}\n')
    with pytest.raises(RunError, match="some of these runs are of text and some of images"):
        compare_runs([run, text], command="test")


@pytest.mark.slow
def test_mnist_is_trained_on_what_tfds_gives(tmp_path, monkeypatch):
    """The config as it is, but for two steps on TFDS's own mock data."""
    monkeypatch.setattr(tfds_source, "_is_prepared", lambda builder: True)  # mock data always are
    config = load_config_file(ROOT / "configs/mnist.py")
    run = dataclasses.replace(config.run, directory=str(tmp_path / "run"), steps=2)
    with tfds.testing.mock_data(num_examples=300):
        train(dataclasses.replace(config, run=run), name="mnist", command="test")
    assert metrics(tmp_path / "run")[-1]["images"] == 300
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"] == "TFDS mnist: 300 images to train on, 300 held out"


@pytest.mark.parametrize("name", ["digits", "mnist", "vit_moe", "soft_moe"])
def test_ready_made_configs_are_valid(name):
    config = load_config_file(ROOT / f"configs/{name}.py")
    assert config.model.material is IMAGES
    assert from_dict(Config, to_dict(config)) == config


@pytest.mark.slow
def test_digits_are_learned(tmp_path):
    """What the README says of configs/digits.py."""
    command = [sys.executable, "train.py", "--config", "configs/digits.py"]
    command += ["--run.directory", str(tmp_path / "run")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    lines = metrics(tmp_path / "run")
    assert lines[-1]["accuracy"] >= 0.97
    assert not any(line["dead_experts"] for line in lines)
    assert not any("alarms" in line for line in lines)
