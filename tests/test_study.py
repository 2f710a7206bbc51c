"""Studies: what is trained and what is not, the figures by hand, the page, and wrong input."""

import dataclasses
import gc
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from test_run import TIMING, kept_programs, metrics, wait_for_step

from moejax.config import Config, changed, to_dict
from moejax.config.errors import ConfigError, DivergedError, RunError
from moejax.lab.study.baseline import make_baseline, reach
from moejax.lab.study.definition import Study, load_study_file
from moejax.lab.study.results import Comparison, Outcome
from moejax.lab.study.run_study import run_study
from moejax.lab.study.study_page import study_html
from moejax.lab.study.train_one import train_one
from moejax.lab.study.wanted import Selection
from moejax.runs.pages.charts import MOST_POINTS, Series, line_chart
from moejax.runs.pages.ranks import Rank, rank_chart
from moejax.runs.records import Run
from moejax.runs.run_directory import RunDirectory
from moejax.runtime import reuse
from moejax.runtime.stop import Stopped
from moejax.train import training
from moejax.train.progress import Beside

ROOT = Path(__file__).parents[1]
LAYERS, EXPERTS = 2, 4


@pytest.fixture
def config(tiny, tmp_path) -> Config:
    """The tiny model on two files of this project."""
    return make_config(tiny, tmp_path)


def make_config(tiny: Config, tmp_path: Path) -> Config:
    """The tiny model on two files of this project, to be laid in ``tmp_path``."""
    (tmp_path / "a.txt").write_bytes((ROOT / "moejax/moe/balance.py").read_bytes())
    (tmp_path / "held_out").write_bytes((ROOT / "train.py").read_bytes())
    files = {"files": str(tmp_path / "a.txt"), "validation_files": str(tmp_path / "held_out")}
    data = dataclasses.replace(tiny.data, source="files", **files)
    run = dataclasses.replace(tiny.run, sample_tokens=0)
    return dataclasses.replace(tiny, data=data, run=run)


def with_part(config: Config, part: str, **changes) -> Config:
    return dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **changes)}
    )


def dense(config: Config) -> Config:
    return changed(config, {"model.moe.every": 0})


def study(config: Config, seeds=(0,), baseline: str | None = None, **more: Config) -> Study:
    return Study(
        title="Two of <them>",
        question="Which & why?",
        runs={"dense": dense(config), "routed": config, **more},
        seeds=seeds,
        baseline=baseline,
    )


def compare(made: Study, directory: Path, only=(), **more) -> dict:
    """Run a study, whose trainings lie below its directory; its results as written."""
    options = {"store": directory / "trained", "selection": Selection(only=tuple(only))} | more
    run_study(made, directory, train=train_one, command="moejax study <mine>.py", **options)
    return json.loads((directory / "results.json").read_text())["runs"]


def lines_of(directory: Path, split: str) -> list[dict]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


