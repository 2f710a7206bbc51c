"""Studies that tune and share their trainings: what is chosen, trained, refused, linked and read.

A made-up trainer trains nothing: the measure of a training is what its settings say.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from test_run import metrics, wait_for_step
from test_study import (
    Trainer,
    begin,
    dense,
    make_config,
    stand_in,
    start,
    table_of,
    with_part,
    write_file,
)

import moejax
from moejax.commands.study import StudySettings
from moejax.config import Config, changed
from moejax.config.errors import ConfigError, DivergedError, InUseError, RunError
from moejax.config.files import from_dict
from moejax.lab.study import trainers
from moejax.lab.study.definition import Study
from moejax.lab.study.grid import check_grid, find_edges, list_settings
from moejax.lab.study.identity import name_training
from moejax.lab.study.run_study import run_study
from moejax.lab.study.train_one import train_one
from moejax.lab.study.wanted import Selection
from moejax.runs.directory_lock import DirectoryLock
from moejax.runs.run_directory import RunDirectory
from moejax.runtime.machine import find_commit
from moejax.runtime.stop import Stopped
from moejax.train.tally import Tally

load = moejax.study.load
RATE = "optim.learning_rate"
LOSS = "model.moe.balance.loss_weight"
GRID = {RATE: (0.01, 0.02, 0.04)}


def study(config: Config, **more) -> Study:
    given = {"runs": {"dense": dense(config), "routed": config}, "seeds": (1, 2), "tune": GRID}
    return Study(title="T", question="Q", **given | more)


class Tunable(Trainer):
    """The loss is least at a rate of 0.02 for routed models, and of ``best_dense`` for dense ones;
    it diverges from a rate of ``wild`` on.
    """

    wild = math.inf
    best_dense = 0.02

    def __call__(self, config: Config, **more) -> None:
        if config.optim.learning_rate >= self.wild:
            self.trained.append(more["name"])
            with RunDirectory(Path(config.run.directory)) as run:
                run.write_config(config)
            raise DivergedError("stopped: the loss was not finite.")
        super().__call__(config, **more)

    def line(self, config: Config, run: RunDirectory, step: int) -> dict:
        best = 0.02 if any(config.model.routed_layers) else self.best_dense
        far = abs(math.log2(config.optim.learning_rate / best))
        made = super().line(config, run, step)
        return made | {"bits_per_byte": 2 + far + config.run.seed / 100, "processor_seconds": step}


@pytest.fixture
def config(tiny, tmp_path) -> Config:
    return make_config(tiny, tmp_path)


@pytest.fixture
def tunable(monkeypatch) -> Tunable:
    return stand_in(Tunable(), monkeypatch)


def run(made: Study, directory: Path, file: str = "mine.py", **more) -> dict:
    """Run a study with the store beside it; its results as written."""
    selection = Selection(**{k: more.pop(k) for k in ("only", "seeds", "setting") if k in more})
    given = {"train": train_one, "command": "c", "file": file, "selection": selection}
    run_study(made, directory, **given | more)
    return json.loads((directory / "results.json").read_text())


def test_every_run_takes_its_best_setting_and_trains_with_the_other_seeds(
    config, tmp_path, tunable, capsys
):
    """Dense wants the smallest rate that was tried, so that it is at the edge."""
    tunable.best_dense = 0.01
    results = run(study(config), tmp_path / "s")
    tuning = ["dense-tune1", "dense-tune2", "dense-tune3"]
    assert tunable.trained[:5] == [*tuning, "dense-seed1", "dense-seed2"]
    assert tunable.trained[5:] == [name.replace("dense", "routed") for name in tunable.trained[:5]]
    assert [results["tuning"][name]["chosen"] for name in ("dense", "routed")] == [1, 2]
    assert results["tuning"]["routed"]["edges"] == []
    (edge,) = results["tuning"]["dense"]["edges"]
    words = "is at the edge of what was tried: add smaller values to Study.tune"
    assert edge == f"optim.learning_rate 0.01 {words}"
    row = results["runs"]["routed"]["seeds"][0]
    assert (row["setting"], row["setting_number"], row["seed"]) == ({RATE: 0.02}, 2, 1)
    assert row["command"] == "moejax study mine.py --only routed --seed 1 --setting 2"
    assert json.loads((Path(row["place"]) / "config.json").read_text())["data"]["seed"] == 1
    cells = table_of(tmp_path / "s")
    assert cells["dense"]["setting"] == "learning_rate 0.01 (1 of 3, at the edge)"
    assert cells["routed"]["setting"] == "learning_rate 0.02 (2 of 3)"
    assert edge in (tmp_path / "s/table.md").read_text()
    html = (tmp_path / "s/study.html").read_text()
    assert edge in html and "<h2>Tuning</h2>" in html and "chosen, at the edge" in html
    said = capsys.readouterr().out
    numbers = re.findall(r"^run (\d+) of 10: \S+ has finished: \d\.\d{4} bits/byte$", said, re.M)
    assert numbers == [str(number) for number in range(1, 11)]
    tunable.trained.clear()
    assert run(study(config), tmp_path / "s") == results and tunable.trained == []


def test_a_wider_grid_trains_what_is_new(config, tmp_path, tunable):
    tunable.best_dense = 0.01
    run(study(config), tmp_path / "s")
    tunable.trained.clear()
    wider = study(config, tune={RATE: (0.005, 0.01, 0.02, 0.04)})
    results = run(wider, tmp_path / "s")
    assert tunable.trained == ["dense-tune1", "routed-tune1"]
    assert results["tuning"]["dense"]["edges"] == []
    link = tmp_path / "s/routed-tune3"
    assert json.loads((link / "config.json").read_text())["optim"]["learning_rate"] == 0.02


def test_what_diverged_is_never_chosen_and_what_always_does_is_said(config, tmp_path, tunable):
    tunable.wild = 0.02
    results = run(study(config), tmp_path / "some")
    tuned = results["tuning"]["routed"]
    assert tuned["chosen"] == 1 and [one["status"] for one in tuned["settings"]] == [
        "finished",
        "diverged",
        "diverged",
    ]
    assert "routed: it diverged with setting 2, 3." in (tmp_path / "some/table.md").read_text()
    tunable.wild = 0.0
    results = run(study(config, tune={RATE: (0.03, 0.05)}), tmp_path / "all")
    assert results["tuning"]["routed"]["status"] == "diverged"
    assert [row["status"] for row in results["runs"]["routed"]["seeds"]] == ["diverged"] * 2
    assert table_of(tmp_path / "all")["routed"]["bits per byte"] == "diverged"
    assert "it diverged with every setting" in (tmp_path / "all/table.md").read_text()


def test_two_studies_share_what_they_have_in_common(config, tmp_path, tunable):
    """Under other names, in another order, with a setting that has no effect and another place."""
    first = run(study(config), tmp_path / "one")
    tunable.trained.clear()
    other = changed(config, {"run.sample_tokens": 7, "run.directory": "elsewhere"})
    idle = changed(dense(config), {"model.moe.num_experts": 16})
    plain = {"runs": {"b": changed(other, {RATE: 0.02}), "a": changed(idle, {RATE: 0.02})}}
    second = run(study(config, tune={}, seeds=(1, 2, 3), **plain), tmp_path / "two")
    assert tunable.trained == ["b-seed3", "a-seed3"]
    for one, name in (("routed", "b"), ("dense", "a")):
        places = [of["runs"][n]["seeds"][0]["place"] for of, n in ((first, one), (second, name))]
        assert places[0] == places[1]
    assert (tmp_path / "two/b-seed1").resolve() == (tmp_path / "one/routed-seed1").resolve()


def test_a_name_says_what_a_training_depends_on(config, tmp_path):
    name = name_training(config)
    assert name.startswith("top_k-4x8-top2-12steps-seed0-")
    for change in ({"run.seed": 1}, {"data.seed": 1}, {"optim.beta2": 0.5}, {"run.steps": 13}):
        assert name_training(changed(config, change)) != name, change
    for change in ({"run.directory": "x"}, {"data.prefetch": 9}, {"run.wandb": "p"}):
        assert name_training(changed(config, change)) == name, change
    there = tmp_path / "moved"
    there.mkdir()
    for file in ("a.txt", "held_out"):
        shutil.copy(tmp_path / file, there / file)
    moved = {"data.files": str(there / "a.txt"), "data.validation_files": str(there / "held_out")}
    assert name_training(changed(config, moved)) == name
    (there / "b").mkdir()
    (there / "b/a.txt").write_text("other words\n" * 99)
    other = changed(config, moved | {"data.files": str(there / "b/a.txt")})
    assert name_training(other) != name


def test_a_study_trains_a_part_of_itself_and_a_single_row(config, tmp_path, tunable):
    run(study(config), tmp_path / "s", only=("routed",), seeds=(0,))
    assert tunable.trained == ["routed-tune1", "routed-tune2", "routed-tune3"]
    results = run(study(config), tmp_path / "s", only=("routed",), seeds=(2,))
    assert tunable.trained[3:] == ["routed-seed2"]
    statuses = [row["status"] for row in results["runs"]["routed"]["seeds"]]
    assert statuses == ["not trained", "finished"]
    tunable.trained.clear()
    run(study(config), tmp_path / "fresh", only=("dense",), seeds=(1,), setting=3)
    assert tunable.trained == ["dense-setting3-seed1"]


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"only": ("rooted",)}, "--only rooted: the runs of this study are dense, routed"),
        ({"seeds": (9,)}, "--seed 9: the seeds of dense, routed are 0, 1, 2"),
        ({"setting": 4}, "--setting 4: there are settings from 1 to 3"),
    ],
)
def test_a_part_that_is_not_there_is_refused(config, tmp_path, selection, words):
    with pytest.raises(ConfigError, match=words):
        run(study(config), tmp_path / "s", **selection)


@pytest.mark.parametrize("flag", ["at_once", "threads"])
def test_no_training_at_a_time_and_no_thread_are_refused(flag):
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} must be at least 1, not 0"):
        StudySettings(file=Path("mine.py"), **{flag: 0})


def test_of_what_is_trained_only_the_records_stay_if_so_asked(config, tmp_path, tunable):
    """What was trained before, without being asked so, stays as it is."""
    made = study(config, tune={}, seeds=(1,))

    def save(name: str) -> None:
        (tmp_path / "s" / name / "checkpoints/12").mkdir(parents=True)

    tunable.halfway = save
    run(made, tmp_path / "s", only=("dense",))
    results = run(made, tmp_path / "s", records_only=True)
    assert (tmp_path / "s/dense/checkpoints/12").is_dir()
    assert not (tmp_path / "s/routed/checkpoints").exists()
    tunable.trained.clear()
    assert run(made, tmp_path / "s") == results and tunable.trained == []


def test_a_run_has_its_own_grid_takes_that_of_another_or_other_seeds(config, tmp_path, tunable):
    made = study(
        config,
        runs={"short": config, "own": config, "long": config},
        tune={RATE: (0.01, 0.02, 0.03, 0.04)},
        tune_own={"own": {RATE: (0.01, 0.02), LOSS: (0, 0.01)}},
        tuned_as={"long": "short"},
        seeds_of={"long": (5,)},
    )
    results = run(made, tmp_path / "s")
    assert results["runs"]["long"]["seeds"][0]["setting"] == {RATE: 0.02}
    assert [row["seed"] for row in results["runs"]["long"]["seeds"]] == [5]
    assert table_of(tmp_path / "s")["long"]["setting"] == "learning_rate 0.02 (2 of 4, as short)"
    assert not any(label.startswith("long-tune") for label in tunable.trained)
    # 0.02 is the largest of two; nothing lies below a coefficient of 0.
    (edge,) = results["tuning"]["own"]["edges"]
    assert "add larger values to Study.tune_own['own']" in edge


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tune": []}, "Study.tune must be a dict such as"),
        ({"tune": {RATE: 0.1}}, r"Study.tune\['optim.learning_rate'\] must be a tuple of values"),
        ({"tune": {RATE: (0.2, 0.1)}}, "different values in rising order, not .0.2, 0.1"),
        ({"tune": {RATE: (0.1, 0.1)}}, "different values in rising order"),
        ({"tune": {(RATE, LOSS): (0.1, 0.2)}}, "needs a tuple of 2 for each value"),
        ({"tune": {RATE: (0.1,), (RATE, LOSS): ((0.1, 0),)}}, "learning_rate on two axes"),
        ({"tune": {3: (0.1,)}}, "has 3 for a field"),
        ({"tune": {"optim.rate": (0.1, 0.2)}}, r"dense with optim.rate 0.1: there is no setting"),
        ({"tune": {RATE: (-1, 0.2)}}, "dense with optim.learning_rate -1: --optim.learning-rate"),
        ({"tune": {"run.steps": (10, 20)}}, "the runs do not compare: run.steps is 10 in dense"),
        ({"seeds": (0, 1)}, r"Study.seeds \(0, 1\) has the seed 0 .* Write \(1, 2\), or another"),
        ({"seeds_of": {"dense": (0,)}}, r"Study.seeds_of\['dense'\] \(0,\) has the seed 0"),
        ({"seeds_of": {"thin": (1,)}}, "Study.seeds_of must be a dict of tuples"),
        ({"tune_seed": -1}, "Study.tune_seed must be a whole number"),
        ({"tune_own": {"thin": GRID}}, r"Study.tune_own must be .* \(dense, routed\)"),
        (
            {"tune_own": {"routed": {RATE: (0.01, 0.02)}}},
            "dense would be tried with 3 settings and routed with 2",
        ),
        ({"tuned_as": {"dense": "thin"}}, "Study.tuned_as must be a dict from a run"),
        ({"tuned_as": {"dense": "dense"}}, "dense takes the setting of dense, so that dense must"),
    ],
)
def test_a_tuning_that_is_not_fair_is_refused(config, more, words):
    with pytest.raises(ConfigError, match=words):
        study(config, **more)


def test_a_seed_may_judge_where_nothing_is_tuned(config):
    one = study(config, seeds=(0, 1), tune={RATE: (0.01,)})
    assert one.settings_of("dense") == ({RATE: 0.01},) and not one.tunes


def test_axes_have_edges_only_where_something_lies_beyond(config):
    moved = {("model.moe.top_k", "model.moe.capacity_factor"): ((2, 1.0), (3, 2.0))}
    cases = (
        (GRID, {RATE: 0.02}, []),
        (GRID, {RATE: 0.04}, [("optim.learning_rate 0.04", "larger")]),
        ({RATE: (0.01, 0.02)}, {RATE: 0.01}, [("optim.learning_rate 0.01", "smaller")]),
        ({RATE: (0.01,)}, {RATE: 0.01}, []),
        ({LOSS: (0, 0.01, 0.1)}, {LOSS: 0}, []),
        ({LOSS: (0.0, 0.01)}, {LOSS: 0.0}, []),
        ({LOSS: (0.0, 0.01)}, {LOSS: 0.01}, [(f"{LOSS} 0.01", "larger")]),
        ({LOSS: (0.001, 0.01)}, {LOSS: 0.001}, [(f"{LOSS} 0.001", "smaller")]),
        ({"optim.schedule": ("cosine", "wsd")}, {"optim.schedule": "cosine"}, []),
    )
    for grid, chosen, edges in cases:
        check_grid("g", grid)
        assert find_edges(config, grid, chosen) == edges, grid
    found = find_edges(config, moved, list_settings(moved)[1])
    assert [beyond for _, beyond in found] == ["larger"]
    assert find_edges(dense(config), {LOSS: (0.001, 0.01)}, {LOSS: 0.001}) == []  # no effect there


def test_what_another_study_trains_is_left_to_it(config, tmp_path, tunable, monkeypatch):
    """The directory of the first run is in use: the second one comes first, then it is waited
    for."""
    made = study(config, tune={}, seeds=(1,))
    place = (
        tmp_path
        / "trained"
        / name_training(changed(made.runs["dense"], {"run.seed": 1, "data.seed": 1}))
    )
    held = RunDirectory(place)
    rests = []

    def rest(_self, seconds: float) -> None:
        rests.append(seconds)
        held.__exit__(None)

    monkeypatch.setattr("moejax.lab.study.trainers.Here.rest", rest)
    run(made, tmp_path / "s")
    assert tunable.trained == ["routed", "dense"] and len(rests) == 1


def test_a_training_that_is_taken_meanwhile_is_waited_for(config, tmp_path, tunable):
    """Between the look and the start another study takes it, and ends it."""
    calls = []

    def take(name: str) -> None:
        calls.append(name)
        if len(calls) == 1:
            raise InUseError("another training is running")

    tunable.halfway = take
    results = run(study(config, tune={}, seeds=(1,)), tmp_path / "s")
    assert calls == ["dense", "dense", "routed"]
    assert results["runs"]["dense"]["status"] == "finished"


def test_runs_of_an_earlier_version_move_to_the_store(config, tmp_path, tunable):
    """They lie in the study's own directory, each under its label. One has other settings."""
    made = study(config, tune={}, seeds=(1, 2))
    directory = tmp_path / "s"
    old = changed(config, {"run.seed": 1, "data.seed": 1})
    for name, beta2 in (("routed-seed1", 0.95), ("dense-seed1", 0.5)):
        one = changed(old if name < "r" else old, {"optim.beta2": beta2})
        one = dense(one) if name.startswith("dense") else one
        one = changed(one, {"run.directory": str(directory / name)})
        tunable(one, name=name, command="c", beside=lambda left: "")
    tunable.trained.clear()
    results = run(made, directory)
    assert tunable.trained == ["dense-seed1", "dense-seed2", "routed-seed2"]
    assert results["runs"]["routed"]["seeds"][0]["status"] == "finished"
    assert (directory / "routed-seed1").is_symlink()
    betas = {
        json.loads((place / "config.json").read_text())["optim"]["beta2"]
        for place in (tmp_path / "trained").glob("dense-*seed1-*")
    }
    assert betas == {0.5, 0.95}


