"""Frontiers and scaling laws: hulls by hand, laws found again in made-up data, and what is said
where there is too little.
"""

import dataclasses
import json
import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from moejax import Frontier, Study, changed
from moejax.config import to_dict
from moejax.config.errors import ConfigError, RunError
from moejax.config.measure import BITS_PER_BYTE
from moejax.lab.bench import steps as steps_bench
from moejax.lab.frontier import laws
from moejax.lab.frontier.advice import choose_shapes, find_cutoffs, weigh_experts
from moejax.lab.frontier.findings import find_all
from moejax.lab.frontier.findings_json import to_json
from moejax.lab.frontier.fitting import Fit, Unfitted, fit_law, stretch
from moejax.lab.frontier.frontier_page import draw_section
from moejax.lab.frontier.frontier_tables import DASH, tell_leads
from moejax.lab.frontier.hulls import cross, find_hull, find_lead, find_staircase
from moejax.lab.frontier.rows import Row, Shape, describe_shape, pool_deviations
from moejax.lab.frontier.step_times import (
    FILE,
    StepTime,
    StepTimes,
    read_step_times,
    write_step_times,
)
from moejax.lab.study.results import Comparison, Outcome
from moejax.runs.records import Run

DOCS = Path(__file__).parents[1] / "docs"
SIZES = {"64x2": 8e4, "96x3": 3e5, "128x3": 5e5, "192x4": 15e5}
STEPS = (400, 1000, 2500, 6250)
ROUTED = {"c": 0.5, "g": 3.0, "gamma": 0.6, "a": 20.0, "alpha": 0.3, "b": 800.0, "beta": 0.5}
DENSE = {"a": 12.0, "alpha": 0.25, "b": 800.0, "beta": 0.5}
"""Better than routed models while they are small."""
SLOWER = 1.2
"""A routed step over a dense one."""


def make_shape(form: str, size: str, E: float = 1.0, G: float = 1.0) -> Shape:
    N = SIZES[size]
    sizes = {"parameters": int(N), "tokens_per_step": 2048, "flops_per_step": int(6 * N * 2048)}
    return Shape(form=form, size=size, expansion=E, granularity=G, **sizes)


def loss_of(shape: Shape, steps: int) -> float:
    """By the laws above, computed here again."""
    N, D, G = shape.parameters, shape.tokens_per_step * steps, shape.granularity
    x = DENSE if shape.form == "dense" else ROUTED
    of_grain = 0.0 if shape.form == "dense" else x["g"] / G ** x["gamma"]
    return ROUTED["c"] + (of_grain + x["a"]) / N ** x["alpha"] + x["b"] / D ** x["beta"]


def make_rows(shape: Shape, steps: int, noise: float, random, seeds=(1,)) -> list[Row]:
    seconds = steps * shape.parameters * 1e-7 * (1 if shape.form == "dense" else SLOWER)
    loss = loss_of(shape, steps)
    return [
        Row(shape=shape, steps=steps, seed=seed, seconds=seconds,
            loss=loss * math.exp(noise * random.standard_normal()))
        for seed in seeds
    ]  # fmt: skip


def make_study(noise: float = 0.0, seeds=(1, 2), number: int = 0) -> list[Row]:
    """Dense and two routed forms of E 4, and two finer grains at one length."""
    random, rows = np.random.default_rng(number), []
    for size in SIZES:
        for steps in STEPS:
            for form, E, G in (("dense", 1.0, 1.0), ("8 top 2", 4.0, 2.0), ("16 top 4", 4.0, 4.0)):
                rows += make_rows(make_shape(form, size, E, G), steps, noise, random, seeds)
        for form, G in (("4 top 1", 1.0), ("32 top 8", 8.0)):
            rows += make_rows(make_shape(form, size, 4.0, G), 1000, noise, random, seeds[:1])
    return rows


