"""A run: what it leaves, and what happens when it is killed, changed or hurt."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from moejax.commands import train as train_command
from moejax.config import (
    BalanceConfig,
    ConfigError,
    MeshConfig,
    from_dict,
    load_config_file,
    to_dict,
)
from moejax.config import Config as ConfigTree
from moejax.config.errors import RunError
from moejax.runs.run_directory import RunDirectory
from moejax.runtime.stop import Stopped
from moejax.train import environment, training
from moejax.train.training import train

ROOT = Path(__file__).parents[1]
TIMING = ("seconds", "processor_seconds", "tokens_per_second", "mfu", "hfu", "bandwidth")


@pytest.fixture
def config(tiny, tmp_path) -> ConfigTree:
    """The tiny model on a few files of this project, to be run in ``tmp_path/run``."""
    for name, source in (("a", "moejax/config/moe.py"), ("b", "moejax/moe/balance.py")):
        (tmp_path / f"{name}.txt").write_bytes((ROOT / source).read_bytes())
    (tmp_path / "held_out").write_bytes((ROOT / "train.py").read_bytes())
    data = dataclasses.replace(
        tiny.data,
        source="files",
        files=str(tmp_path / "*.txt"),
        validation_files=str(tmp_path / "held_out"),
    )
    run = dataclasses.replace(tiny.run, directory=str(tmp_path / "run"))
    return dataclasses.replace(tiny, data=data, run=run)


def with_run(config: ConfigTree, **changes) -> ConfigTree:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))


def with_moe(config: ConfigTree, **changes) -> ConfigTree:
    moe = dataclasses.replace(config.model.moe, **changes)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, moe=moe))


def metrics(directory: Path | str) -> list[dict]:
    lines = Path(directory, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def command(config: ConfigTree, folder: Path, *flags: str) -> list[str]:
    """``python train.py --config FILE`` for this config."""
    file = folder / "tiny.py"
    file.write_text(
        "from moejax.config import Config, from_dict\n\n\n"
        f"def get_config():\n    return from_dict(Config, {to_dict(config)!r})\n"
    )
    return [sys.executable, str(ROOT / "train.py"), "--config", str(file), *flags]


def start(words: list[str], **options) -> subprocess.Popen:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=env | options.pop("env", {}), **pipes, **options)


def kept_programs(folder: Path) -> dict[str, str]:
    """The environment by which a process finds what others have compiled."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def wait_for_step(directory: Path, step: int, process: subprocess.Popen) -> None:
    for _ in range(4800):  # a study trains others before
        file = directory / "metrics.jsonl"
        if file.exists() and any(line["step"] >= step for line in metrics(directory)):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no progress")


def train_by_words(words: list[str]) -> None:
    """What ``train.py`` does."""
    train_command.train(words, "python train.py", ["python", "train.py"])


def quick(config: ConfigTree, **changes) -> None:
    train(with_run(config, **changes), name="tiny", command="test")