def test_results_are_read_as_plain_rows(config, tmp_path, tunable):
    run(study(config, baseline="dense"), tmp_path / "s")
    for path in (tmp_path / "s", tmp_path / "s/results.json"):
        read = load(path)
        assert (read.title, read.measure, read.baseline) == ("T", "bits_per_byte", "dense")
        assert read.arms == ("dense", "routed") and read.edges == {}
        assert [row["seed"] for row in read.of("routed")] == [1, 2]
        assert read.chosen == {"dense": {RATE: 0.02}, "routed": {RATE: 0.02}}
        assert [row["chosen"] for row in read.tuning_rows] == [False, True, False] * 2
    row = read.of("routed")[0]
    assert row["measure"] == row["bits_per_byte"] == 2.01 and row["processor_seconds"] == 12
    assert row["curve"] == {
        "step": [12],
        "tokens": [1536],
        "measure": [2.01],
        "seconds": [3],
        "processor_seconds": [12],
    }
    assert row["training_curve"]["step"] == [6, 12]
    assert read.curves("routed")[0] == {"arm": "routed", "seed": 1} | {
        name: values[0] for name, values in row["curve"].items()
    }
    with pytest.raises(KeyError, match="there is no run none; there are dense, routed"):
        read.of("none")
    from moejax.study import load as imported

    assert imported is load