def test_a_staircase_and_a_hull_by_hand():
    """Powers of ten, so that logarithms are whole: (0, 3), (1, 1), (2, 1.5), (2, 0.9), (3, 0), and
    a point that costs nothing and one that diverged.
    """
    cost = 10.0 ** np.array([0, 1, 2, 2, 3, -np.inf, 1])
    loss = 10.0 ** np.array([3, 1, 1.5, 0.9, 0, 5, np.nan])
    assert find_staircase(cost, loss) == [0, 1, 3, 4]
    hull = find_hull(cost, loss)
    assert hull.corners == (0, 1, 4)  # (2, 0.9) lies above the line from (1, 1) to (3, 0)
    assert hull.read(np.array([100.0])) == pytest.approx(10**0.5)
    assert hull.read(np.array([10.0, 1e3])) == pytest.approx([10, 1])
    assert np.isnan(hull.read(np.array([0.5, 1e4]))).all()


@pytest.mark.parametrize(
    ("cost", "loss", "corners"),
    [
        ([], [], None),
        ([np.nan], [1.0], None),
        ([5.0], [2.0], (0,)),
        ([5.0, 5.0], [2.0, 1.0], (1,)),
        ([5.0, 6.0], [2.0, 2.0], (0,)),  # dearer, and no better
        ([1.0, 10.0, 100.0], [4.0, 2.0, 1.0], (0, 2)),  # on the line: no corner
    ],
)
def test_hulls_of_few_points(cost, loss, corners):
    hull = find_hull(np.array(cost), np.array(loss))
    assert (hull and hull.corners) == corners


def of(points: dict[float, float]):
    return find_hull(np.array([*points]), np.array([*points.values()]))


@pytest.mark.parametrize(
    ("first", "second", "lead"),
    [
        ({1.0: 8.0, 100.0: 1.0}, {1.0: 4.0, 100.0: 2.0}, 10.0),  # 8^(1 - t) = 4 * 2^-t at t = 1/2
        ({1.0: 4.0, 100.0: 2.0}, {1.0: 8.0, 100.0: 1.0}, math.inf),
        ({1.0: 3.0, 100.0: 1.0}, {1.0: 4.0, 100.0: 2.0}, 0.0),
        ({1.0: 4.0, 10.0: 2.0}, {1.0: 4.0, 10.0: 2.0}, math.inf),  # equal: nobody leads
        ({1.0: 4.0, 10.0: 2.0}, {20.0: 2.0, 40.0: 1.0}, math.nan),
        ({1.0: 4.0}, {1.0: 2.0, 10.0: 1.0}, math.nan),  # a single cost is no range
    ],
)
def test_where_one_frontier_begins_to_lead(first, second, lead):
    assert find_lead(of(first), of(second)) == pytest.approx(lead, nan_ok=True)


def select(rows: list[Row], form: str) -> list[Row]:
    return [row for row in rows if row.shape.form == form]


def test_the_interval_of_a_crossing_is_that_of_resampled_losses():
    """Of 20 noisy studies the interval has the true crossing in most; it needs two seeds."""
    true = cross(*(select(make_study(), form) for form in ("16 top 4", "dense")), seconds, 20)
    assert true.at == pytest.approx(110, rel=0.01) and true.low == true.high == true.at
    inside = 0
    for number in range(20):
        rows = make_study(0.003, number=number)
        found = cross(select(rows, "16 top 4"), select(rows, "dense"), seconds, 60)
        assert found.low <= found.high and 0 <= found.share <= 1
        inside += found.low <= true.at <= found.high
    assert inside >= 16
    alone = make_study(0.01, seeds=(1,))
    found = cross(select(alone, "16 top 4"), select(alone, "dense"), seconds, 20)
    assert math.isfinite(found.at) and math.isnan(found.low) and math.isnan(found.share)


def seconds(row: Row) -> float:
    return row.seconds


