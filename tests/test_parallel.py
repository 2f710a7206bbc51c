"""Experts across devices: every mesh and every form equals one device and the float64 oracle."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from moejax import balance, selection_bias
from moejax import mesh as meshes
from moejax.config import MeshConfig, MoEConfig
from moejax.layer import MoELayer

B, N, D, F, E, S = 16, 4, 8, 4, 8, 4
MESHES = {"1x1": (1, 1, 1), "8x1": (8, 1, 1), "1x8": (1, 8, 1), "2x4": (2, 4, 1), "4x2": (4, 2, 1)}
MESHES["2x2x2"] = (2, 2, 2)
FORMS = ("auto", "all_to_all", "ragged", "all_gather")


def moe(**settings) -> MoEConfig:
    shape = {"num_experts": E, "hidden_size": F, "group_size": S, "eval_capacity_factor": None}
    return MoEConfig(**shape | settings)


CASES = {
    "top-1, drops": moe(router="switch", top_k=1, capacity_factor=1.5),
    "top-2, drops": moe(capacity_factor=0.8, expert_groups=8),
    "deepseek_v3": moe(
        router="deepseek_v3",
        top_k=3,
        expert_groups=4,
        kept_expert_groups=2,
        shared_experts=1,
        capacity_factor=1.0,
    ),
    "dropless": moe(top_k=3, capacity_factor=None),
}


def mesh_of(name: str, **settings) -> tuple[MeshConfig, jax.sharding.Mesh]:
    data, expert, model = MESHES[name]
    config = MeshConfig(data=data, expert=expert, model=model, **settings)
    return config, meshes.make_mesh(config, jax.devices()[: data * expert * model])


@functools.cache
def inputs(case: str) -> tuple:
    """Parameters with strong opinions, tokens with padding among them, a bias, and a direction."""
    config, rng = CASES[case], np.random.default_rng(3)
    real = rng.random((B, N)) > 0.2
    x, direction = (rng.normal(size=(2, B, N, D)) * real[..., None]).astype(np.float32)
    start = functools.partial(MoELayer(config, "swiglu").init, training=True)
    params = jax.jit(start)(jax.random.key(1), x, real)["params"]
    params = {k: 2 * v if "router" in k else v for k, v in params.items()}
    bias_E = jnp.linspace(-0.2, 0.2, E) if config.built_router.always_biased else None
    return params, x, real, bias_E, direction / 10


@functools.cache
def on(case: str, mesh: str, **settings) -> tuple:
    """Loss, what the layer says, the norm of the gradient, a new bias, and every gradient."""
    params, x, real, bias_E, direction = inputs(case)
    layout, grid = mesh_of(mesh, **settings)
    layer = MoELayer(CASES[case], "swiglu", layout)

    def loss(params, x):
        y, stats, chosen = layer.apply({"params": params}, x, real, training=True, bias_E=bias_E)
        layers = balance.sum_sequences(jax.tree.map(lambda s: s[None], stats))
        aux = balance.balance_loss(layers).sum() + 0.1 * balance.z_loss(layers).sum()
        return (y * direction).sum() + aux, (y, stats, chosen)

    def run(params, x):
        (value, said), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        asked_E = said[1].asked_BE.sum(0)
        bias = selection_bias.step(jnp.zeros((1, E)), asked_E[None], "proportional", 0.01)
        norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients[0])))
        violation = balance.max_violation(asked_E[None])
        return value, said, norm, bias, violation, gradients

    with jax.set_mesh(grid):
        shardings = meshes.tree_shardings(grid, params, layout.fsdp)
        placed = jax.device_put(params, shardings)
        x = jax.device_put(x, meshes.named(grid, "batch_BN"))
        return jax.device_get(jax.jit(run)(placed, x))


@functools.cache
def reference(case: str) -> tuple:
    """The oracle's loss, output, who asked and who got a slot by sequence, and for each array a
    direction and the slope of the loss along it.
    """
    params, x, real, bias_E, direction = inputs(case)
    config = CASES[case]
    slots = oracle.capacity(S, config.top_k, E, config.capacity_factor or E)
    groups = {name: getattr(config, name) for name in ("expert_groups", "kept_expert_groups")}
    layer = oracle.Layer(config.router, config.top_k, slots, **groups)
    exact = jax.tree.map(lambda p: np.asarray(p, np.float64), params | {"x": x})
    bias = None if bias_E is None else np.float64(bias_E)

    def run(inputs, plan=None):
        rest = {k: v for k, v in inputs.items() if k != "x"}
        routed = inputs["x"].reshape(-1, S, D), real.reshape(-1, S)
        return oracle.run(layer, rest, *routed, bias_E=bias, plan=plan)

    found = run(exact)
    plan = [g.plan for g in found]

    def loss(inputs):
        moved = run(inputs, plan)
        t, y = oracle.tokens_of(moved), np.concatenate([g.y_SD for g in moved])
        aux = oracle.switch_balance(t) + 0.1 * oracle.z_loss(t)
        return (y * direction.reshape(y.shape)).sum() + aux

    y = np.concatenate([g.y_SD for g in found]).reshape(x.shape)
    counts = [
        np.concatenate([getattr(g, f"{name}_SE") for g in found]).reshape(B, N, E).sum(1)
        for name in ("asked", "seated")
    ]
    rng, slopes = np.random.default_rng(2), {}
    for name, array in oracle.flat(exact).items():
        along = rng.normal(size=array.shape)
        along /= np.sqrt(np.square(along).sum())
        slopes[name] = along, oracle.slope(loss, exact, name, along)
    return loss(exact), y, counts, slopes


def assert_is_right(case: str, got: tuple) -> None:
    """Equal to the oracle, and to one device, in all that ``on`` gives."""
    value, (y, stats, _), norm, bias, _, (params, x) = got
    loss, exact_y, (asked_BE, seated_BE), slopes = reference(case)
    np.testing.assert_allclose(y, exact_y, atol=1e-5)
    np.testing.assert_allclose(value, loss, atol=1e-5)
    np.testing.assert_array_equal(stats.asked_BE, asked_BE)
    np.testing.assert_array_equal(stats.seated_BE, seated_BE)
    for name, gradient in oracle.flat(params | {"x": x}).items():
        along, slope = slopes[name]
        np.testing.assert_allclose((gradient * along).sum(), slope, atol=1e-5, err_msg=name)
    mean = asked_BE.sum() / E
    np.testing.assert_allclose(bias[0], 0.01 * (1 - asked_BE.sum(0) / mean), atol=1e-5)
    squares = sum(np.square(np.float64(g)).sum() for g in jax.tree.leaves(params))
    np.testing.assert_allclose(norm, np.sqrt(squares), rtol=1e-5)
    chex.assert_trees_all_close(got, on(case, "1x1"), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_one_device_equals_the_oracle(case):
    got = on(case, "1x1")
    assert_is_right(case, got)
    dropped = got[1][1].seated_BE.sum() < got[1][1].asked_BE.sum()
    assert dropped == (case != "dropless")
    assert np.abs(got[-1][0]["w_router_DE"]).max() > 1e-3  # the router learns


GRID = [
    pytest.param(
        mesh,
        form,
        case,
        marks=[] if mesh == "2x2x2" and (form != "auto") else [pytest.mark.slow],
    )
    for mesh in MESHES
    for form in FORMS
    for case in CASES
]


@pytest.mark.parametrize(("mesh", "form", "case"), GRID)
def test_every_mesh_and_form_equals_one_device_and_the_oracle(mesh, form, case):
    """Outputs, drops, losses, metrics, every gradient, their norm, and the update of the bias."""
    assert_is_right(case, on(case, mesh, expert_parallel=form))


@pytest.mark.parametrize("form", FORMS)
def test_neither_fsdp_nor_chunks_change_anything(form):
    chunks = 1 if form == "auto" else 2
    got = on("deepseek_v3", "2x2x2", expert_parallel=form, fsdp=True, chunks=chunks)
    assert_is_right("deepseek_v3", got)