def test_a_run_leaves_everything_behind_and_knows_that_it_is_finished(config, capsys):
    writer = MagicMock()
    train(config, name="tiny", command="test", writers=[writer])
    directory = Path(config.run.directory)
    said = capsys.readouterr().out
    assert "parameters" in said and "FLOPs a token" in said and "8 x cpu" in said
    last = said.strip().splitlines()[-1]
    lines = metrics(directory)
    assert last.startswith(f"validation bits per byte: {lines[-1]['bits_per_byte']:.4f}")
    assert [(x["step"], x["split"]) for x in lines] == [
        (3, "train"), (6, "train"), (6, "validation"), (9, "train"), (12, "train"),
        (12, "validation"),
    ]  # fmt: skip
    given = [call.args for call in writer.write.call_args_list]
    assert [(x["step"], x["split"]) for x, _ in given] == [(x["step"], x["split"]) for x in lines]
    assert given[0][1].shape == (2, 4) and given[-1][1] is None  # loads, of the training lines
    writer.close.assert_called_once_with()
    for line in lines:
        assert 0 <= line["dropped_fraction"] < 1
        assert {"loss", "balance_loss", "z_loss", "max_violation", "dead_experts"} <= set(line)
    assert lines[-1]["text_bytes"] == (ROOT / "train.py").stat().st_size
    assert lines[-1]["bits_per_byte"] < lines[2]["bits_per_byte"] < 9
    saved = json.loads((directory / "config.json").read_text())
    assert from_dict(ConfigTree, saved) == config
    load = np.load(directory / "load" / "00000012.npz")
    assert load["asked_LE"].shape == (2, 4)
    assert load["asked_LE"].sum() == 2 * 2 * load["tokens"]
    # Two evaluations: the second one says how many choices of the first it repeats.
    assert "router_saturation" not in lines[2] and 0 < lines[-1]["router_saturation"] < 1
    assert "<svg" in (directory / "report.html").read_text()
    assert (directory / "sample.txt").read_text().startswith("def ")
    quick(config)
    said = capsys.readouterr().out
    assert "This run is finished" in said and "--run.steps" in said
    assert metrics(directory) == lines


@pytest.mark.slow
def test_a_part_is_evaluated_more_often_and_changes_nothing_else(config, tmp_path):
    config = with_run(config, steps=6, eval_every=6, sample_tokens=0)
    quick(config, directory=str(tmp_path / "without"))
    quick(config, directory=str(tmp_path / "with"), part_every=2)
    found = metrics(tmp_path / "with")
    assert [x for x in found if x["split"] != "part"] == metrics(tmp_path / "without")
    parts, whole = [x for x in found if x["split"] == "part"], found[-1]
    assert [x["step"] for x in parts] == [2, 4, 6]
    assert 0 < parts[-1]["text_bytes"] < whole["text_bytes"] / 2
    assert parts[-1]["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=0.05)
    assert set(parts[-1]) == {*whole, "router_saturation"}
    assert len(list((tmp_path / "with" / "part_choices").iterdir())) == 3
    assert "a part of it" in (tmp_path / "with" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"router": "expert_choice"}, "--model.moe.router expert_choice looks at later tokens"),
        ({"seating": "priority"}, "--model.moe.seating priority looks at later tokens"),
    ],
)
def test_a_router_that_is_not_causal_trains_under_a_warning(config, capsys, settings, words):
    """Experts that choose among the tokens to come generate no text; seats do not matter there."""
    with pytest.warns(UserWarning, match="looks at later tokens") as warned:
        quick(with_moe(config, **settings), steps=4, eval_every=4)
    mine = [str(w.message) for w in warned if "looks at later" in str(w.message)]
    assert len(mine) == 1 and mine[0].startswith(words) and "is generated" in mine[0]
    assert metrics(config.run.directory)[-1]["bits_per_byte"] < 9
    refused = "no sample: no text can be generated with --model.moe.router expert_choice: each"
    assert (refused in capsys.readouterr().out) == ("router" in settings)
    assert Path(config.run.directory, "sample.txt").exists() == ("seating" in settings)