def table_of(directory: Path) -> dict[str, dict[str, str]]:
    """The cells of ``table.md`` by run and column."""
    made = (directory / "table.md").read_text()
    lines = [line for line in made.splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


class Trainer:
    """Stands in for the trainer: writes plausible files at once, and remembers what it trained."""

    def __init__(self):
        self.trained: list[str] = []
        self.beside: list[str] = []
        self.evaluated: tuple[int, ...] = (12,)

    def __call__(self, config: Config, *, name: str, command: str, beside: Beside) -> None:
        self.trained.append(name)
        self.beside.append(beside(6.0))
        with RunDirectory(Path(config.run.directory)) as run:
            run.check(config)
            run.write_config(config)
            for step in (6, 12):
                line = self.line(config, run, step)
                run.append_metrics(line)
                if step in self.evaluated:
                    run.append_metrics(line | {"split": "validation"})
                if step == 6:
                    self.halfway(name)
            run.report.write_text("done")

    def halfway(self, name: str) -> None:
        """For a test to stop the run here."""

    def line(self, config: Config, run: RunDirectory, step: int) -> dict:
        loss = 6 / step + config.run.seed / 10
        line = {"step": step, "split": "train", "loss": loss, "bits_per_byte": 1 + loss}
        line |= {"tokens_per_second": 1000.0 * step, "seconds": step / 4, "tokens": 128 * step}
        if any(config.model.routed_layers):
            asked_LE = np.random.default_rng(step).integers(0, 9, (LAYERS, EXPERTS))
            run.write_load(step, asked_LE=asked_LE, seated_LE=asked_LE, layers=np.arange(LAYERS))
            line |= {"max_violation": 0.5, "dead_experts": 1, "dropped_fraction": 0.25}
        return line


@pytest.fixture
def trainer(monkeypatch) -> Trainer:
    return stand_in(Trainer(), monkeypatch)


def stand_in(made: Trainer, monkeypatch) -> Trainer:
    """Put a made-up trainer in the place of the trainer."""
    monkeypatch.setattr(training, "train", made)
    # It compiles nothing. What other tests have compiled stays.
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    return made


def write_file(file: Path, made: Study) -> None:
    """A file with this study, whose user may do without JAX."""
    configs = {name: to_dict(config) for name, config in made.runs.items()}
    file.write_text(
        "import os, sys\nfrom moejax.config import Config, from_dict\n"
        "from moejax import Study\n\n"
        "if 'WITHOUT_JAX' in os.environ:\n    sys.modules['jax'] = None\n\n\n"
        f"def get_study():\n    configs = {configs!r}\n"
        "    runs = {name: from_dict(Config, config) for name, config in configs.items()}\n"
        f"    return Study(title={made.title!r}, question={made.question!r}, runs=runs,"
        f" seeds={made.seeds!r}, baseline={made.baseline!r})\n"
    )


def begin(*words: str, **environment: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], env=env, **pipes)


def start(*words: str, **environment: str) -> subprocess.CompletedProcess:
    process = begin(*words, **environment)
    said, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(words, process.returncode, said, errors)