def test_deviations_of_few_seeds_are_as_large_as_those_of_many():
    shape = make_shape("dense", "64x2")
    rows = [Row(shape=shape, steps=1, seed=i, loss=math.exp(x)) for i, x in enumerate((1.0, 3.0))]
    rows.append(Row(shape=shape, steps=2, seed=0, loss=5.0))
    assert pool_deviations(rows) == pytest.approx([-math.sqrt(2), math.sqrt(2)])
    assert stretch(np.array([1.0, 3.0, 1.0, 3.0]), 2) == pytest.approx(
        math.sqrt(2) * np.array([-1, 1, -1, 1])
    )


def fit_routed(rows: list[Row], draws: int = 20) -> Fit:
    own = [row for row in rows if row.shape.form != "dense"]
    fit = fit_law(laws.krajewski_law(own), own, draws)
    assert isinstance(fit, Fit)
    return fit


def test_the_law_of_granularity_is_found_again():
    rows = make_study()
    fit = fit_routed(rows, draws=0)
    assert fit.coefficients == pytest.approx(ROUTED, rel=0.02)
    dense = select(rows, "dense")
    found = fit_law(laws.dense_law(dense, ROUTED["c"]), dense, 0)
    assert found.coefficients == pytest.approx({"c": ROUTED["c"]} | DENSE, rel=0.01)


def test_intervals_cover_what_the_law_was_made_with_and_what_it_has_not_seen():
    rows = make_study(0.005)
    seen = [row for row in rows if row.steps < 6250]
    fit = fit_routed(seen, draws=60)
    assert fit.error == pytest.approx(0.005, rel=0.35)
    covered = [low <= ROUTED[name] <= high for name, (low, high) in fit.intervals.items()]
    assert sum(covered) >= 5
    held_out = [row for row in rows if row.steps == 6250 and row.shape.form != "dense"]
    said = fit.predict(held_out)
    assert (
        np.mean([p.low <= row.loss <= p.high for p, row in zip(said, held_out, strict=True)]) > 0.8
    )
    assert max(abs(p.loss / row.loss - 1) for p, row in zip(said, held_out, strict=True)) < 0.03


CLARK = {"a": -0.08, "b": -0.15, "c": 0.02, "d": 0.9, "E_start": 1.8, "E_max": 60.0}


def make_clark(noise: float) -> list[Row]:
    random, rows = np.random.default_rng(0), []
    for size in SIZES:
        for E in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
            form = "dense" if E == 1 else f"{2 * E:g} top 2"
            shape = make_shape(form, size, E, 1.0 if E == 1 else 2.0)
            x, N = CLARK, math.log10(SIZES[size])
            inner = E - 1 + 1 / (1 / x["E_start"] - 1 / x["E_max"])
            grown = math.log10(1 / (1 / inner + 1 / x["E_max"]))
            log = x["a"] * N + x["b"] * grown + x["c"] * N * grown + x["d"]
            loss = 10**log * math.exp(noise * random.standard_normal())
            rows.append(Row(shape=shape, steps=1000, seed=1, loss=loss))
    return rows


def test_the_law_of_experts_is_found_again_and_says_how_many():
    rows = make_clark(0.0)
    fit = fit_law(laws.clark_law(rows), rows, 20)
    assert fit.error < 1e-4
    assert fit.coefficients == pytest.approx(CLARK, rel=0.05)
    at, low, high = find_cutoffs(fit)
    assert at == pytest.approx(10**7.5, rel=0.2) and low <= at <= high
    assert laws.find_cutoff(CLARK) == pytest.approx(10**7.5)
    small, *_, large = weigh_experts(fit, None)
    assert all(math.isnan(gain) for one in small.timed_gains for gain in one)
    assert (small.size, large.size) == ("64x2", "192x4")
    assert small.gains[0][0] == pytest.approx(0, abs=1e-6) and small.best == 32
    assert small.gains[-1][0] < large.gains[-1][0] < 0  # it helps the small one more
    noisy = fit_law(laws.clark_law(rows), make_clark(0.01), 40)
    low, high = noisy.intervals["a"]
    assert low < CLARK["a"] < high


