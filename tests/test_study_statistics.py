"""Verdicts of studies: by hand, against scipy, and how often they are false."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from moejax.lab.study.statistics import (
    ERROR,
    Arm,
    choose_for_more_seeds,
    correct_for_all,
    find_best,
    judge,
    judge_all_pairs,
    t_test,
)

FIRST, MORE = (0, 1, 2), (3, 4)


def arm(*values: float, **more) -> Arm:
    return Arm(values=dict(enumerate(values)), **more)


def kinds(verdicts: dict) -> dict:
    return {name: verdict.kind for name, verdict in verdicts.items()}


def test_three_seeds_by_hand():
    """Differences -1, -2, -3: their mean is -2 and their spread 1, so t is -2 times the root of 3.
    With two degrees of freedom p is 1 - t / sqrt(2 + t²), and 95 % are within 4.303 of 0.
    """
    found = judge({"a": arm(4, 3, 2), "base": arm(5, 5, 5)}, "base")["a"]
    assert (found.mean, found.seeds, found.kind) == (-2, FIRST, "undecided")
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert (found.low, found.high) == pytest.approx((-2 - 2.48414, -2 + 2.48414), abs=1e-5)
    nearer = judge({"a": arm(3.1, 3, 2.9), "base": arm(5, 5, 5)}, "base")["a"]
    assert nearer.kind == "better" and nearer.p == pytest.approx(0.00083, abs=1e-5)


def test_two_seeds_by_hand():
    """Differences 1 and 3: t is 2, and with one degree of freedom p is 1 - 2 / pi atan(t)."""
    found = judge({"a": arm(2, 4), "base": arm(1, 1)}, "base")["a"]
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(2))
    assert (found.low, found.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_differences_are_those_of_scipy(count):
    one, other = np.random.default_rng(count).normal(size=(2, count))
    want = stats.ttest_rel(one, other)
    for error in (0.05, 0.025):
        found = t_test(one - other, error=error)
        edges = want.confidence_interval(1 - error)
        assert (found.low_A, found.high_A) == pytest.approx((edges.low, edges.high))
        assert (found.mean_A, found.p_A) == pytest.approx(((one - other).mean(), want.pvalue))
    margin = 0.7
    sides = [
        stats.ttest_1samp(one - other, edge, alternative=side).pvalue
        for edge, side in ((-margin, "greater"), (margin, "less"))
    ]
    assert t_test(one - other, margin=margin).p_same_A == pytest.approx(min(2 * max(sides), 1))


def test_what_is_the_same_lies_within_the_margin():
    """The p of the same is the share of error with which the interval just lies within it."""
    difference_N = np.random.default_rng(5).normal(0.1, 0.3, 5)
    p = float(t_test(difference_N, margin=0.8).p_same_A)
    found = t_test(difference_N, error=p)
    assert max(-found.low_A, found.high_A) == pytest.approx(0.8)


def test_the_correction_by_hand_and_by_all_subsets():
    """Holm's steps: 4 x 0.005, 3 x 0.01, 2 x 0.03, and none less than the one before it. It is the
    closed test of Bonferroni's: the worst of all subsets that a comparison is in.
    """
    assert correct_for_all(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    for seed in range(20):
        p_A = np.random.default_rng(seed).uniform(0, 0.3, 5)
        subsets = [s for n in range(1, 6) for s in itertools.combinations(range(5), n)]
        want = [
            max(min(len(s) * p_A[[*s]].min(), 1) for s in subsets if one in s) for one in range(5)
        ]
        assert correct_for_all(p_A) == pytest.approx(want)
    found_A = correct_for_all(np.array([math.nan, 0.01, 0.02]))
    assert math.isnan(found_A[0]) and found_A[1:] == pytest.approx([0.03, 0.04])


ARMS = {
    "base": arm(5.0, 5.2, 4.9),
    "better": arm(4.5, 4.71, 4.39),
    "near": arm(5.01, 5.2, 4.89),
    "wild": arm(4.0, 5.9, 5.0),
    "worse": arm(6.0, 6.19, 5.89),
}


def test_a_table_of_verdicts():
    want = {"better": "better", "near": "same", "wild": "undecided", "worse": "worse"}
    assert kinds(judge(ARMS, "base", margin=0.2)) == want
    assert kinds(judge(ARMS, "base")) == want | {"near": "undecided"}
    assert find_best(ARMS) == {"better", "wild"}
    assert choose_for_more_seeds(ARMS, "base", margin=0.2) == ("base", "wild")
    pairs = judge_all_pairs(ARMS)
    assert pairs["better", "worse"].kind == "better" and pairs["base", "worse"].kind == "better"
    assert (
        pairs["base", "worse"].turned()
        == judge_all_pairs(dict(reversed(ARMS.items())))["worse", "base"]
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda seed, value: (seed, value + 100),  # of all values
        lambda seed, value: (seed, value + 10 * seed),  # of all with one seed
        lambda seed, value: (-seed, value),  # seeds come in another order
    ],
)
def test_what_is_common_to_all_runs_changes_no_verdict(change):
    moved = {
        name: Arm(values=dict(change(*item) for item in one.values.items()))
        for name, one in ARMS.items()
    }
    wanted = judge(ARMS, "base", margin=0.2)
    for name, got in judge(moved, "base", margin=0.2).items():
        want = wanted[name]
        numbers = ("mean", "low", "high", "p", "p_same")
        assert got.kind == want.kind
        assert [getattr(got, n) for n in numbers] == pytest.approx(
            [getattr(want, n) for n in numbers], rel=1e-6
        )
    assert find_best(moved) == find_best(ARMS)


BASE = arm(5.0, 5.2, 4.9)
CLEAR = {seed: value - 1 + seed / 100 for seed, value in BASE.values.items()}


@pytest.mark.parametrize(
    ("one", "base", "kind"),
    [
        (arm(4.0), BASE, "undecided"),  # one seed
        (arm(4.0, 4.2, 3.9), BASE, "undecided"),  # 1 less with every seed: no spread
        (BASE, BASE, "equal"),
        (Arm(values=CLEAR), BASE, "better"),
        (Arm(values=CLEAR, missing={3}), Arm(values=BASE.values, missing={3}), "waiting"),
        (Arm(values=CLEAR), Arm(values=BASE.values, missing={3}), "better"),  # not its seed
        (Arm(values=CLEAR, diverged={3}), Arm(values=BASE.values | {3: 5.0}), "undecided"),
        (Arm(values=CLEAR | {3: 4.0}), Arm(values=BASE.values, diverged={3}), "better"),
        (BASE, Arm(values=CLEAR, diverged={3}), "worse"),  # that had not this seed
        (Arm(values=BASE.values | {3: 5.0}), Arm(values=CLEAR, diverged={3}), "undecided"),
        (Arm(values={}, diverged={0, 1, 2}), BASE, "unknown"),
    ],
)
def test_what_is_not_known_is_not_decided(one, base, kind):
    """What diverged with a seed is not better, nor the same; what waits is not yet decided."""
    found = judge({"a": one, "base": base}, "base", margin=0.001)["a"]
    assert found.kind == kind
    if kind == "equal":
        assert (found.low, found.high, found.p) == (0, 0, 1)


def test_more_seeds_are_for_what_is_open_and_wait_for_all_first_ones():
    late = ARMS | {"late": Arm(values={0: 5.0}, missing={1, 2})}
    assert choose_for_more_seeds(late, "base") == ()
    lost = ARMS | {"lost": Arm(values={0: 5.0, 1: 5.3}, diverged={2})}
    assert choose_for_more_seeds(lost, "base") == ("base", "near", "wild")
    decided = {name: ARMS[name] for name in ("base", "better", "worse")}
    assert choose_for_more_seeds(decided, "base") == ()


# How often verdicts are false. The first axis of arrays is that of studies.

STUDIES = 4000
SURE = ERROR + 2.6 * math.sqrt(ERROR * (1 - ERROR) / STUDIES)
"""What a share of so many studies exceeds in one of two hundred tries if it is ``ERROR``."""


def draw_studies(arms: int, seeds: int, number: int = 0) -> np.ndarray:
    """Values without any difference between arms: a baseline and ``arms`` others, of a spread of
    their own, on top of what a seed adds to all.
    """
    rng = np.random.default_rng(number)
    spread = rng.uniform(0.3, 3, (STUDIES, arms + 1, 1))
    return rng.normal(size=(STUDIES, arms + 1, seeds)) * spread + 5 * rng.normal(
        size=(STUDIES, 1, seeds)
    )


def p_of(values: np.ndarray, seeds: int) -> np.ndarray:
    return t_test((values[:, 1:] - values[:, :1])[..., :seeds]).p_A


@pytest.mark.parametrize(("arms", "seeds"), [(1, 3), (1, 5), (23, 3)])
def test_a_study_without_differences_has_a_false_verdict_in_one_of_twenty(arms, seeds):
    p = p_of(draw_studies(arms, seeds), seeds)
    found = (correct_for_all(p).min(-1) <= ERROR).mean()
    assert found <= SURE
    if arms == 1:
        assert found >= 2 * ERROR - SURE  # and not in fewer
    else:
        assert (p.min(-1) <= ERROR).mean() > 0.4  # without the correction


@pytest.mark.parametrize("arms", [1, 23])
def test_a_second_look_adds_no_false_verdicts(arms):
    """Three seeds, then two more for what is open. Without a share for each look they would be too
    many.
    """
    values = draw_studies(arms, 5)
    p1, p2 = p_of(values, 3), p_of(values, 5)

    def count_false(looks: int) -> float:
        first = correct_for_all(np.minimum(looks * p1, 1)) <= ERROR
        last = correct_for_all(np.minimum(looks * np.where(first, p1, p2), 1)) <= ERROR
        assert (last | ~first).all()  # what was decided stays
        return float(last.any(-1).mean())

    assert count_false(looks=2) <= SURE
    if arms == 1:
        assert count_false(looks=1) == pytest.approx(0.085, abs=0.01)


def test_what_the_first_look_decides_is_too_large_on_average():
    """A true difference as large as its spread: of those decided by three seeds half as much
    again.
    """
    x = 1 + np.random.default_rng(6).normal(size=(20 * STUDIES, 3))
    found = t_test(x)
    assert found.mean_A[2 * found.p_A <= ERROR].mean() == pytest.approx(1.48, abs=0.03)
    assert found.mean_A.mean() == pytest.approx(1, abs=0.01)


def test_studies_that_are_judged_twice_by_the_functions_of_this_file():
    """The same, as a study does it: arms, the choice of those that go on, their verdicts."""
    for values in draw_studies(4, 5, number=1)[:150]:
        arms = {str(i): arm(*row[:3]) for i, row in enumerate(values)}
        first = judge(arms, "0", looks=2)
        chosen = choose_for_more_seeds(arms, "0")
        still = {name for name, one in first.items() if one.kind == "undecided"}
        assert set(chosen) == (still | {"0"} if still else set())
        for name in chosen:
            arms[name] = arm(*values[int(name)])
        last = judge(arms, "0", looks=2)
        assert all(len(one.seeds) == (5 if name in chosen else 3) for name, one in last.items())
        done = set(first) - still
        assert {n: last[n].kind for n in done} == {n: first[n].kind for n in done}
        p1, p2 = (p_of(values[None], seeds)[0] for seeds in (3, 5))
        p = np.where([name in still for name in last], p2, p1)
        want = correct_for_all(np.minimum(2 * p, 1))
        assert [one.p for one in last.values()] == pytest.approx(want.tolist())


def test_what_lies_on_the_margin_is_the_same_in_one_of_twenty_studies_at_most():
    values = draw_studies(7, 4, number=2)
    values[:, 1:] += 0.5
    difference = values[:, 1:] - values[:, :1]
    p = t_test(difference, margin=0.5).p_same_A
    assert (correct_for_all(p).min(-1) <= ERROR).mean() <= SURE
    wide = t_test(difference, margin=9.0).p_same_A
    assert (correct_for_all(wide).min(-1) <= ERROR).mean() > 0.5


def test_the_best_is_among_those_that_may_be():
    """No arm is better than arm 0 here; it is out in at most one of twenty studies."""
    studies = draw_studies(4, 4, number=3)[:300]
    out = sum("0" not in find_best({str(i): arm(*r) for i, r in enumerate(v)}) for v in studies)
    assert out <= 300 * ERROR + 2.6 * math.sqrt(300 * ERROR * (1 - ERROR))
    values = dict.fromkeys(range(3), 0.0)
    far = {str(i): Arm(values={n: i + (n * i) % 3 / 50 for n in values}) for i in range(4)}
    assert find_best(far) == {"0"}


def test_a_spread_that_runs_share_is_wrong_where_one_varies_more():
    """The analysis of variance takes one spread for all: with one of 24 runs that varies four times
    as much, it has a false verdict in one of six studies. Each run's own spread does not.
    """
    spread = np.where(np.arange(24) == 3, 4.0, 1.0)[:, None]
    values = np.random.default_rng(7).normal(size=(STUDIES, 24, 3)) * spread
    rest = values - values.mean(1, keepdims=True) - values.mean(2, keepdims=True)
    square = ((rest + values.mean((1, 2), keepdims=True)) ** 2).sum((1, 2)) / 46
    t = (values[:, 1:] - values[:, :1]).mean(-1) / np.sqrt(2 / 3 * square[:, None])
    p = 2 * stats.t.sf(np.abs(t), 46)
    assert (correct_for_all(p).min(-1) <= ERROR).mean() > 0.15
    assert (correct_for_all(p_of(values, 3)).min(-1) <= ERROR).mean() <= SURE


def test_a_bootstrap_of_three_seeds_misses_the_mean_in_a_quarter_of_all_studies():
    """Percentiles of the means of all 27 resamples; Student's interval misses it in 5 %."""
    x = np.random.default_rng(4).normal(size=(STUDIES, 3))
    means = x[:, np.array([*itertools.product(range(3), repeat=3)])].mean(-1)
    low, high = np.quantile(means, (0.025, 0.975), axis=-1, method="inverted_cdf")
    assert ((low > 0) | (high < 0)).mean() == pytest.approx(0.25, abs=0.03)
    found = t_test(x)
    assert ((found.low_A > 0) | (found.high_A < 0)).mean() == pytest.approx(ERROR, abs=0.02)
