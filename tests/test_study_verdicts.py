"""Verdicts of studies as readers see them: words, table, results and page."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from test_study import Trainer, make_config, stand_in

from moejax.config import Config, changed
from moejax.config.errors import ConfigError
from moejax.config.measure import BITS_PER_BYTE, ERROR_RATE, Measure
from moejax.lab.study.baseline import make_baseline
from moejax.lab.study.definition import Study
from moejax.lab.study.library import load
from moejax.lab.study.results import Comparison, Outcome
from moejax.lab.study.results_json import to_json
from moejax.lab.study.run_study import run_study
from moejax.lab.study.side_by_side import compare_runs
from moejax.lab.study.statistics import Verdict, find_best
from moejax.lab.study.study_page import study_html
from moejax.lab.study.tables import make_table, write_markdown
from moejax.lab.study.train_one import train_one
from moejax.lab.study.verdicts import describe, make_arms, make_verdicts
from moejax.lab.study.wanted import Selection
from moejax.runs.records import Run

RATE = "optim.learning_rate"
BASE = (2.0, 2.2, 1.9)
RUNS = {
    "base": BASE,
    "better": (1.9, 2.095, 1.805),
    "near": (2.001, 2.2, 1.899),
    "wild": (1.6, 2.5, 1.9),
    "worse": (2.1, 2.306, 1.994),
}


def outcome(name: str, seed: int, value: float | None, measure: Measure = BITS_PER_BYTE) -> Outcome:
    """A training that ended with this; None: it diverged."""
    run = Run(
        directory=Path(),
        train=({"step": 10, "seconds": 1.0, "loss": 2.0}, {"step": 20, "seconds": 2.0}),
        validation=() if value is None else ({"step": 20, measure.key: value},),
    )
    status = "diverged" if value is None else "finished"
    label = f"{name}-seed{seed}"
    return Outcome(name=name, seed=seed, label=label, status=status, run=run, measure=measure)


def compare(runs=None, measure=BITS_PER_BYTE, baseline: str | None = "base", **more) -> Comparison:
    runs = RUNS if runs is None else runs
    outcomes = tuple(
        outcome(name, seed, value, measure)
        for name, values in runs.items()
        for seed, value in enumerate(values)
    )
    based = {one.seed: one.run for one in outcomes if one.name == baseline and one.run}
    return Comparison(
        title="T",
        question="Q",
        command="moejax study",
        outcomes=outcomes,
        settings={},
        baseline=make_baseline(baseline, based) if baseline else None,
        **more,
    )


def verdict(kind: str, mean=-0.034, low=-0.047, high=-0.021, seeds=(0, 1, 2), **more) -> Verdict:
    return Verdict(kind=kind, seeds=seeds, mean=mean, low=low, high=high, p=0, p_same=1, **more)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (verdict("better"), "better by 0.0340 (0.0210 to 0.0470)"),
        (verdict("worse", 0.034, 0.021, 0.047), "worse by 0.0340 (0.0210 to 0.0470)"),
        (verdict("same"), "the same within 0.05: -0.0340 (-0.0470 to -0.0210)"),
        (verdict("equal", 0, 0, 0), "equal with all 3 seeds"),
        (
            verdict("undecided", -0.005, -0.018, 0.007),
            "not decided: -0.0050 (-0.0180 to +0.0070)",
        ),
        (verdict("undecided"), "not decided after Holm: -0.0340 (-0.0470 to -0.0210)"),
        (
            verdict("undecided", lost=(3,)),
            "not decided, it diverged with seed 3: -0.0340 (-0.0470 to -0.0210)",
        ),
        (
            verdict("undecided", lost_other=(3, 4)),
            "not decided, the other diverged with seeds 3, 4: -0.0340 (-0.0470 to -0.0210)",
        ),
        (verdict("undecided", 0.1, math.nan, math.nan, (0,)), "one seed: not decided: +0.1000"),
        (
            verdict("undecided", 0.1, math.nan, math.nan),
            "not decided, no spread to judge by: +0.1000",
        ),
        (verdict("waiting"), "not decided yet: -0.0340"),
        (verdict("waiting", math.nan, math.nan, math.nan, ()), "–"),
        (verdict("unknown", math.nan, math.nan, math.nan, ()), "–"),
    ],
)
def test_a_verdict_in_words(one, words):
    assert describe(one, BITS_PER_BYTE, 0.05) == words


def test_error_rates_are_in_per_cent():
    assert describe(verdict("better"), ERROR_RATE) == "better by 3.40% (2.10% to 4.70%)"
    assert describe(verdict("same"), ERROR_RATE, 0.05).startswith("the same within 5%: -3.40%")


def cells(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """The measure and the verdict of each run."""
    table = make_table(comparison)
    assert table.header[:3] == ("run", "bits per byte", "against base")
    return {row[0]: row[1:3] for row in table.rows}


def test_the_table_has_a_verdict_for_each_run_and_marks_what_may_be_the_best():
    comparison = compare(margin=0.01)
    found = cells(comparison)
    assert {name: words for name, (_, words) in found.items()} == {
        "base": "baseline",
        "better": "better by 0.1000 (0.0876 to 0.1124)",
        "near": "the same within 0.01: +0.0000 (-0.0025 to +0.0025)",
        "wild": "not decided: -0.0333 (-0.9057 to +0.8391)",
        "worse": "worse by 0.1000 (0.0851 to 0.1149)",
    }
    assert {name for name, (value, _) in found.items() if " †" in value} == {
        "better",
        "wild",
    }
    made = write_markdown(make_table(comparison))
    assert "**" not in made and "Holm's correction over 4 comparisons at 5 %" in made
    assert "its 95 % interval" in made and "† cannot be told from the best" in made


def test_the_best_is_bold_only_where_it_is_decided():
    decided = {name: RUNS[name] for name in ("base", "better", "worse")}
    assert "| **1.9333 (1.8050..2.0950)** |" in write_markdown(make_table(compare(decided)))
    one_seed = {name: values[:1] for name, values in RUNS.items()}
    made = write_markdown(make_table(compare(one_seed)))
    assert "**" not in made and "†" not in made and "cannot be told apart" in made
    assert "one seed: not decided: -0.1000" in made
    found = to_json(compare(one_seed))["verdicts"]
    assert found["pairs"] == found["best"] == [] and found["runs"]["better"]["kind"] == "undecided"


def test_without_a_baseline_the_best_is_marked_and_pairs_are_judged():
    comparison = compare(baseline=None)
    made = write_markdown(make_table(comparison))
    assert "†" in made and "against" not in made and "Holm" not in made
    found = to_json(comparison)["verdicts"]
    assert found["runs"] == {} and len(found["pairs"]) == 10
    assert "all pairs</h3>" in study_html(comparison)


def test_what_diverged_is_told_and_not_called_better():
    lost = RUNS | {"better": (1.9, 2.095, None), "gone": (None, None, None)}
    found = cells(compare(lost))
    assert found["better"][1].startswith("not decided, it diverged with seed 2: -0.1025 (")
    assert found["gone"] == ("diverged", "–")
    assert "known to be better than it (4 comparisons" in write_markdown(make_table(compare(lost)))


def test_the_results_have_the_verdicts_in_numbers_and_words():
    found = json.loads(json.dumps(to_json(compare(margin=0.01)), allow_nan=False))["verdicts"]
    assert (found["error"], found["interval"], found["looks"], found["margin"]) == (
        0.05,
        0.95,
        1,
        0.01,
    )
    assert found["best"] == ["better", "wild"] and len(found["notes"]) == 3
    better = found["runs"]["better"]
    assert (better["kind"], better["seeds"]) == ("better", [0, 1, 2])
    assert better["words"] == "better by 0.1000 (0.0876 to 0.1124)"
    assert better["mean"] == pytest.approx(-0.1)
    assert better["low"] < better["mean"] < better["high"] < 0
    assert better["p"] < 0.05 < better["p_same"]
    pair = next(p for p in found["pairs"] if (p["run"], p["against"]) == ("better", "worse"))
    assert pair["kind"] == "better" and pair["mean"] == pytest.approx(-0.2)


def test_further_seeds_count_in_verdicts_alone_and_each_look_has_half_of_the_error():
    """`wild` and the baseline have two more; columns stay those of the seeds that all have."""
    more = {"base": (*BASE, 2.0, 2.0), "wild": (1.6, 2.5, 1.9, 1.5, 1.6)}
    comparison = compare(RUNS | more, more_seeds=(3, 4))
    found, first = cells(comparison), cells(compare())
    assert found["wild"][0].replace(" †", "") == first["wild"][0].replace(" †", "")
    once = make_verdicts(compare(RUNS | more)).against
    twice = make_verdicts(comparison).against
    assert twice["wild"].seeds == (0, 1, 2, 3, 4) and twice["better"].seeds == (0, 1, 2)
    assert twice["wild"].high - twice["wild"].low > once["wild"].high - once["wild"].low
    assert twice["better"].p == pytest.approx(2 * once["better"].p)
    made = write_markdown(make_table(comparison))
    assert "97.5 % interval" in made and "seeds 0, 1, 2 did not decide" in made
    results = to_json(comparison)
    assert [one["seed"] for one in results["runs"]["wild"]["seeds"]] == [0, 1, 2, 3, 4]
    assert results["runs"]["wild"]["mean"]["bits_per_byte"] == pytest.approx(2.0)
    assert "means over 3 seeds" in study_html(comparison)


def figures(html: str) -> dict[str, str]:
    made = re.findall(r"<figure><h3>(.*?)</h3>(.*?)</figure>", html, flags=re.S)
    return dict(made)


def test_the_page_draws_differences_and_all_pairs():
    html = figures(study_html(compare(margin=0.01)))
    forest, pairs = html["Bits per byte, against base"], html["Bits per byte, all pairs"]
    assert re.findall(r'class="end word">(\w+)</text>', forest) == [
        "better",
        "wild",
        "near",
        "worse",
    ]
    rows = re.findall(
        r'class="dots c(\d)"[^>]*/><text[^>]*>([^<]*)</text><text[^>]*>([^<]*)<', forest
    )
    assert rows == [
        ("2", "-0.1000", "&lt;"),
        ("6", "-0.0333", ""),
        ("0", "+0.0000", "="),
        ("1", "+0.1000", "&gt;"),
    ]
    for words in ("better", "worse", "the same", "not decided"):
        assert f">{words}</span>" in forest
    assert pairs.count("<tr>") == 6 and pairs.count("<td") == 25
    assert 'class="v2" title="better less worse: better by 0.2000' in pairs
    assert 'class="v1" title="worse less better: worse by 0.2000' in pairs


def test_pairs_of_many_runs_and_of_two_are_not_drawn():
    many = {f"r{i}": (2.0 + i / 100, 2.2 + i / 90, 1.9 + i / 80) for i in range(12)}
    for runs, drawn in (
        (many, True),
        (many | {"one": RUNS["wild"]}, False),
        ({name: RUNS[name] for name in ("base", "worse")}, False),
    ):
        base = next(iter(runs))
        assert (
            "Bits per byte, all pairs" in figures(study_html(compare(runs, baseline=base)))
        ) == drawn


def test_one_seed_draws_no_verdict():
    html = study_html(compare({name: values[:1] for name, values in RUNS.items()}))
    assert "What is decided" not in html


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"margin": 0}, "Study.margin must be a difference above 0"),
        ({"margin": "1%"}, "not '1%'"),
        ({"margin": math.inf}, "such as 0.01, or None, not inf"),
        ({"more_seeds": [3]}, "Study.more_seeds must be a tuple of different whole numbers"),
        ({"more_seeds": (3, 3)}, "Study.more_seeds must be a tuple"),
        ({"more_seeds": (1, 3)}, "has 1, which is a seed of the study already"),
        ({"more_seeds": (3,), "baseline": None}, "baseline is None"),
        ({"more_seeds": (3,), "seeds": (0,)}, "here 1 seed is in seeds"),
    ],
)
def test_wrong_settings_of_verdicts_are_refused(settings, words):
    good = {"title": "T", "question": "Q", "runs": {"a": Config(), "b": Config()}}
    good |= {"seeds": (0, 1), "baseline": "a", "margin": 0.01, "more_seeds": (2, 3)}
    assert dataclasses.asdict(Study(**good))["more_seeds"] == (2, 3)
    with pytest.raises(ConfigError) as error:
        Study(**good | settings)
    assert words in str(error.value)


class Noisy(Trainer):
    """`clear` is better by 1, and `close` by as much as the seeds vary."""

    gains = {"dense": [0] * 5, "clear": [1.0, 1.01, 0.99, 1, 1], "close": [0.01, -0.02, 0.01, 0, 0]}
    rate = {0.01: "dense", 0.02: "clear", 0.03: "close"}

    def line(self, config: Config, run, step: int) -> dict:
        gain = self.gains[self.rate[config.optim.learning_rate]][config.run.seed]
        return super().line(config, run, step) | {"bits_per_byte": 3 + config.run.seed / 10 - gain}


def test_what_the_first_seeds_do_not_decide_trains_with_more(tiny, tmp_path, monkeypatch, capsys):
    trainer, config = stand_in(Noisy(), monkeypatch), make_config(tiny, tmp_path)
    runs = {name: changed(config, {RATE: rate}) for rate, name in Noisy.rate.items()}
    study = Study(
        title="T", question="Q", runs=runs, seeds=(0, 1, 2), more_seeds=(3, 4), baseline="dense"
    )

    def run(directory: str, **selection) -> dict:
        trainer.trained.clear()
        given = {"train": train_one, "command": "c", "selection": Selection(**selection)}
        run_study(study, tmp_path / directory, store=tmp_path / directory / "store", **given)
        return json.loads((tmp_path / directory / "results.json").read_text())

    results = run("s")
    first = [f"{name}-seed{seed}" for name in runs for seed in (0, 1, 2)]
    more = ["dense-seed3", "dense-seed4", "close-seed3", "close-seed4"]
    assert trainer.trained == first + more
    said = capsys.readouterr().out
    assert "seeds 0, 1, 2 do not decide close against dense: further trainings with seeds 3" in said
    assert "run 9 of 9: close-seed2" in said and " of 13: close-seed4" in said
    verdicts = results["verdicts"]["runs"]
    assert (verdicts["clear"]["kind"], verdicts["clear"]["seeds"]) == ("better", [0, 1, 2])
    assert (verdicts["close"]["kind"], verdicts["close"]["seeds"]) == ("undecided", [0, 1, 2, 3, 4])
    assert results["verdicts"]["looks"] == 2
    assert results["baseline"]["bits_per_byte"] == pytest.approx(3.1)  # of the first seeds
    assert sorted(results["baseline"]["by_seed"]) == list("01234")
    assert results["runs"]["close"]["seeds"][4]["bits_per_byte_to_baseline"] == 0
    loaded = load(tmp_path / "s")
    assert loaded.verdicts == verdicts and loaded.best == ("clear",)
    again = run("s")
    assert trainer.trained == [] and again == results

    both = compare_runs([tmp_path / "s", tmp_path / "s" / "clear-seed0"], "")
    assert {name: len(seeds) for name, seeds in both.by_run().items()} == {
        "s/dense": 5,
        "s/clear": 3,
        "s/close": 5,
        "clear-seed0": 1,
    }
    assert find_best(make_arms(both.by_run())) == {"s/clear", "clear-seed0"}

    run("part", only=("dense", "close"))  # all runs must have their first seeds
    assert trainer.trained == [name for name in first if "clear" not in name]
    run("part", only=("clear",), seeds=(1, 4))  # a single row can be made again
    assert trainer.trained == ["clear-seed1", "clear-seed4"]