@pytest.mark.parametrize("content", [None, "{", "[]", '{"runs": 3}'])
def test_what_are_no_results_is_said(tmp_path, content):
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(RunError, match=r"results.json .*Give the results.json of a study"):
        load(file)


def test_results_of_earlier_versions_are_read(tmp_path):
    row = {"seed": 0, "directory": "a", "status": "finished", "error_rate": 0.25}
    runs = {"a": {"status": "finished", "mean": {"error_rate": 0.25}, "seeds": [row]}}
    about = {"title": "T", "question": "Q", "command": "c", "baseline": None, "runs": runs}
    (tmp_path / "results.json").write_text(json.dumps(about))
    read = load(tmp_path)
    assert (read.measure, read.rows[0]["measure"], read.curves()) == ("error_rate", 0.25, [])


def worker(monkeypatch, code: str) -> None:
    """Let processes run this code, and train nothing."""
    head = "import json, os, signal, sys, time; job = json.loads(sys.stdin.readline())\n"
    monkeypatch.setattr(trainers, "WORKER", ("-c", head + code))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('error: no memory.', file=sys.stderr); sys.exit(2)", "^dense: no memory.$"),
        ("sys.exit(3)", "dense: its process ended by exit code 3; .*output.txt has what"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "dense: its process ended by SIGKILL"),
    ],
)
def test_a_process_that_fails_ends_the_study_with_its_words(
    config, tmp_path, monkeypatch, code, words
):
    """The other one, which would go on for ever, is ended, too."""
    stay = f"if job['label'] == 'routed':\n    print(os.getpid(), flush=True)\n{WAIT}"
    worker(monkeypatch, f"{stay}else:\n    time.sleep(0.3)\n    {code}")
    with pytest.raises(RunError, match=words):
        run(study(config, tune={}, seeds=(1,)), tmp_path / "s", at_once=2)
    (output,) = (tmp_path / "trained").glob("top_k*/output.txt")
    with pytest.raises(ProcessLookupError):
        os.kill(int(output.read_text().split()[0]), 0)