def test_what_experts_give_is_weighed_against_the_time_that_they_take():
    """Of E 4 that is 2 times as slow: a dense model of that size has seen twice the tokens."""
    rows = [
        dataclasses.replace(row, seconds=1000.0 * (1 if row.shape.expansion == 1 else 2))
        for row in make_clark(0.0)
    ]
    dense = select(make_study(), "dense")
    law = fit_law(laws.dense_law(dense, ROUTED["c"]), dense, 20)
    found = {one.size: one for one in weigh_experts(fit_law(laws.clark_law(rows), rows, 20), law)}
    one = found["128x3"]
    at, shape = one.expansions.index(4.0), make_shape("dense", "128x3")
    gain, low, high = one.timed_gains[at]
    longer = loss_of(shape, 2000) / loss_of(shape, 1000)
    assert one.prices[at] == 2 and one.prices[0] == 1
    assert gain == pytest.approx((1 + one.gains[at][0]) / longer - 1, abs=1e-4)
    assert gain > one.gains[at][0] and low <= gain <= high + 1e-9
    assert one.timed_gains[0][0] == pytest.approx(0, abs=1e-6)


def test_effective_parameters_are_those_of_the_dense_model_with_the_same_loss():
    for E in (1.0, 4.0, 32.0):
        N = laws.count_effective(CLARK, 1e6, E)
        x = CLARK

        def log_loss(N: float, E: float, x=x) -> float:
            grown = math.log10(float(laws.saturate(np.array(E), x["E_start"], x["E_max"])))
            return (x["a"] + x["c"] * grown) * math.log10(N) + x["b"] * grown

        assert log_loss(N, 1.0) == pytest.approx(log_loss(1e6, E))
    assert laws.count_effective(CLARK, 1e6, 1.0) == pytest.approx(1e6)
    assert laws.find_cutoff({"b": -0.1, "c": 0.0}) == math.inf
    assert laws.find_cutoff({"b": 0.1, "c": 0.01}) == 0.0


def one_size(row: Row) -> bool:
    return row.shape.size == "64x2"


@pytest.mark.parametrize(
    ("law", "keep", "words"),
    [
        ("krajewski", lambda row: row.steps == 400 and row.seed == 1, "10 trainings; there are 8"),
        ("krajewski", lambda row: row.shape.granularity == 2, "3 different values of G; there are"),
        ("krajewski", one_size, "3 different values of N; there are 1: 8"),
        ("krajewski", lambda row: row.steps == 1000, "different values of D; there are 1: 2.048e"),
        ("krajewski", lambda row: False, "there are 0"),
        ("clark", lambda row: row.steps == 1000, "4 different values of E; there are 1: 4"),
    ],
)
def test_too_few_trainings_are_said_and_not_fitted(law, keep, words):
    rows = [row for row in make_study() if row.shape.form != "dense" and keep(row)]
    make = {"krajewski": laws.krajewski_law, "clark": laws.clark_law}[law]
    found = fit_law(make(rows or make_study()), rows, 20)
    assert isinstance(found, Unfitted) and words in found.why


def test_advice_follows_the_budget():
    """Routed steps are dearer: dense first, then a fine routed shape, which has both more often
    the longer it takes.
    """
    rows = make_study(0.002)
    fit, dense = fit_routed(rows), select(rows, "dense")
    of_dense = fit_law(laws.dense_law(dense, fit.coefficients["c"]), dense, 20)
    times = {row.shape.name: row.seconds / row.steps for row in rows}
    shapes = list({row.shape.name: row.shape for row in rows}.values())
    found = choose_shapes(of_dense, fit, shapes, lambda one: times[one.name], (5, 100, 1000, 1e-9))
    assert [one.budget for one in found] == [5, 100, 1000]  # nothing can be had for the last
    first, _, last = found
    assert first.shape.startswith("dense 64x2") and first.routed < 0.5
    assert last.shape.startswith("32 top 8") and last.routed > 0.9 and last.gain[1] < 0
    assert not last.inside  # no such training was that long
    assert sum(one.inside for one in found) >= 1


