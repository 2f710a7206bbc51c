"""One optimizer step: accumulation, meshes and broken numbers."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import balance
from moejax import mesh as meshes
from moejax.config import Config, ConfigError, MeshConfig, MoEConfig, OptimConfig
from moejax.models.decoder import DecoderLM
from moejax.train.optimizer import kind_of, make_optimizer, schedule
from moejax.train.step import gradients, init_state, train_step


def start(config: Config):
    model, optimizer = DecoderLM(config.model, 257), make_optimizer(config.optim)
    state = jax.jit(lambda: init_state(model, optimizer, config))()
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        shape=schedule(config.optim, config.run.steps),
        config=config,
    )
    return model, state, jax.jit(step)


def changed(config: Config, section: str, **changes) -> Config:
    part = dataclasses.replace(getattr(config, section), **changes)
    return dataclasses.replace(config, **{section: part})


@pytest.mark.parametrize("group_size", [8, 32])
@pytest.mark.parametrize("weights", [(0.3, 0.0), (0.3, 0.1)])
def test_accumulated_micro_batches_give_the_gradient_of_the_large_batch(
    tiny, batch, group_size, weights
):
    """Auxiliary losses, drops and statistics included; also when a group spans sequences."""
    moe = dataclasses.replace(
        tiny.model.moe,
        group_size=group_size,
        capacity_factor=0.8,
        balance_loss_weight=weights[0],
        z_loss_weight=weights[1],
    )
    config = changed(tiny, "model", moe=moe)
    model, state, _ = start(config)
    results = []
    for parts in (1, 2, 4) if group_size == 8 else (1, 2):
        split = changed(config, "optim", accumulate=parts)
        results.append(
            jax.jit(functools.partial(gradients, model, config=split))(state.params, batch)
        )
    for grads, sums in results[1:]:
        chex.assert_trees_all_close(grads, results[0][0], atol=1e-5)
        chex.assert_trees_all_close(sums, results[0][1], rtol=1e-5)
    assert results[0][1].router.seated_GE.sum() < results[0][1].router.asked_GE.sum()
    router = results[0][0]["layers_0"]["block_0"]["moe"]["w_router_DE"]
    assert np.abs(router).max() > 1e-4


def test_the_reported_losses_are_those_of_the_papers(tiny, batch):
    config = changed(tiny, "model", moe=dataclasses.replace(tiny.model.moe, z_loss_weight=0.5))
    model, state, step = start(config)
    _, report = step(state, batch)
    logits, stats = model.apply({"params": state.params}, batch, True)
    real = batch["segments"] > 0
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    want = -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0][real].sum()
    np.testing.assert_allclose(report.batch.sums.nats, want, rtol=1e-5)
    assert report.batch.sums.targets == real.sum() == report.batch.sums.text_bytes
    router = balance.sum_groups(stats)
    losses = balance.balance_loss(router.asked_GE, router.tokens_G, router.probability_GE)
    np.testing.assert_allclose(report.batch.balance_loss_L, losses, rtol=1e-5)
    np.testing.assert_array_equal(router.tokens_G, real.sum())


@pytest.mark.parametrize(("data", "expert"), [(8, 1), (2, 4), (4, 2)])
def test_every_mesh_takes_the_same_step(tiny, batch, data, expert):
    config = changed(tiny, "model", moe=dataclasses.replace(tiny.model.moe, capacity_factor=0.8))
    model, state, step = start(config)
    want = step(state, batch)
    mesh = meshes.make_mesh(MeshConfig(data=data, expert=expert))
    with jax.set_mesh(mesh):
        placed = jax.device_put(state, meshes.tree_shardings(mesh, state))
        spread = jax.device_put(batch, meshes.named(mesh, "batch_BN"))
        got = step(placed, spread)
    # Adam divides by the root of a tiny second moment in its first step: compare what it was fed.
    np.testing.assert_allclose(got[1].gradient_norm, want[1].gradient_norm, rtol=1e-5)
    chex.assert_trees_all_close(got[1].batch, want[1].batch, rtol=1e-5)
    first, second = (s.optimizer[1].inner_states for s in (want[0], got[0]))
    chex.assert_trees_all_close(first, second, atol=1e-5)


def test_training_learns(tiny, batch):
    _, state, step = start(changed(tiny, "run", steps=60))
    losses = []
    for _ in range(60):
        state, report = step(state, batch)
        losses.append(float(report.batch.sums.nats / report.batch.sums.targets))
    assert losses[-1] < 0.6 * losses[0]
    assert step._cache_size() == 1  # compiled once


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
    config = changed(tiny, "optim", optimizer="muon")
    _, state, _ = start(config)
    kinds = jax.tree_util.tree_map_with_path(lambda p, _: kind_of(p, config.optim), state.params)
    block = kinds["layers_0"]["block_0"]
    assert set(block["attention"][name] for name in ("w_query_DX", "w_out_XD")) == {"muon"}
    assert block["moe"]["w_up_EDF"] == "muon"
    assert block["moe"]["w_router_DE"] == "router"
    assert block["attention_norm"]["scale_D"] == kinds["embedding_VD"] == "rest"
    assert kinds["w_head_DV"] == "matrix"


def test_muon_orthogonalises_every_expert_by_itself(tiny, batch):
    config = changed(tiny, "optim", optimizer="muon", clip_norm=None)
    _, state, step = start(config)
    after, _ = step(state, batch)
    rate = 0.03 * float(schedule(config.optim, config.run.steps)(0))
    moved = (
        after.params["layers_0"]["block_0"]["moe"]["w_up_EDF"]
        - state.params["layers_0"]["block_0"]["moe"]["w_up_EDF"]
    ) / rate
    chex.assert_shape(moved, (2, 4, 16, 8))
    values = np.linalg.svd(moved, compute_uv=False)
    assert values.min() > 0.3  # all near 1: the update has no preferred direction
    assert values.max() < 1.5


def test_weight_decay_reaches_matrices_only(tiny, batch):
    config = changed(tiny, "optim", weight_decay=0.5, learning_rate=0.1, warmup_fraction=0.0)
    plain = changed(config, "optim", weight_decay=0.0)
    one, other = (start(c)[2](start(c)[1], batch)[0].params for c in (config, plain))
    np.testing.assert_array_equal(one["embedding_VD"], other["embedding_VD"])
    before = start(config)[1].params["w_head_DV"]
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
    shape = schedule(OptimConfig(**settings), 100)
    for step, value in points.items():
        np.testing.assert_allclose(shape(step), value, atol=1e-3, err_msg=f"step {step}")


def test_a_dense_model_has_no_groups_to_keep_together(tiny, batch):
    """Four parts of two rows each, although a routing group would span eight."""
    moe = dataclasses.replace(tiny.model.moe, every=0, group_size=128)
    config = changed(tiny, "model", moe=moe)
    model, state, _ = start(config)
    whole = jax.jit(functools.partial(gradients, model, config=config))(state.params, batch)
    split = changed(config, "optim", accumulate=4)
    parts = jax.jit(functools.partial(gradients, model, config=split))(state.params, batch)
    chex.assert_trees_all_close(parts, whole, atol=1e-5, rtol=1e-5)
    meshes.check_batches(config, 8)


def test_a_mesh_that_does_not_fit_says_what_would():
    with pytest.raises(ConfigError, match="6 devices, but there are 8.*4x2"):
        meshes.make_mesh(MeshConfig(data=2, expert=3))
    config = Config(model=dataclasses.replace(Config().model, moe=MoEConfig(group_size=512)))
    with pytest.raises(ConfigError, match="make it a multiple of 32"):
        meshes.check_batches(config, 8)