@pytest.mark.slow
def test_a_study_trains_each_run_once_and_its_figures_are_those_of_the_metrics(config, tmp_path):
    """The command as users call it; JSON is all that it prints, and the second call trains
    nothing.
    """
    config = with_part(config, "run", steps=8, log_every=2, eval_every=8, checkpoint_every=8)
    config = with_part(config, "model", num_layers=1)
    wild = with_part(dense(config), "optim", learning_rate=1e30, warmup_fraction=0.0)
    wild = with_part(wild, "run", max_skipped_in_a_row=2, log_every=1)
    file, directory = tmp_path / "mine.py", tmp_path / "study"
    write_file(file, study(config, wild=wild))
    words = ("study", str(file), "--directory", str(directory), "--json")
    done = start("-m", "moejax", *words, JAX_NUM_CPU_DEVICES="1", JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    assert "run 2 of 3: routed" in done.stderr
    printed = json.loads(done.stdout)
    assert printed == json.loads((directory / "results.json").read_text())
    assert printed["command"] == shlex.join(["moejax", *words])
    results = printed["runs"]
    assert [run["status"] for run in results.values()] == ["finished", "finished", "diverged"]
    for name in ("dense", "routed"):
        train = lines_of(directory / name, "train")
        last = lines_of(directory / name, "validation")[-1]
        got = results[name]["mean"]
        assert got["bits_per_byte"] == last["bits_per_byte"]
        assert (got["first_loss"], got["last_loss"]) == (train[0]["loss"], train[-1]["loss"])
        assert (got["steps"], got["seconds"]) == (8, train[-1]["seconds"])
        speeds = [line["tokens_per_second"] for line in train[1:]]
        assert got["tokens_per_second"] == pytest.approx(statistics.median(speeds))
        for key in ("max_violation", "dead_experts", "dropped_fraction"):
            assert got[f"{key}_validation"] == last.get(key)
        assert got["dropped_fraction"] == train[-1].get("dropped_fraction")
    assert results["dense"]["mean"]["dropped_fraction"] is None
    assert 0 < results["routed"]["mean"]["dropped_fraction"] < 1
    assert results["wild"]["mean"]["bits_per_byte"] is None
    assert "not finite in 2 steps in a row" in results["wild"]["seeds"][0]["message"]
    assert results["wild"]["mean"]["steps"] < 8

    cells = table_of(directory)
    bits = {name: results[name]["mean"]["bits_per_byte"] for name in ("dense", "routed")}
    for name in bits:  # one seed: none is the best
        assert cells[name]["bits per byte"] == f"{bits[name]:.4f}"
    assert cells["wild"]["bits per byte"] == "diverged"
    assert cells["routed"]["dead experts"].endswith(f"of {EXPERTS}")
    for head in ("max violation", "dead experts", "dropped, training", "dropped, validation"):
        assert cells["dense"][head] == "–" != cells["routed"][head]

    html = (directory / "study.html").read_text()
    again = start("-m", "moejax", *words, WITHOUT_JAX="1")
    assert again.returncode == 0, again.stderr
    assert (directory / "study.html").read_text() == html and again.stdout == done.stdout
    assert "run 1 of 3: dense has finished" in again.stderr
    assert "run 3 of 3: wild has diverged" in again.stderr


@pytest.mark.slow
def test_the_page_stands_alone_and_has_one_map_for_each_routed_run(config, tmp_path, trainer):
    many = {f"more{i}": config for i in range(7)}
    compare(study(config, **many), tmp_path)
    html = (tmp_path / "study.html").read_text()
    assert "<h1>Two of &lt;them&gt;</h1>" in html and "Which &amp; why?" in html
    assert "moejax study &lt;mine&gt;.py" in html
    assert not re.search(r"https?:|//cdn|@import|url\(|\bfetch\(|\bsrc=", html)
    assert set(re.findall(r'href="([^":]*:[^,;]*)', html)) == {"data:", "data:image/png"}
    titles = re.findall(r"<figure><h3>([^<]*)</h3>", html)
    assert titles == [
        "Bits per byte, ranked",
        "Training loss",
        "Max violation",
        "Dead experts",
        "Dropped choices, %",
        "routed",
        *many,
    ]
    assert html.count("&quot;kind&quot;:&quot;ratio&quot;") == 8
    assert html.count("<figcaption>") == len(titles)
    assert "layer&quot;,&quot;0, expert 0&quot;" in html and ">L1</text>" in html
    # Nine runs have eight colours: the last one's lines are dashed, in all four charts.
    assert html.count('class="line d1 c0"') == html.count('class="line d1') == 4
    assert "every</th>" in html and "optim." not in html.partition("<script>")[0]


def test_of_more_runs_than_lines_can_be_told_apart_there_are_no_curves():
    for count, drawn in ((24, True), (25, False)):
        outcomes = [
            Outcome(name=f"r{i}", seed=0, label="", status="finished", run=recorded({40: 2.0 + i}))
            for i in range(count)
        ]
        html = study_html(
            Comparison(title="T", question="Q", command="", outcomes=tuple(outcomes), settings={})
        )
        assert "Bits per byte, ranked" in html and ("Training loss" in html) == drawn


def test_the_time_left_of_the_whole_study_is_shown(config, tmp_path, trainer):
    """Of what is trained now: the dense one has been before."""
    compare(study(config), tmp_path, only=("dense",))
    trainer.beside.clear()
    compare(study(config, seeds=(0,)), tmp_path)
    assert trainer.beside == [" (study: 1 of 2 done, 6 s left)"]


def test_each_seed_is_a_training_and_the_table_has_their_spread(config, tmp_path, trainer):
    results = compare(study(config, seeds=(0, 2, 7)), tmp_path)
    assert trainer.trained[:3] == ["dense-seed0", "dense-seed2", "dense-seed7"]
    saved = json.loads((tmp_path / "routed-seed7" / "config.json").read_text())
    assert saved["run"]["seed"] == saved["data"]["seed"] == 7
    assert [one["directory"] for one in results["routed"]["seeds"]] == trainer.trained[3:]
    for of, want in (("mean", 1.8), ("min", 1.5), ("max", 2.2)):
        assert results["dense"][of]["bits_per_byte"] == pytest.approx(want)
    assert "1.8000 † (1.5000..2.2000)" in (tmp_path / "table.md").read_text()
    html = (tmp_path / "study.html").read_text()
    assert "means over 3 seeds" in html and 'class="band c1"' in html and "4 more seeds" not in html
    assert "2 more seeds" in html


@pytest.mark.slow
def test_killed_twice_a_study_ends_with_the_results_of_one_left_alone(config, tmp_path):
    """kill -9 in the first seed and in the last."""
    config = with_part(with_part(config, "run", steps=24), "model", num_layers=1)
    file = tmp_path / "mine.py"
    write_file(file, study(config, seeds=(0, 1), baseline="dense"))
    one_cpu = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    one_cpu |= kept_programs(tmp_path)

    def words(directory: str) -> tuple[str, ...]:
        place = tmp_path / directory
        store = ("--store", str(place / "trained"))
        return ("-m", "moejax", "study", str(file), "--directory", str(place), *store)

    for run in ("dense-seed0", "routed-seed1"):
        process = begin(*words("killed"), **one_cpu)
        wait_for_step(tmp_path / "killed" / run, 9, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done, alone = start(*words("killed"), **one_cpu), start(*words("alone"), **one_cpu)
    assert (done.returncode, alone.returncode) == (0, 0), done.stderr + alone.stderr
    assert "run 3 of 4: routed-seed0 has finished" in done.stdout
    assert "from step" in done.stdout and "from step" not in alone.stdout
    for run in ("dense-seed0", "dense-seed1", "routed-seed0", "routed-seed1"):
        assert metrics(tmp_path / "killed" / run) == metrics(tmp_path / "alone" / run)
    got, want = (untimed(tmp_path / name / "results.json") for name in ("killed", "alone"))
    assert got == want and got["runs"]["routed"]["status"] == "finished"


def untimed(file: Path) -> dict:
    """Results without what time and place decide."""
    keys = {*TIMING, "seconds_to_baseline", "training_seconds", "command", "place"}
    return json.loads(
        file.read_text(),
        object_hook=lambda found: {k: v for k, v in found.items() if k not in keys},
    )


def test_a_stopped_study_keeps_what_it_has_and_goes_on(config, tmp_path, trainer, monkeypatch):
    def stop(name: str) -> None:
        if name == "routed":
            raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(trainer, "halfway", stop)
        compare(study(config), tmp_path)
    assert stopped.value.code == 143
    results = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["status"] for run in results.values()] == ["finished", "not trained"]
    trainer.trained.clear()
    assert compare(study(config), tmp_path)["routed"]["status"] == "finished"
    assert trainer.trained == ["routed"]


def recorded(bits: dict[int, float], compiling: float = 8.0) -> Run:
    """A run of half a second a step, evaluated after these steps with these bits per byte."""
    steps = range(10, max(bits) + 1, 10)
    return Run(
        directory=Path(),
        train=tuple({"step": n, "seconds": compiling + n / 2} for n in steps),
        validation=tuple({"step": n, "bits_per_byte": bits[n]} for n in bits),
    )


def test_a_run_is_as_good_as_the_baseline_between_two_evaluations():
    """The baseline ends with 2.0 on average, after 80 steps and 40 s, compiling left out."""
    seeds = [recorded({40: 3.0, 80: 1.9}), recorded({40: 3.0, 80: 2.1}, compiling=20.0)]
    baseline = make_baseline("dense", dict(enumerate(seeds)))
    assert baseline.value == pytest.approx(2.0)
    assert (baseline.steps, baseline.seconds) == (80, pytest.approx(40))
    for bits, step in (
        ({40: 2.25, 80: 1.25}, 50),  # a quarter of the way from 40 to 80
        ({20: 2.5, 40: 2.0, 60: 2.2, 80: 1.5}, 40),  # at an evaluation, the first that is as good
        ({40: 1.5, 80: 1.0}, 40),  # before the first evaluation: nobody knows when
        ({20: 2.5, 40: math.nan, 60: 1.5}, 40),  # over one that was not finite
    ):
        assert reach(recorded(bits), "bits_per_byte", 2.0) == (
            pytest.approx(step),
            pytest.approx(step / 2),
        )
    assert reach(recorded({40: 2.5, 80: 2.01}), "bits_per_byte", 2.0) == (math.inf, math.inf)
    assert make_baseline("dense", {0: recorded({80: math.nan})}) is None


def test_seconds_that_nobody_knows_are_a_dash(config, tmp_path, trainer):
    """One logging interval has the compiling in it: what training took is not known."""

    def line(run_config: Config, run: RunDirectory, step: int) -> dict:
        made = Trainer.line(trainer, run_config, run, step)
        return made if step == 12 else made | {"split": "other"}

    trainer.line = line
    compare(study(config, baseline="dense"), tmp_path / "s")
    table = table_of(tmp_path / "s")
    assert (table["dense"]["steps to dense"], table["dense"]["seconds to dense"]) == ("12", "–")
    assert (table["routed"]["steps to dense"], table["routed"]["seconds to dense"])[1] == "–"
    assert "nan" not in (tmp_path / "s" / "table.md").read_text()
    assert "nan" not in (tmp_path / "s" / "study.html").read_text().split("<script>")[0]


def test_the_table_says_how_soon_a_run_has_what_its_dense_twin_ends_with(config, tmp_path, trainer):
    """Dense ends with 1.6 on average. The good run is there in step 8 or 9 (of 6 and 12), the slow
    one with one seed only, the poor one never.
    """
    gains = {"good": (0.3, 0.2), "slow": (0.1, -0.2), "poor": (-1.0, -1.0), "dense": (0.0, 0.0)}

    def line(run_config: Config, run: RunDirectory, step: int) -> dict:
        name, _, _ = trainer.trained[-1].partition("-")
        made = Trainer.line(trainer, run_config, run, step)
        made["bits_per_byte"] = 2.6 - step / 12 - gains[name][run_config.run.seed]
        return made

    trainer.line, trainer.evaluated = line, (6, 12)
    runs = {  # each another training
        name: changed(config, {"optim.beta2": beta2})
        for name, beta2 in (("good", 0.9), ("slow", 0.8), ("poor", 0.7))
    }
    runs |= {"dense": dense(config)}
    made = Study(title="T", question="Q", runs=runs, seeds=(0, 1), baseline="dense")
    results = compare(made, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["baseline"] == {
        "name": "dense",
        "bits_per_byte": pytest.approx(1.6),
        "by_seed": {"0": pytest.approx(1.6), "1": pytest.approx(1.6)},
        "steps": 12,
        "seconds": pytest.approx(3),
    }
    good, slow = results["good"], results["slow"]
    assert [one["steps_to_baseline"] for one in good["seeds"]] == pytest.approx([8.4, 9.6])
    assert [one["seconds_to_baseline"] for one in good["seeds"]] == pytest.approx([2.1, 2.4])
    assert good["mean"]["steps_to_baseline"] == pytest.approx(9)
    assert slow["seeds"][1]["steps_to_baseline"] is slow["mean"]["steps_to_baseline"] is None
    assert slow["min"]["steps_to_baseline"] == pytest.approx(10.8)
    cells = {name: row["steps to dense"] for name, row in table_of(tmp_path).items()}
    assert cells == {
        "good": "9 (8..10), 0.75x",
        "slow": "11..never",
        "poor": "never",
        "dense": "12",
    }
    cells = {name: row["against dense"] for name, row in table_of(tmp_path).items()}
    assert cells == {
        "good": "not decided: -0.2500 (-0.8853 to +0.3853)",
        "slow": "not decided: +0.0500 (-1.8559 to +1.9559)",
        "poor": "not decided, no spread to judge by: +1.0000",
        "dense": "baseline",
    }
    assert table_of(tmp_path)["good"]["seconds to dense"] == "2 (2..2), 0.75x"
    html = (tmp_path / "study.html").read_text()
    assert "the 1.6000 bits per byte that dense ends with" in html
    assert '<span class="key dashed">dense, at its end</span>' in html


def test_without_its_baseline_a_study_says_nothing_of_it(config, tmp_path, trainer):
    results = compare(study(config, baseline="dense"), tmp_path, only=["routed"])
    assert results["routed"]["mean"]["steps_to_baseline"] is None
    assert "to dense" not in (tmp_path / "table.md").read_text()


def test_what_diverged_is_tried_again_only_with_other_settings(
    config, tmp_path, trainer, monkeypatch
):
    def diverge(name: str) -> None:
        if name == "routed-seed1":
            raise DivergedError("it was not finite up to step 9. Usually advice helps.")

    made = study(config, seeds=(0, 1))
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "halfway", diverge)
        results = compare(made, tmp_path)
    assert results["routed"]["status"] == "1 of 2 seeds finished, 1 diverged"
    assert results["routed"]["mean"]["bits_per_byte"] == 1.5
    assert "1.5000 †; 1 of 2 seeds finished, 1 diverged" in (tmp_path / "table.md").read_text()
    words = "1.5000 †;\n1 of 2 seeds finished,\n1 diverged"  # the page breaks them: narrow columns
    assert words in (tmp_path / "study.html").read_text()
    html = (tmp_path / "study.html").read_text()
    assert "routed-seed1 diverged; it was not finite up to step 9." in html
    trainer.trained.clear()
    compare(made, tmp_path)
    assert trainer.trained == []
    patient = with_part(config, "run", max_skipped_in_a_row=20)
    results = compare(study(patient, seeds=(0, 1)), tmp_path)
    assert trainer.trained == ["routed-seed1"]
    assert results["routed"]["status"] == "finished"


def test_only_some_runs_are_trained_and_all_are_compared(config, tmp_path, trainer):
    results = compare(study(config), tmp_path, only=["routed"])
    assert trainer.trained == ["routed"]
    assert [run["status"] for run in results.values()] == ["not trained", "finished"]
    with pytest.raises(ConfigError, match="--only rooted: the runs .* are dense, routed"):
        compare(study(config), tmp_path, only=["routed", "rooted"])


def test_other_settings_are_another_training_and_the_first_stays(config, tmp_path, trainer, capsys):
    first = compare(study(config), tmp_path)["routed"]["seeds"][0]
    trainer.trained.clear()
    other = with_part(config, "optim", beta2=0.5)
    second = compare(study(other), tmp_path)["routed"]["seeds"][0]
    assert trainer.trained == ["dense", "routed"]
    assert "routed was trained with other settings before (optim.beta2 0.95 -> 0.5): it stays" in (
        capsys.readouterr().out
    )
    assert (tmp_path / "routed").resolve() == Path(second["place"]).resolve()
    assert first["place"] != second["place"]
    trainer.trained.clear()
    assert compare(study(config), tmp_path)["routed"]["seeds"][0] == first
    assert trainer.trained == []


def test_a_directory_of_the_store_that_holds_something_else_is_refused(config, tmp_path, trainer):
    """The default of a setting has changed since, say."""
    place = Path(compare(study(config), tmp_path)["routed"]["seeds"][0]["place"])
    file = place / "config.json"
    file.write_text(file.read_text().replace('"beta2": 0.95', '"beta2": 0.5'))
    with pytest.raises(RunError, match=r"(?s)beta2: 0.5 -> 0.95.*To go on: remove .*-seed0"):
        compare(study(config), tmp_path)


def test_a_global_violation_has_its_column_and_figure_if_logged(config, tmp_path, trainer):
    more = {"max_violation_global": 0.125}
    trainer.line = lambda *about: Trainer.line(trainer, *about) | more
    results = compare(study(config), tmp_path)
    assert results["routed"]["mean"]["max_violation_global_validation"] == 0.125
    assert "max violation, global" in (tmp_path / "table.md").read_text()
    assert "<h3>Max violation, global</h3>" in (tmp_path / "study.html").read_text()


def test_a_loss_that_is_not_finite_shows(config, tmp_path, trainer):
    def line(run_config: Config, run: RunDirectory, step: int) -> dict:
        bad = {"loss": np.nan} if step == 6 and run_config.run.seed else {}
        return Trainer.line(trainer, run_config, run, step) | bad | {"skipped_updates": 3}

    trainer.line = line
    results = compare(study(config, seeds=(0, 1)), tmp_path)
    assert [one["first_loss"] for one in results["routed"]["seeds"]] == [1.0, None]
    html = (tmp_path / "study.html").read_text()
    assert 'class="bad"' in html and "(1 not finite)" in html
    assert "routed-seed1: 3 updates were skipped" in html


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no study file .*mine.py"),
        ("x = 1", "mine.py has no function get_study"),
        ("def get_study(: pass", "mine.py cannot be run"),
        ("def get_study(): 1 / 0", "mine.py: get_study.. failed: ZeroDivisionError"),
        ("def get_study(): return 3", "mine.py: get_study.. must return a .*Study, not int"),
        ("def get_study(): return s(runs={})", "mine.py: Study.runs must be a dict with"),
        ("def get_study(): return s(runs={'a/b': c})", "mine.py: the run 'a/b' cannot be the name"),
        ("def get_study(): return s(runs={'..': c})", "mine.py: the run '..' cannot be the name"),
        ("def get_study(): return s(runs={'a': 1})", r"Study.runs\['a'\] must be .*, not int"),
        ("def get_study(): return s(runs={'a': c, 'A': c})", "a, A would share a directory"),
        ("def get_study(): return s(runs={'a': c}, seeds=())", "Study.seeds must be a tuple of"),
        ("def get_study(): return s(runs={'a': c}, seeds=(1, 1))", "Study.seeds must be a tuple"),
        ("s(runs={'a': c}, title='')", "mine.py: Study.title must be a text"),
        ("s(runs={'a': c}, baseline='b')", r"baseline must be .* \(a\) or None, not 'b'"),
        ("s(runs={'a': c}, flops_tolerance='5%')", "flops_tolerance must be a share .*, not '5%'"),
    ],
)
def test_a_broken_study_file_is_explained(tmp_path, text, words):
    file = tmp_path / "mine.py"
    head = (
        "import functools\nfrom moejax.config import Config\n"
        "from moejax import Study\n"
        "c, s = Config(), functools.partial(Study, **{'title': 'T', 'question': 'Q'})\n"
    )
    if text is not None:
        file.write_text(head + text)
    with pytest.raises(ConfigError, match=words):
        load_study_file(file)