def test_all_together_with_what_is_held_out():
    rows = make_study(0.004)
    rows = [dataclasses.replace(row, held_out=row.steps == 6250) for row in rows]
    new = Row(shape=make_shape("16 top 4", "128x3", 4.0, 4.0), steps=9000, seed=1, loss=math.nan,
              held_out=True)  # fmt: skip
    found = find_all(rows, [new], (30, 300), 20)
    assert set(found.hulls) == {"seconds", "FLOPs"}
    assert list(found.hulls["FLOPs"]) == ["dense", "8 top 2", "16 top 4"]  # the others: one length
    assert len(found.held_out) == 3 * 4 + 1
    errors = {one.steps: one.error for one in found.held_out}
    assert errors[9000] is None and abs(errors[6250]) < 0.02
    assert all(
        row.steps < 6250 for fit in found.fits.values() if isinstance(fit, Fit) for row in fit.rows
    )
    times = StepTimes(
        shapes={}, about={"machine": {"cpu": "A <processor>", "cores": 2}, "date": "2026-11-29"}
    )
    plain = to_json(found, BITS_PER_BYTE, times)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["held_out"][-1]["loss"] is None
    html = draw_section(found, plain, BITS_PER_BYTE, times)
    assert (
        "A &lt;processor&gt;, 2 cores, 2026-11-29" in html
        and "not trained" in html
        and "nan" not in html
    )
    assert html.count("<figure>") == 2 and html.count('class="guide"') >= 1
    assert html.count("<h2>") == 5  # of experts there are too few for a law


def test_the_picture_and_the_tables_of_the_documentation(monkeypatch):
    """Two plots of the same trainings, and the tables of the page."""
    monkeypatch.syspath_prepend(DOCS)
    script = runpy.run_path(str(DOCS / "draw_frontier.py"))
    rows = [
        dataclasses.replace(row, held_out=(row.shape.size, row.steps) == ("192x4", 6250))
        for row in make_study(0.004)
    ]
    data = to_json(find_all(rows, [], (30, 300), 20), BITS_PER_BYTE, None)
    cells, forms, held_out = len({row.cell for row in rows}), 5, 3
    picture = script["draw"](data)
    assert picture.count("<circle") == 2 * cells + forms
    assert picture.count("<polyline") == 2 * 3
    assert len(re.findall(r'<path d="M[\d.,]+V', picture)) == 2 * held_out
    assert picture.count("(one length)") == 2 and "nan" not in picture
    text = script["describe_findings"](data)
    for title in ("Where routing pays", "Predicted, then trained", "Laws", "What to train at a"):
        assert f"### {title}" in text
    (line,) = re.findall(r"\| 16 top 4, seconds \| .*", text)
    assert line.count("|") == 5 and " min " in line
    assert text.count("| yes |") + text.count("| no |") == held_out


def test_a_dash_is_explained_where_there_is_one():
    decided = {"at": 20.0, "low": 10.0, "high": 30.0, "share": 1.0}
    alone = decided | {"low": None, "high": None, "share": None}
    for lead, share in ((decided, "100%"), (alone, DASH)):
        table = tell_leads({"leads_from": {"seconds": {"8 top 2": lead}}})
        assert table.rows[0][-1] == share
        assert ("A dash:" in table.words) == (share == DASH)


def test_without_times_there_are_flops_alone():
    rows = [dataclasses.replace(row, seconds=math.nan) for row in make_study(0.004)]
    found = find_all(rows, [], (30,), 20)
    assert list(found.hulls) == ["FLOPs"] and found.choices == ()
    html = draw_section(found, to_json(found, BITS_PER_BYTE, None), BITS_PER_BYTE, None)
    assert html.count("<figure>") == 1 and "moejax bench steps" in html
    assert "A bar with a tick" not in html  # nothing is held out
    assert draw_section(find_all([], [], (30,), 20), {}, BITS_PER_BYTE, None) == ""


