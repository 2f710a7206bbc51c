"""Image classifiers: a whole one against float64, and what padding and the mesh must not change."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from moejax.config import (
    BalanceConfig,
    Config,
    DataConfig,
    ImageConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    changed,
)
from moejax.models.by_kind import build
from moejax.models.classifier import patches
from moejax.models.counts import forward_flops, parameters
from moejax.models.initial_params import init_params
from moejax.runtime import batch_rows, device_mesh
from moejax.train.eval_step import eval_step
from moejax.train.optimizer import make_optimizer, make_schedule
from moejax.train.state import init_state
from moejax.train.step import train_step

V, B, SIZE = 5, 8, 6


def classifier(kind="vit", **moe) -> Config:
    """Images of 6 x 6 in nine patches; the second of two layers is routed, with three experts."""
    settings = {"num_experts": 3, "top_k": 2, "hidden_size": 7, "every": 2}
    settings |= {"group_size": 18 if kind == "vit" else 4, "capacity_factor": 0.5}
    return Config(
        model=ModelConfig(
            kind=kind,
            image=ImageConfig(size=SIZE, channels=2, patch_size=2),
            num_layers=2,
            width=8,
            num_heads=2,
            activation="gelu",
            dense_hidden_size=12,
            unroll=False,  # compiles faster
            moe=MoEConfig(**settings | moe),
        ),
        data=DataConfig(source="digits", batch_size=B, eval_batch_size=B),
        optim=OptimConfig(learning_rate=1e-2),
    )


drawn = jax.jit(init_params, static_argnums=(0, 1))
SOFT = {"router": "soft", "group_size": 9, "capacity_factor": 1.0}
PRIORITY = {"router": "v_moe", "seating": "priority"}


@pytest.fixture
def images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (B, SIZE, SIZE, 2), dtype=np.uint8),
        "targets": rng.integers(0, V, (B, 1), dtype=np.int32),
        "segments": np.ones((B, 1), np.int32),
    }


def test_patches_by_hand():
    """An image of 4 x 4 is cut into four patches, row by row."""
    image = np.arange(16).reshape(1, 4, 4, 1)
    wanted = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert patches(jnp.asarray(image), 2)[0].tolist() == wanted


def norm(x, scale_D):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale_D


def gelu(x):
    """Hendrycks & Gimpel 2016, their approximation by tanh."""
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(p, x_ND, heads):
    """Every patch looks at every patch (Dosovitskiy et al. 2020, Eq. 6); queries, keys normed."""
    N, D = x_ND.shape
    q, k, v = (
        (x_ND @ p[f"w_{name}_DX"]).reshape(N, heads, -1) for name in ("query", "key", "value")
    )
    q, k = norm(q, p["query_norm"]["scale_D"]), norm(k, p["key_norm"]["scale_D"])
    out = np.zeros_like(v)
    for h in range(heads):
        for n in range(N):
            weight = oracle.softmax(k[:, h] @ q[n, h] / np.sqrt(D // heads))
            out[n, h] = weight @ v[:, h]
    return out.reshape(N, D) @ p["w_out_XD"]


def slow_classifier(config: Config, params, batch):
    """Logits in float64, in the evaluation of a model of two layers, the second of them routed."""
    model, moe = config.model, config.model.moe
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    blocks = [jax.tree.map(lambda x: x[0], p["layers_0"][f"block_{i}"]) for i in range(2)]
    x_BND = []
    for image in batch["images"]:
        cut = [
            image[i : i + 2, j : j + 2].reshape(-1) / 127.5 - 1
            for i in range(0, SIZE, 2)
            for j in range(0, SIZE, 2)
        ]
        x_BND.append(np.array(cut) @ p["w_patch_XD"] + p["position_ND"])
    for i, block in enumerate(blocks):
        for b, x_ND in enumerate(x_BND):
            seen = norm(x_ND, block["attention_norm"]["scale_D"])
            x_BND[b] = x_ND + attention(block["attention"], seen, model.num_heads)
        normed = [norm(x_ND, block["feed_forward_norm"]["scale_D"]) for x_ND in x_BND]
        if i == 0:
            dense = block["feed_forward"]
            more = [gelu(x @ dense["w_up_DF"]) @ dense["w_down_FD"] for x in normed]
        else:
            more = slow_experts(moe, block["moe"], normed)
        x_BND = [x + y for x, y in zip(x_BND, more, strict=True)]
    pooled = [norm(x_ND, p["final_norm"]["scale_D"]).mean(0) for x_ND in x_BND]
    return np.array(pooled) @ p["w_head_DV"]


def slow_experts(moe: MoEConfig, p, x_BND):
    """V-MoE with batch-prioritised seats (Riquelme et al. 2021, Algorithm 2) or Soft MoE
    (Puigcerver et al. 2023, Algorithm 1), in groups of ``group_size`` patches.
    """
    shape = np.shape(x_BND)
    x_GSD = np.reshape(x_BND, (-1, moe.group_size, shape[-1]))
    expert = [lambda x, e=e: gelu(x @ p["w_up_EDF"][e]) @ p["w_down_EFD"][e] for e in range(3)]
    slow = soft_group if moe.router == "soft" else functools.partial(prioritised_group, moe)
    return list(np.reshape([slow(p, expert, x_SD) for x_SD in x_GSD], shape))


def soft_group(p, expert, x_SD):
    unit = lambda x, axis: x / np.linalg.norm(x, axis=axis, keepdims=True)  # noqa: E731
    phi_DR = p["w_router_DEC"].reshape(x_SD.shape[1], -1)
    logits_SR = unit(x_SD, 1) @ (p["router_scale"] * unit(phi_DR, 0))
    dispatch_SR = np.exp(logits_SR) / np.exp(logits_SR).sum(0, keepdims=True)
    combine_SR = np.exp(logits_SR) / np.exp(logits_SR).sum(1, keepdims=True)
    slots_RD = dispatch_SR.T @ x_SD
    each = len(slots_RD) // len(expert)
    made = [expert[r // each](slots_RD[r]) for r in range(len(slots_RD))]
    return combine_SR @ np.array(made)


def prioritised_group(moe, p, expert, x_SD):
    """Patches in the order of their largest weight take seats, first choices before second ones."""
    gates = np.array([oracle.softmax(x @ p["w_router_DE"]) for x in x_SD])
    room = int(np.ceil(moe.eval_capacity_factor * moe.top_k * len(x_SD) / len(expert)))
    room = dict.fromkeys(range(len(expert)), room)
    y_SD, order = np.zeros_like(x_SD), sorted(range(len(x_SD)), key=lambda s: -gates[s].max())
    for choice in range(moe.top_k):
        for s in order:
            e = oracle.best(gates[s], moe.top_k)[choice]
            if room[e]:
                room[e] -= 1
                y_SD[s] += gates[s, e] * expert[e](x_SD[s])
    return y_SD


def moved(params):
    """Nothing is at 0 or 1."""
    return jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moe", "form"),
    [(PRIORITY | {"eval_capacity_factor": 0.5}, "auto"), (SOFT, "blockwise")],
    ids=["v", "soft"],
)
def test_a_whole_transformer_equals_one_in_float64(moe, form, images):
    config = changed(classifier(**moe), {"model.attention.form": form})
    model = build(config.model, V)
    params = jax.jit(moved)(drawn(model, config))
    run = jax.jit(lambda p, b: model.apply({"params": p}, b, False))
    logits_B1V, routed = run(params, images)
    chex.assert_shape(logits_B1V, (B, 1, V))
    np.testing.assert_allclose(logits_B1V[:, 0], slow_classifier(config, params, images), atol=1e-4)
    asked, seated = (np.sum(x) for x in (routed.stats.asked_BE, routed.stats.seated_BE))
    assert moe == SOFT or seated < 0.8 * asked


def test_the_logits_of_an_mlp_do_not_depend_on_its_neighbours(images):
    config = classifier("mlp", capacity_factor=None, eval_capacity_factor=None)
    model = build(config.model, V)
    params = drawn(model, config)
    run = jax.jit(lambda b: model.apply({"params": params}, b, False)[0])
    turned = {name: x[::-1] for name, x in images.items()}
    np.testing.assert_allclose(run(images)[::-1], run(turned), atol=1e-6)


@pytest.mark.slow
def test_padding_takes_no_slot_and_is_in_no_count(images):
    """Of images that are padding only their place is left."""
    config = classifier(capacity_factor=None, eval_capacity_factor=None)
    model = build(config.model, V)
    params = drawn(model, config)
    step = jax.jit(functools.partial(eval_step, model=model))
    few = {name: x.copy() for name, x in images.items()}
    few["segments"][5:] = 0
    few["images"][5:] = 255
    report, _, counts = step(params, None, few)
    assert report.sums.targets == counts.confusion_VV.sum() == 5
    assert report.sums.router.tokens_B[0] == 5 * 9
    assert counts.asked_LEV.sum() == report.sums.router.asked_BE.sum() == 5 * 9 * 2
    whole, _, _ = step(params, None, images)
    changed, _, _ = step(params, None, few | {"images": images["images"]})
    np.testing.assert_allclose(report.sums.nats, changed.sums.nats, rtol=1e-6)
    assert whole.sums.targets == 8


def test_counts_by_class_by_hand(images):
    config = classifier("mlp", every=0)
    model = build(config.model, V)
    params = drawn(model, config)
    step = jax.jit(functools.partial(eval_step, model=model))
    report, chosen, counts = step(params, None, images)
    logits_B1V, _ = jax.jit(lambda b: model.apply({"params": params}, b, False))(images)
    wanted = np.zeros((V, V))
    for row, target in zip(np.asarray(logits_B1V)[:, 0], images["targets"][:, 0], strict=True):
        wanted[target, row.argmax()] += 1
    assert chosen is None and counts.asked_LEV is None
    assert (np.asarray(counts.confusion_VV) == wanted).all()
    assert report.sums.correct == np.trace(wanted) and report.sums.text_bytes is None


@pytest.mark.parametrize("kind", ["vit", "mlp"])
def test_parameters_are_those_that_the_plan_counts(kind):
    config = classifier(kind)
    params = drawn(build(config.model, V), config)
    assert sum(parameters(config.model, V).values()) == sum(x.size for x in jax.tree.leaves(params))
    flops = forward_flops(config.model, V, config.positions)
    assert flops["embedding"] == 2 * 8 * (8 if kind == "vit" else 72)
    assert (flops["attention"] == 0) == (kind == "mlp")


def steps(config: Config, images, mesh=None, count=2):
    """Parameters after some steps, and the last report."""
    model, optimizer = build(config.model, V, config.mesh), make_optimizer(config.optim)
    fixed = {"model": model, "optimizer": optimizer, "config": config}
    step = jax.jit(functools.partial(train_step, shape=make_schedule(config.optim, 10), **fixed))
    mesh = mesh or device_mesh.make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(model, optimizer, config))()
        for _ in range(count):
            state, report = step(state, batch_rows.place_batch(mesh, images))
    return jax.device_get(state.params), float(report.batch.sums.nats)


@pytest.mark.parametrize("kind", ["vit", pytest.param("mlp", marks=pytest.mark.slow)])
def test_micro_batches_and_meshes_take_the_step_of_one_device(kind, images):
    balance = BalanceConfig(loss_weight=0.1)
    config = classifier(kind, router="top_k", capacity_factor=1.0, balance=balance)
    params, nats = steps(config, images)
    optim = dataclasses.replace(config.optim, accumulate=2)
    cut = dataclasses.replace(config, optim=optim)
    layout = MeshConfig(data=2, expert=1)
    spread = dataclasses.replace(config, mesh=layout)
    for other, mesh in ((cut, None), (spread, device_mesh.make_mesh(layout, jax.devices()[:2]))):
        theirs, their_nats = steps(other, images, mesh)
        chex.assert_trees_all_close(theirs, params, atol=2e-5)
        assert their_nats == pytest.approx(nats, rel=1e-5)