def test_runs_of_unequal_active_size_are_refused(config):
    """Four experts a token instead of two; without a tolerance they may be compared."""
    wider = changed(config, {"model.moe.top_k": 4})
    with pytest.raises(
        ConfigError, match=r"costs \d\d,\d{3} FLOPs in wide and \d\d,\d{3} in dense"
    ):
        study(config, wide=wider)
    more = {"title": "T", "question": "Q", "runs": {"a": config, "wide": wider}}
    assert Study(flops_tolerance=None, **more).runs["wide"] is wider
    assert Study(flops_tolerance=0.2, **more).flops_tolerance == 0.2
    finer = changed(
        config, {"model.moe.num_experts": 8, "model.moe.top_k": 4, "model.moe.hidden_size": 4}
    )
    assert study(config, finer=finer).runs["finer"] is finer


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("run", {"steps": 24}, "run.steps is 12 in dense and 24 in other"),
        ("run", {"eval_batches": 3}, "run.eval_batches is None in dense and 3 in other"),
        ("data", {"batch_size": 16}, "data.batch_size is 8 in dense and 16 in other"),
        ("data", {"source": "stdlib"}, "data.source is 'files' in dense and 'stdlib' in other"),
    ],
)
def test_runs_of_unequal_steps_or_text_are_refused(config, part, changes, words):
    with pytest.raises(ConfigError, match=f"the runs do not compare: {words}"):
        study(config, other=with_part(config, part, **changes))
    study(config, other=with_part(config, "data", seed=5, prefetch=2))