@pytest.fixture
def runs(tiny) -> dict:
    """A dense and a routed form, in two sizes and two lengths."""
    found = {}
    for form, every in (("dense", 0), ("routed", 1)):
        for width in (16, 32):
            for steps in (6, 12):
                change = {"model.width": width, "model.moe.every": every, "run.steps": steps}
                found[f"{form}-{width}-{steps}"] = changed(tiny, change)
    return found


def make(runs: dict, **changes) -> Study:
    return Study(title="T", question="Q", runs=runs, flops_tolerance=None, **changes)


ONE_AND_ONE = {"router": "switch", "top_k": 1, "shared_experts": 1}


def test_shapes_are_read_from_configs(tiny):
    routed = describe_shape(tiny)
    dense = describe_shape(changed(tiny, {"model.moe.every": 0}))
    assert (routed.name, dense.name) == ("4 top 2 16x2", "dense 16x2")
    assert (routed.expansion, routed.granularity) == (2, 2)
    assert (dense.expansion, dense.granularity) == (1, 1)
    shared = describe_shape(changed(tiny, {"model.moe": ONE_AND_ONE}))
    assert shared.name == "4 top 1 + 1 shared 16x2"
    assert (shared.expansion, shared.granularity) == (2.5, 2)
    assert routed.parameters == dense.parameters == shared.parameters
    assert routed.tokens_per_step == 8 * 16 and dense.flops_per_step < routed.flops_per_step


def test_runs_of_one_shape_are_timed_apart_where_their_models_are_not_the_same(runs, tiny):
    assert list(steps_bench.list_shapes(runs)) == [
        *("dense 16x2", "dense 32x2", "4 top 2 16x2", "4 top 2 32x2"),
    ]
    others = {"fixed": {"model.moe.group_size": 4}, "longer": {"run.steps": 24}}
    found = steps_bench.list_shapes(
        {"first": tiny} | {name: changed(tiny, change) for name, change in others.items()}
    )
    assert list(found) == ["4 top 2 16x2", "4 top 2 16x2 (fixed)"]
    assert found["4 top 2 16x2 (fixed)"].model.moe.group_size == 4


def finish(study: Study, names: list[str]) -> Comparison:
    """As if these runs had been trained: a loss of 3 after 6 steps and 2 after 12."""
    outcomes = []
    for name, config in study.runs.items():
        steps = config.run.steps
        lines = ({"step": steps, "bits_per_byte": 4 - steps / 6},)
        run = Run(directory=None, train=lines, validation=lines)
        done = name in names
        outcomes.append(
            Outcome(name=name, seed=0, label=name, status="finished" if done else "not trained",
                    run=run if done else None)
        )  # fmt: skip
    return Comparison(title="T", question="Q", command="", outcomes=tuple(outcomes), settings={})