WAIT = "    time.sleep(60)\n"


def test_a_signal_lets_all_processes_save_and_ends_the_study(config, tmp_path, monkeypatch):
    saves = "    signal.signal(15, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
    worker(monkeypatch, f"if True:\n{saves}    print('begun', flush=True)\n{WAIT}")

    def send() -> None:
        while len(outputs := list((tmp_path / "trained").glob("*/output.txt"))) < 2 or any(
            "begun" not in one.read_text() for one in outputs
        ):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Stopped) as stopped:
        run(study(config, tune={}, seeds=(1,)), tmp_path / "s", at_once=2)
    sender.join()
    assert stopped.value.code == 143
    said = [one.read_text() for one in (tmp_path / "trained").glob("*/output.txt")]
    assert said == ["begun\nsaved\n"] * 2


def test_a_process_gets_its_threads_its_job_and_may_leave_it_to_another(
    config, tmp_path, monkeypatch
):
    """The first two find their trainings in use, and later ones do nothing."""
    shown = "print(json.dumps([job, os.environ['NPROC'], os.environ['XLA_FLAGS']]), flush=True)"
    here = "first = not os.path.exists(job['compiled'] + job['label'])"
    mark = "open(job['compiled'] + job['label'], 'w')"
    worker(monkeypatch, f"{shown}\n{here}\n{mark}\nsys.exit(75 if first else 0)")
    run(study(config, tune={}, seeds=(1,)), tmp_path / "s", at_once=2, threads=1)
    for output in (tmp_path / "trained").glob("*/output.txt"):
        first, second = map(json.loads, output.read_text().splitlines())
        assert first == second
        job, threads, flags = first
        assert from_dict(Config, job["config"]).run.seed == 1
        assert (threads, flags.split()[-1]) == ("1", "--xla_cpu_multi_thread_eigen=false")