def test_unlike_steps_are_allowed_where_the_study_says_so(config):
    more = {"title": "T", "question": "Q", "unlike_steps": True}
    longer = with_part(config, "run", steps=24)
    assert Study(runs={"dense": config, "longer": longer}, **more).runs["longer"] is longer
    other = with_part(longer, "data", batch_size=16)
    with pytest.raises(ConfigError, match="the runs do not compare: data.batch_size"):
        Study(runs={"dense": config, "longer": other}, **more)


@pytest.fixture
def no_compilation_cache():
    """As where the user has chosen none."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.mark.slow
@pytest.mark.usefixtures("no_compilation_cache")
def test_what_one_seed_compiled_the_next_finds_and_the_setting_is_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(reuse, "QUICK", 0.0)
    before = jax.config.jax_compilation_cache_dir
    found = []
    jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
    try:
        for _ in range(2):
            with reuse.keep_compiled(tmp_path / "compiled"):
                assert jax.jit(lambda x: x * 3 + 1)(2) == 7
            jax.clear_caches()
    finally:
        jax.monitoring.clear_event_listeners()
    hits = [event for event in found if event == "/jax/compilation_cache/cache_hits"]
    assert hits and any((tmp_path / "compiled").iterdir())
    assert jax.config.jax_compilation_cache_dir == before
    files = set((tmp_path / "compiled").iterdir())
    assert jax.jit(lambda x: x * 5 + 2)(2) == 12
    assert set((tmp_path / "compiled").iterdir()) == files


@pytest.mark.usefixtures("no_compilation_cache")
def test_a_cache_of_the_users_own_stays_in_use(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with reuse.keep_compiled(tmp_path / "compiled"):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_a_run_named_like_a_file_of_the_study_is_refused(config):
    with pytest.raises(ConfigError, match="'study.html' cannot be"):
        Study(title="T", question="Q", runs={"study.html": config})


def test_wrong_input_ends_in_one_message_and_exit_code_two(tmp_path):
    done = start("-m", "moejax", "study", str(tmp_path / "none.py"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no study file") and "Traceback" not in done.stderr
    done = start("-c", "import sys, moejax.commands.main; sys.exit('jax' in sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs/studies").glob("*.py")), ids=lambda f: f.stem
)
def test_every_study_loads_and_tells_its_command(file):
    made = load_study_file(file)
    assert len(made.seeds) >= 3 or file.stem == "frontier"
    assert f"moejax study configs/studies/{file.name}" in file.read_text()


def test_the_band_of_a_line_is_cut_and_thinned_with_it():
    x = np.arange(2.0 * MOST_POINTS)
    one = Series("a", x, x * 0 + 2, least=x * 0 + 1, greatest=np.where(x == 9, 5.0, 3.0))
    whole = line_chart([one], y_range=(0.0, 5.0), height=100)
    half = line_chart([one], y_range=(0.0, 5.0), height=100, x_range=(100, 200))
    bands = [re.search(r'class="band c0" d="([^"]*)"', chart).group(1) for chart in (whole, half)]
    assert ",0.0" in bands[0] and ",0.0" not in bands[1]
    assert all(",40.0" in band and ",80.0" in band for band in bands)


def test_ranks_are_sorted_and_a_far_outlier_lies_at_the_edge():
    ranks = [Rank(f"r{i}", 1 + i / 100, 1 + i / 100, 1 + i / 100) for i in range(30)][::-1]
    chart = rank_chart([Rank("<worst>", 1000.0, 999.0, 1001.0), *ranks])
    assert re.findall(r">(r\d+|&lt;worst&gt;)<", chart) == [f"r{i}" for i in range(30)] + [
        "&lt;worst&gt;"
    ]
    dots = [float(x) for x in re.findall(r'class="dots c0" d="M([\d.]+),', chart)]
    assert dots == sorted(dots) and dots[-1] <= 480 and dots[29] - dots[0] > 30