@pytest.mark.slow
def test_nothing_is_compiled_twice(config, monkeypatch):
    """Logging, evaluation, checkpoints and the change of the state's source compile nothing."""
    jobs = []
    make_programs = training.make_programs

    def remember(*arguments):
        jobs.append(make_programs(*arguments))
        return jobs[-1]

    monkeypatch.setattr(training, "make_programs", remember)
    for steps in (6, 8):  # the second goes on from a checkpoint
        train(with_run(config, steps=steps, eval_every=2, log_every=2), name="tiny", command="")
    for job in jobs:
        assert job.step.func._cache_size() == 1
        assert job.eval_step.func._cache_size() == 1


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_steps(config, tmp_path):
    quick(config, eval_every=100, sample_tokens=0)
    quick(config, eval_every=100, sample_tokens=0, steps=15)
    lines = metrics(config.run.directory)
    assert [x["step"] for x in lines if x["split"] == "train"] == [3, 6, 9, 12, 15]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_at_any_moment_a_run_ends_as_if_it_never_had_been(config, tmp_path, devices):
    """kill -9 twice; every line of metrics is that of a run left alone. The router draws random
    numbers, and its selection bias is a part of the state, with what its control remembers."""
    noisy = {"router": "noisy_top_k", "router_jitter": 0.1, "expert_dropout": 0.1}
    moved = BalanceConfig(bias_update="pid", bias_rate=0.01)
    config = with_moe(with_run(config, steps=24, sample_tokens=0), balance=moved, **noisy)
    options = {"env": {"JAX_NUM_CPU_DEVICES": str(devices)}}
    alone = with_run(config, directory=str(tmp_path / "alone"))
    reference = start(command(alone, tmp_path), **options)
    said, errors = reference.communicate(timeout=300)
    assert reference.returncode == 0, errors
    words = command(config, tmp_path)
    for step in (6, 15):
        process = start(words, **options)
        wait_for_step(Path(config.run.directory), step, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(words, **options)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "from step" in said
    assert metrics(config.run.directory) == metrics(alone.run.directory)


def test_sigterm_saves_and_says_so(config, tmp_path):
    words = command(with_run(config, steps=100_000), tmp_path)
    process = start(words)
    wait_for_step(Path(config.run.directory), 6, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    step = int(said.split("SIGTERM: saved step ")[1].split()[0])
    assert (Path(config.run.directory) / "checkpoints" / str(step)).is_dir()


@pytest.mark.slow
def test_another_mesh_and_form_go_on_with_the_same_losses(config, tmp_path, monkeypatch):
    """Saved by eight devices on the data axis; resumed where everything is spread over all axes."""
    alone = with_run(config, directory=str(tmp_path / "alone"), sample_tokens=0)
    quick(alone)

    class StopAtStepSeven(environment.StopSignals):
        calls = 0

        def check(self):
            self.calls += 1
            return signal.SIGTERM if self.calls == 7 else None

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(environment, "StopSignals", StopAtStepSeven)
        quick(config)
    layout = MeshConfig(context=2, expert=2, model=2, fsdp=True, expert_parallel="ragged")
    quick(dataclasses.replace(config, mesh=layout), sample_tokens=0)
    got, want = metrics(config.run.directory), metrics(alone.run.directory)
    for one, other in zip(got, want, strict=True):
        assert one.pop("split") == other.pop("split")
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_a_checkpoint_cut_short_is_set_aside_and_the_one_before_it_used(config, tmp_path, capsys):
    config = with_run(config, eval_every=100, sample_tokens=0)
    quick(config)
    want = metrics(config.run.directory)
    directory = Path(config.run.directory)
    steps = sorted(int(p.name) for p in (directory / "checkpoints").iterdir())
    files = [p for p in (directory / "checkpoints" / "12").rglob("*") if p.is_file()]
    for file in files:
        if file.stat().st_size > 1000:
            os.truncate(file, file.stat().st_size // 2)
    with pytest.warns(UserWarning, match="checkpoint 12 cannot be read"):
        quick(config)
    assert f"from step {steps[-2]}" in capsys.readouterr().out
    assert metrics(directory) == want
    assert (directory / "damaged_checkpoints" / "12").is_dir()


@pytest.mark.slow
def test_another_run_is_refused_by_name_and_nothing_is_harmed(config, tmp_path):
    """Other settings, other text, and checkpoints none of which can be read."""
    quick(config, steps=3, eval_every=3, sample_tokens=0)
    before = metrics(config.run.directory)
    other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, beta2=0.5))
    with pytest.raises(RunError, match=r"optim.beta2: 0.95 -> 0.5"):
        quick(other)
    text = (tmp_path / "a.txt").read_bytes()
    (tmp_path / "a.txt").write_bytes(text * 2)
    with pytest.raises(RunError, match="was trained on .* but now there is"):
        quick(config)
    (tmp_path / "a.txt").write_bytes(text)
    checkpoints = Path(config.run.directory) / "checkpoints"
    for file in [p for p in checkpoints.rglob("*") if p.is_file() and p.stat().st_size > 1000]:
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(RunError, match="no checkpoint in .* can be read"):
        quick(config)
    assert metrics(config.run.directory) == before
    assert (checkpoints / "3").is_dir()


def test_a_run_that_never_began_may_be_changed(config):
    with RunDirectory(Path(config.run.directory)) as run:
        run.write_config(config)
        other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, beta2=0.5))
        run.check(other)