def test_a_run_that_an_earlier_version_began_does_not_know_its_processor_time():
    saved = Tally(step=3, seconds=2.0, processor_seconds=1.5).to_json()
    assert Tally.from_json(saved).processor_seconds == 1.5
    del saved["processor_seconds"]
    tally = Tally.from_json(saved)
    assert math.isnan(tally.processor_seconds)
    assert json.loads(json.dumps(tally.to_json(), allow_nan=False))["processor_seconds"] is None


def test_the_code_of_a_checkout_is_known_and_that_of_an_installed_package_is_not(tmp_path):
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    assert find_commit(tmp_path) is None
    git("init")
    (tmp_path / "a").write_text("one")
    git("add", "a")
    git("commit", "-m", "words")
    commit = find_commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{7,}", commit)
    (tmp_path / "a").write_text("two")
    assert find_commit(tmp_path) == f"{commit}-dirty"
    (tmp_path / "installed").mkdir()
    assert find_commit(tmp_path / "installed") is None


@pytest.mark.slow
def test_side_by_side_as_one_after_the_other_and_killed(config, tmp_path):
    """kill -9 of the command ends its trainings, and the same command goes on; figures are those of
    trainings one after the other, to the last digit.
    """
    config = with_part(with_part(config, "run", steps=24), "model", num_layers=1)
    file = tmp_path / "mine.py"
    write_file(file, study(config, runs={"dense": dense(config)}, tune={}, seeds=(0, 1)))
    words = ("-m", "moejax", "study", str(file), "--json")
    beside = (*words, "--directory", str(tmp_path / "beside/s"), "--at-once", "2")
    alone = (*words, "--directory", str(tmp_path / "alone/s"), "--threads", "1")
    process = begin(*beside, JAX_PLATFORMS="cpu")
    places = [tmp_path / f"beside/s/dense-seed{seed}" for seed in (0, 1)]
    wait_for_step(places[0], 3, process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any(DirectoryLock.is_held(place) for place in places):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "SIGTERM: saved step" in (places[0] / "output.txt").read_text()
    done = [start(*command, JAX_PLATFORMS="cpu") for command in (beside, alone)]
    assert [one.returncode for one in done] == [0, 0], done[0].stderr + done[1].stderr
    for place in places:
        assert metrics(place) == metrics(tmp_path / "alone/s" / place.name)
        assert len(metrics(place)) > 2
    rows = load(tmp_path / "beside/s").rows
    assert {row["machine"]["threads"] for row in load(tmp_path / "alone/s").rows} == {1}
    assert all(row["processor_seconds"] > 0 for row in rows)
