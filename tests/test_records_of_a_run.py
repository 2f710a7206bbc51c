"""The files of a run and the lines of its metrics, without training."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from moejax.config import BalanceConfig, MoEConfig
from moejax.moe import balance
from moejax.moe.balance import RouterStats
from moejax.runs.run_directory import RunDirectory
from moejax.train import metrics
from moejax.train import totals as sums
from moejax.train.forward import report_batch
from moejax.train.reports import StepReport, Sums


def report(nats: float, norm: float = 1.0) -> StepReport:
    """A step of 4 tokens, one routed layer and two experts; three of eight choices dropped."""
    router = RouterStats(
        tokens_B=jnp.array([4.0]),
        bad_B=jnp.array([1.0]),
        asked_BE=jnp.array([[6.0, 2.0]]),
        seated_BE=jnp.array([[3.0, 2.0]]),
        probability_BE=jnp.array([[3.0, 1.0]]),
        weight_BE=jnp.array([[3.0, 1.0]]),
        log_z_squared_B=jnp.array([8.0]),
        entropy_B=jnp.array([2.0]),
        sent_BQ=jnp.array([[3.0, 2.0]]),
    )
    loss = jnp.float32(nats)
    sums = Sums(loss, loss, loss, jnp.float32(4), jnp.float32(3), router)
    count = jnp.int32(0)
    batch = report_batch(sums, MoEConfig(balance=BalanceConfig(importance_loss_weight=0.1)))
    return StepReport(batch, jnp.float32(norm), jnp.float32(0.1), count, count)


def test_a_line_of_metrics_by_hand():
    totals = sums.add_totals(
        sums.sum_step(report(8 * np.log(2))), sums.sum_step(report(4 * np.log(2)))
    )
    totals = sums.totals_from_json(json.loads(json.dumps(sums.totals_to_json(totals))))
    loss = metrics.loss_metrics(totals)
    np.testing.assert_allclose(loss["loss"], 12 * np.log(2) / 8, rtol=1e-6)
    np.testing.assert_allclose(loss["bits_per_byte"], 12 / 6, rtol=1e-6)
    np.testing.assert_allclose(loss["perplexity"], 2**1.5, rtol=1e-6)
    # f = P = (3/4, 1/4), so 2 (9/16 + 1/16) = 1.25; the fuller expert has 1.5 of the mean load.
    # Weights (3, 1): variance 1 over the squared mean 4. Of 2 choices a token, 1.5 by expert 0.
    router = metrics.router_metrics(totals, num_experts=1)
    want = {
        "balance_loss": 1.25,
        "z_loss": 2.0,
        "importance_loss": 0.25,
        "dropped_fraction": 3 / 8,
        "max_violation": 0.5,
        "max_violation_global": 0.5,
        "dead_experts": 0,
        "router_entropy": 0.5,
        "experts_per_token": 1.5,
        "bad_logits": 2,
        "expert_groups_per_token": 1.25,
    }
    assert router.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(router[name], value, rtol=1e-6, err_msg=name)


def test_a_line_of_metrics_tells_of_relus_and_of_the_coefficient_that_closes_them():
    """Of 4 tokens' 8 scores 3 and 1 are above 0: half are 0. The coefficient was 0.1, then 0.3."""
    both = None
    for weight in (0.1, 0.3):
        one = report(8.0)
        router = replace(one.batch.sums.router, open_BE=jnp.array([[3.0, 1.0]]))
        batch = replace(one.batch, sums=replace(one.batch.sums, router=router))
        step = sums.sum_step(replace(one, batch=batch, sparsity_weight=jnp.float32(weight)))
        both = sums.add_totals(both, step)
    line = metrics.router_metrics(both, num_experts=2)
    np.testing.assert_allclose([line["sparsity"], line["sparsity_weight"]], [0.5, 0.2], rtol=1e-6)


def test_a_skipped_step_does_not_blank_its_interval():
    good = sums.sum_step(report(8.0))
    for bad in (report(np.nan), report(8.0, norm=np.inf)):
        both = sums.add_totals(good, sums.sum_step(bad))
        assert metrics.loss_metrics(both) == metrics.loss_metrics(good)
        want = metrics.router_metrics(good, 2) | {"bad_logits": 2}  # those are still counted
        assert metrics.router_metrics(both, 2) == want
    nothing = sums.sum_step(report(np.nan))
    assert np.isnan(metrics.loss_metrics(nothing)["loss"])


def test_counts_of_long_runs_do_not_overflow():
    asked = np.full((12, 128), 2_000_000, np.int64)
    seated = asked * 99 // 100
    np.testing.assert_allclose(balance.dropped_fraction(asked, seated), 0.01, rtol=1e-6)


def test_what_a_resumed_run_will_write_again_is_dropped(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        for step in (10, 20, 30):
            run.append_metrics({"step": step, "split": "train", "loss": step / 7})
            run.write_load(step, asked_LE=np.ones((1, 2)))
            run.write_choices(step, np.arange(30).reshape(1, 2, 5, 3) == step)
        before = run.metrics_file.read_text().splitlines()
        with open(run.metrics_file, "ab") as file:
            file.write(b'{"step": 15}\n[3]\n\xff\xfe\n{"step": 40, "spl')
        run.keep_metrics_until(20)
        assert run.metrics_file.read_text().splitlines() == before[:2]
        assert sorted(p.name for p in (run.path / "load").iterdir()) == [
            "00000010.npz",
            "00000020.npz",
        ]
        np.testing.assert_array_equal(run.last_choices(), np.arange(30).reshape(1, 2, 5, 3) == 20)
        assert run.last_metrics("train")["step"] == 20
        assert run.last_metrics("validation") is None


def test_lines_are_valid_json_even_when_numbers_are_not_finite(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        run.append_metrics({"step": 1, "split": "train", "loss": float("nan"), "z": float("inf")})
        text = run.metrics_file.read_text()
    line = json.loads(text, parse_constant=lambda name: 1 / 0)
    assert line == {"step": 1, "split": "train", "loss": None, "z": None}