def test_two_trainings_in_one_directory_are_refused(config):
    with (
        RunDirectory(Path(config.run.directory)),
        pytest.raises(RunError, match="another training is running"),
    ):
        quick(config)


def test_a_directory_that_cannot_be_written_is_named(config):
    with pytest.raises(RunError, match=r"/dev/null/run.*--run.directory"):
        quick(config, directory="/dev/null/run")


@pytest.mark.slow
def test_a_full_disk_ends_in_a_message_and_harms_nothing(config, tmp_path):
    """Files may not grow past a limit, as on a full disk; what was saved before still resumes."""
    config = with_run(config, sample_tokens=0)
    quick(config, steps=4)
    limited = f"ulimit -f 8; trap '' XFSZ; exec {shlex.join(command(config, tmp_path))}"
    process = start(["bash", "-c", limited], env={"JAX_NUM_CPU_DEVICES": "8"})
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    assert "error: a checkpoint could not be saved" in errors
    assert "Traceback" not in errors
    quick(config)
    assert metrics(config.run.directory)[-1]["step"] == 12


@pytest.mark.slow
def test_losses_that_are_not_finite_stop_the_run(config):
    broken = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, learning_rate=1e30, warmup_fraction=0.0)
    )
    with pytest.raises(RunError, match="not finite in 3 steps in a row") as error:
        quick(broken, max_skipped_in_a_row=3)
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.moe.num-expert", "8"], "--model.moe.num-experts"),
        (["--model.moe.num-experts", "many"], "many"),
        (["--model.moe.top-k", "9"], "more experts than there are"),
        (["--model.num-heads", "5"], "not divisible by --model.num-heads 5"),
        (["--model.moe.capacity-factor", "0"], "must be greater than 0"),
        (["--model.moe.router", "top_k", "--model.moe.top-k", "1"], "router switch"),
        (["--data.files", "/nowhere/*"], "no file matches"),
        (["--mesh.data", "3"], "needs 3 devices"),
        (["--data.source", "tfds", "--data.tfds-name", "lm1bb"], "lm1b"),
    ],
)
def test_wrong_flags_end_in_one_message_and_exit_code_two(
    config, tmp_path, run_command, flags, words
):
    done = run_command(*command(config, tmp_path, *flags)[2:], act=train_by_words)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr


def test_a_wrong_flag_ends_the_process_with_one_message(config, tmp_path):
    began = time.monotonic()
    process = start(command(config, tmp_path, "--model.moe.num-expert", "8"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--model.moe.num-experts" in errors and "Traceback" not in errors
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no config file"),
        ("x = 1", "no function get_config"),
        ("def get_config(: pass", "cannot be run"),
        ("def get_config(): return 3", "must return a Config, not int"),
        ("def get_config(): 1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(0)", "SystemExit"),
    ],
)
def test_a_broken_config_file_is_explained(tmp_path, run_command, text, words):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    done = run_command("--config", file, act=train_by_words)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda f: f.stem)
def test_every_config_loads_and_tells_its_command(file):
    config = load_config_file(file)
    assert f"python train.py --config configs/{file.name}" in file.read_text()
    assert from_dict(ConfigTree, json.loads(json.dumps(to_dict(config)))) == config


def test_config_json_with_an_unknown_field_is_refused():
    with pytest.raises(ConfigError, match=r"model\.moe\.wings"):
        from_dict(ConfigTree, {"model": {"moe": {"wings": 2}}})
