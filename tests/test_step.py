"""One optimizer step: accumulation, meshes and broken numbers."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import BalanceConfig, Config, MeshConfig, OptimConfig, changed
from moejax.models.decoder import DecoderLM
from moejax.moe import balance
from moejax.runtime import device_fit, device_mesh, partition
from moejax.train.gradients import gradients
from moejax.train.optimizer import make_optimizer, make_schedule, orthogonalise
from moejax.train.state import init_state
from moejax.train.step import train_step


@functools.cache
def start(config: Config):
    model, optimizer = DecoderLM(config.model, 257), make_optimizer(config.optim)
    state = jax.jit(lambda: init_state(model, optimizer, config))()
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        shape=make_schedule(config.optim, config.run.steps),
        config=config,
    )
    return model, state, jax.jit(step)


@pytest.mark.parametrize("group_size", [8, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "weights",
    [
        pytest.param({"loss_weight": 0.3}, marks=pytest.mark.slow),
        pytest.param(
            {"orthogonality_loss_weight": 0.1, "variance_loss_weight": 0.5, "z_loss_weight": 0.1},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"loss_weight": 0.3, "convention": "hf", "importance_loss_weight": 0.2},
            marks=pytest.mark.slow,
        ),
        {"loss_weight": 0.3, "scope": "sequence", "bias_update": "quantile"},
    ],
)
def test_accumulated_micro_batches_give_the_gradient_of_the_large_batch(
    tiny, batch, group_size, weights
):
    """Auxiliary losses, drops and statistics included; also when a group spans sequences."""
    moe = dataclasses.replace(
        tiny.model.moe,
        group_size=group_size,
        capacity_factor=0.8,
        balance=BalanceConfig(**weights),
    )
    config = changed(tiny, {"model.moe": moe})
    model, state, _ = start(config)
    results = []
    for parts in (1, 2, 4) if group_size == 8 else (1, 2):
        split = changed(config, {"optim.accumulate": parts})
        results.append(
            jax.jit(functools.partial(gradients, model, config=split))(
                state.params, state.bias_LE, batch, jax.random.key(0)
            )
        )
    for grads, sums in results[1:]:
        chex.assert_trees_all_close(grads, results[0][0], atol=1e-5)
        chex.assert_trees_all_close(sums, results[0][1], rtol=1e-5)
    assert results[0][1].router.seated_BE.sum() < results[0][1].router.asked_BE.sum()
    router = results[0][0]["layers_0"]["block_0"]["moe"]["w_router_DE"]
    assert np.abs(router).max() > 1e-4


def test_the_reported_losses_are_those_of_the_papers(tiny, batch):
    balanced = BalanceConfig(z_loss_weight=0.5)
    config = changed(tiny, {"model.moe.balance": balanced})
    model, state, step = start(config)
    _, report = step(state, batch)
    forward = jax.jit(model.apply, static_argnums=2)
    logits, routed = forward({"params": state.params}, batch, True)
    real = batch["segments"] > 0
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    want = -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0][real].sum()
    np.testing.assert_allclose(report.batch.sums.nats, want, rtol=1e-5)
    assert report.batch.sums.targets == real.sum() == report.batch.sums.text_bytes
    router = balance.sum_sequences(routed.stats)
    want = balance.balance_loss(router).mean()
    np.testing.assert_allclose(report.batch.losses["balance_loss"], want, rtol=1e-5)
    np.testing.assert_array_equal(router.tokens_B, real.sum())


def test_training_learns(tiny, batch):
    _, state, step = start(changed(tiny, {"run.steps": 60}))
    losses = []
    for _ in range(60):
        state, report = step(state, batch)
        losses.append(float(report.batch.sums.nats / report.batch.sums.targets))
    assert losses[-1] < 0.6 * losses[0]
    assert step._cache_size() == 1  # compiled once


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_skipped_and_counted(tiny, batch):
    _, state, step = start(tiny)
    state, _ = step(state, batch)
    broken = jax.tree.map(jnp.copy, state)
    broken.params["w_head_DV"] = broken.params["w_head_DV"].at[0, 0].set(jnp.nan)
    after, report = step(broken, batch)
    after, report = step(after, batch)
    assert int(report.skipped) == int(report.skipped_in_a_row) == 2
    assert int(after.step) == 3
    chex.assert_trees_all_equal(after.optimizer, state.optimizer)
    rest = [{k: v for k, v in s.params.items() if k != "w_head_DV"} for s in (after, state)]
    chex.assert_trees_all_equal(*rest)
    mended = dataclasses.replace(after, params=state.params)
    final, report = step(mended, batch)
    assert (int(report.skipped), int(report.skipped_in_a_row)) == (2, 0)
    assert not np.array_equal(final.params["w_head_DV"], state.params["w_head_DV"])


def test_muon_takes_the_matrices_inside_the_layers(tiny):
    config = changed(tiny, {"optim.optimizer": "muon"})
    _, state, _ = start(config)
    kinds = jax.tree_util.tree_map_with_path(
        lambda p, _: config.optim.choose_transform(p[-1].key), state.params
    )
    block = kinds["layers_0"]["block_0"]
    assert set(block["attention"][name] for name in ("w_query_DX", "w_out_XD")) == {"muon"}
    assert block["moe"]["w_up_EDF"] == "muon"
    assert block["moe"]["w_router_DE"] == "router"
    assert block["attention_norm"]["scale_D"] == kinds["embedding_VD"] == "rest"
    assert kinds["w_head_DV"] == "matrix"


def test_muon_orthogonalises_every_expert_by_itself(tiny, batch):
    config = changed(tiny, {"optim.optimizer": "muon", "optim.clip_norm": None})
    _, state, step = start(config)
    after, _ = step(state, batch)
    rate = 0.03 * float(make_schedule(config.optim, config.run.steps)(0))
    moved = (
        after.params["layers_0"]["block_0"]["moe"]["w_up_EDF"]
        - state.params["layers_0"]["block_0"]["moe"]["w_up_EDF"]
    ) / rate
    chex.assert_shape(moved, (2, 4, 16, 8))
    values = np.linalg.svd(moved, compute_uv=False)
    assert values.min() > 0.3  # all near 1: the update has no preferred direction
    assert values.max() < 1.5


def test_muon_works_on_experts_where_they_are():
    """No device gathers those of another."""
    mesh = device_mesh.make_mesh(MeshConfig(data=2, expert=4))
    shardings = partition.tree_shardings(mesh, {"w_up_EDF": jnp.zeros((3, 8, 6, 4))})["w_up_EDF"]
    run = jax.jit(lambda x: orthogonalise(x, 3), out_shardings=shardings)
    x_LEDF = jax.device_put(jax.random.normal(jax.random.key(0), (3, 8, 6, 4)), shardings)
    assert "all-" not in run.lower(x_LEDF).compile().as_text()
    singular = np.linalg.svd(run(x_LEDF), compute_uv=False)
    assert singular.min() > 0.5 and singular.max() < 1.3


def test_weight_decay_reaches_matrices_only(tiny, batch):
    optim = {"weight_decay": 0.5, "learning_rate": 0.1, "warmup_fraction": 0.0}
    config = changed(tiny, {"optim": optim})
    plain = changed(config, {"optim.weight_decay": 0.0})
    _, state, step = start(config)
    _, same, plain_step = start(plain)
    one, other = step(state, batch)[0].params, plain_step(same, batch)[0].params
    np.testing.assert_array_equal(one["embedding_VD"], other["embedding_VD"])
    before = state.params["w_head_DV"]
    np.testing.assert_allclose(other["w_head_DV"] - one["w_head_DV"], 0.05 * before, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "points"),
    [
        ({"warmup_fraction": 0.1}, {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 99: 0.0003}),
        ({"warmup_fraction": 0.0, "final_fraction": 0.1}, {0: 1.0, 50: 0.55, 100: 0.1}),
        (
            {"schedule": "wsd", "warmup_fraction": 0.1, "decay_fraction": 0.5},
            {0: 0.1, 9: 1.0, 30: 1.0, 50: 1.0, 75: 0.5, 100: 0.0},
        ),
    ],
)
def test_schedules(settings, points):
    shape = make_schedule(OptimConfig(**settings), 100)
    for step, value in points.items():
        np.testing.assert_allclose(shape(step), value, atol=1e-3, err_msg=f"step {step}")


def test_a_dense_model_has_no_groups_to_keep_together(tiny, batch):
    """Four parts of two rows each, although a routing group would span eight."""
    moe = dataclasses.replace(tiny.model.moe, every=0, group_size=128)
    config = changed(tiny, {"model.moe": moe})
    model, state, _ = start(config)
    split = changed(config, {"optim.accumulate": 4})
    inputs = (state.params, None, batch, jax.random.key(0))
    whole = jax.jit(functools.partial(gradients, model, config=config))(*inputs)
    parts = jax.jit(functools.partial(gradients, model, config=split))(*inputs)
    chex.assert_trees_all_close(parts, whole, atol=1e-5, rtol=1e-5)
    device_fit.check_fits(config, device_mesh.make_mesh(MeshConfig()))


def with_balance(config: Config, **changes) -> Config:
    settings = dataclasses.replace(config.model.moe.balance, **changes)
    return changed(config, {"model.moe.balance": settings})


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_the_selection_bias_moves_once_a_step_by_the_counts_of_the_whole_batch(tiny, batch, parts):
    config = with_balance(tiny, bias_update="sign", bias_rate=0.01)
    config = changed(config, {"optim.accumulate": parts})
    _, state, step = start(config)
    after, report = step(state, batch)
    asked_LE = np.asarray(report.batch.sums.router.asked_BE)
    want = 0.01 * np.sign(asked_LE.mean(-1, keepdims=True) - asked_LE)
    np.testing.assert_allclose(after.bias_LE, want, atol=1e-7)
    assert np.abs(want).max() > 0


def test_bias_and_model_stay_as_they_were_when_an_update_is_skipped(tiny, batch):
    config = with_balance(tiny, bias_update="quantile")
    _, state, step = start(config)
    state, _ = step(state, batch)
    assert np.abs(state.bias_LE).max() > 0
    before = np.asarray(state.bias_LE)
    state.params["w_head_DV"] = state.params["w_head_DV"].at[0, 0].set(jnp.nan)
    after, report = step(state, batch)
    assert int(report.skipped) == 1
    np.testing.assert_array_equal(after.bias_LE, before)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["sign", "proportional", "quantile"])
def test_the_selection_bias_evens_out_a_load_that_nothing_else_would(tiny, batch, update):
    """The routers prefer expert 0 by far, and their learning rate is next to nothing."""
    moe = dataclasses.replace(tiny.model.moe, router="gpt_oss")
    config = changed(tiny, {"model.moe": moe, "model.dtype": "bfloat16"})
    config = with_balance(config, loss_weight=0.0, bias_update=update, bias_rate=0.02)
    config = changed(config, {"optim.learning_rate": 1e-9})
    _, state, step = start(config)
    routers = state.params["layers_0"]["block_0"]["moe"]
    routers["b_router_E"] = routers["b_router_E"].at[..., 0].add(2.0)
    violations = []
    for _ in range(60):
        state, report = step(state, batch)
        violations.append(float(report.batch.max_violation))
    assert state.bias_LE.dtype == jnp.float32  # though the model computes in bfloat16
    assert violations[0] > 0.4
    assert np.mean(violations[-5:]) < 0.4 * violations[0]


@pytest.mark.slow
def test_random_routers_draw_anew_at_every_step_and_the_same_on_every_mesh(tiny, batch):
    moe = dataclasses.replace(tiny.model.moe, router="noisy_top_k", router_jitter=0.1)
    moe = dataclasses.replace(moe, expert_dropout=0.1)
    _, state, step = start(changed(tiny, {"model.moe": moe, "optim.learning_rate": 1e-9}))
    state, first = step(state, batch)
    _, second = step(state, batch)
    loads = [np.asarray(r.batch.sums.router.asked_BE) for r in (first, second)]
    assert np.abs(loads[0] - loads[1]).max() > 0
    mesh = device_mesh.make_mesh(MeshConfig(data=2, expert=4))
    with jax.set_mesh(mesh):
        placed = jax.device_put(state, partition.tree_shardings(mesh, state))
        spread = jax.device_put(batch, partition.activation_sharding(mesh, "batch_BN"))
        _, other = step(placed, spread)
    chex.assert_trees_all_close(other.batch, second.batch, rtol=1e-5)


@pytest.mark.slow
def test_device_scope_balances_what_each_device_has(tiny, batch):
    """On 8 devices each row of the batch is a device's part: the same as scope sequence."""
    results = []
    for scope in ("sequence", "device"):
        config = with_balance(tiny, scope=scope, loss_weight=0.3, bias_update="quantile")
        model, state, _ = start(config)
        mesh = device_mesh.make_mesh(MeshConfig(data=8, expert=1))
        with jax.set_mesh(mesh):
            placed = jax.device_put(batch, partition.activation_sharding(mesh, "batch_BN"))
            run = jax.jit(functools.partial(gradients, model, config=config))
            results.append(run(state.params, state.bias_LE, placed, jax.random.key(0)))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)
    assert results[0][1].scopes == 8