def test_a_study_of_several_lengths_is_analysed_as_far_as_it_is(runs, tmp_path):
    with pytest.raises(ConfigError, match=r"run\.steps is 6 in dense-16-6 and 12"):
        make(runs)
    study = make(runs, analysis=Frontier(held_out=("routed-32-12",), draws=20))
    found = study.analysis.analyse(study.runs, finish(study, []), tmp_path)
    assert (found.data["rows"], found.section) == ([], "")
    time = StepTime(seconds=0.5, low=0.4, high=0.6, processor_seconds=0.9)
    write_step_times(tmp_path / FILE, StepTimes(shapes={"dense 16x2": time}, about={"date": "now"}))
    found = study.analysis.analyse(study.runs, finish(study, list(runs)), tmp_path)
    rows = {(row["form"], row["size"], row["steps"]): row for row in found.data["rows"]}
    assert len(rows) == len(runs)
    assert rows["dense", "16x2", 12]["seconds"] == 6.0
    assert rows["dense", "32x2", 12]["seconds"] is None
    assert rows["4 top 2", "16x2", 6]["loss"] == 3.0
    assert [key for key, row in rows.items() if row["held_out"]] == [("4 top 2", "32x2", 12)]
    law = found.data["fits"]["Krajewski et al. 2024, E 2"]
    assert law == {
        "fitted": False,
        "why": "it has 7 coefficients and needs 10 trainings; there are 3",
    }
    assert "needs 10 trainings" in found.section


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"held_out": ("other",)}, "Frontier.held_out names other: the runs are dense-16-6"),
        ({"budgets": ()}, "Frontier.budgets must be seconds"),
        ({"budgets": (0.0,)}, "Frontier.budgets must be seconds"),
        ({"budgets": 30}, "Frontier.budgets must be seconds such as (30, 1200), not 30"),
        ({"budgets": ("30",)}, "Frontier.budgets must be seconds"),
        ({"held_out": "dense-16-6"}, "Frontier.held_out must be a tuple of names of runs"),
        ({"draws": 3}, "Frontier.draws must be a whole number of at least 20, not 3"),
        ({"draws": 50.0}, "Frontier.draws must be a whole number of at least 20, not 50.0"),
    ],
)
def test_what_a_frontier_cannot_be_made_of(runs, change, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        make(runs, analysis=Frontier(**change))


def test_an_analysis_is_none_but_an_analysis(runs):
    with pytest.raises(ConfigError, match="Study.analysis must be an analysis, such as Frontier"):
        make(runs, analysis=Frontier)
    with pytest.raises(ConfigError, match="or None, not 3"):
        make(runs, analysis=3)


def test_a_frontier_tells_models_by_form_and_size(runs):
    dense = {name: config for name, config in runs.items() if name.startswith("dense")}
    with pytest.raises(ConfigError, match="compares dense and routed models: these runs are dense"):
        make(dense, analysis=Frontier())
    other = changed(runs["routed-16-6"], {"model.moe.capacity_factor": 2.0})
    with pytest.raises(ConfigError, match=r"both `4 top 2 16x2`, but differ in model\.moe\.capac"):
        make(runs | {"other": other}, analysis=Frontier())


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"shapes": {"a": {"seconds": 0}}}', '{"shapes": [1]}', "{"]
)
def test_a_damaged_file_of_step_times_is_named(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RunError, match=r"step_times\.json is not what `moejax bench steps` writes"):
        read_step_times(tmp_path / FILE)
    assert read_step_times(tmp_path / "none.json") is None


@pytest.mark.slow
def test_steps_of_all_shapes_are_timed_in_turn(runs, tmp_path, capsys):
    """A dense and a routed shape; those of another length are the same shape."""
    few = {name: config for name, config in runs.items() if "-16-" in name}
    (tmp_path / "mine.py").write_text(
        "from moejax import Frontier, Study\nfrom moejax.config import Config, from_dict\n\n\n"
        f"def get_study():\n    configs = { ({n: to_dict(c) for n, c in few.items()})!r}\n"
        "    runs = {name: from_dict(Config, config) for name, config in configs.items()}\n"
        "    return Study(title='T', question='Q', runs=runs, analysis=Frontier(),"
        " flops_tolerance=None)\n"
    )
    place = tmp_path / "there" / FILE
    bench = steps_bench.StepsBench(file=tmp_path / "mine.py", output=place, rounds=2, steps=2)
    result = steps_bench.measure(bench)
    found = read_step_times(place)
    assert list(found.shapes) == ["dense 16x2", "4 top 2 16x2"]
    for one in found.shapes.values():
        assert 0 < one.low <= one.seconds <= one.high and one.processor_seconds > 0
    assert found.about["rounds"] == 2 and "date" in found.about
    assert "4 top 2 16x2" in steps_bench.report(result) and str(place) in steps_bench.report(result)
    assert "[2/2] compiling 4 top 2 16x2" in capsys.readouterr().err
    assert (
        steps_bench.StepsBench(file=tmp_path / "mine.py").place.as_posix()
        == "studies/mine/step_times.json"
    )
    with pytest.raises(ConfigError, match="--rounds must be greater than 0, not 0"):
        steps_bench.StepsBench(file=tmp_path / "mine.py", rounds=0)
