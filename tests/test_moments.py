"""Moments of the optimizer in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import Config, OptimConfig
from moejax.lab.plan.device_parameters import Parameter, optimizer_bytes
from moejax.train.moments import round_at_random
from moejax.train.optimizer import make_optimizer

WANT = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
PARAMS = {"w_up_DF": np.zeros((6, 8), np.float32), "scale_D": np.ones(8, np.float32)}


def test_rounding_is_right_on_average_and_the_same_on_any_mesh():
    x = jnp.full((64, 64), 1.002, jnp.float32)
    rounded = round_at_random(x, jnp.int32(3), 1)
    assert rounded.dtype == jnp.bfloat16
    assert set(np.unique(rounded.astype(np.float32))) == {1.0, 1.0078125}
    np.testing.assert_allclose(rounded.astype(np.float32).mean(), 1.002, atol=4e-4)
    for other in (round_at_random(x, jnp.int32(4), 1), round_at_random(x, jnp.int32(3), 2)):
        assert (rounded != other).any()
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "a")))
    again = jax.jit(round_at_random, static_argnums=2)(spread, jnp.int32(3), 1)
    np.testing.assert_array_equal(rounded, again)


def test_what_has_no_neighbours_stays():
    x = np.array([0.0, -1.5, np.inf, -np.inf, np.nan, 3e-40], np.float32)
    rounded = round_at_random(jnp.asarray(x), jnp.int32(0), 0).astype(jnp.float32)
    np.testing.assert_allclose(rounded, x, atol=2e-40)


def run(optimizer: str, moments: str, steps: int = 60):
    """The distance to what is wanted, and the state, after some steps."""
    settings = OptimConfig(
        optimizer=optimizer, moments=moments, learning_rate=0.05, beta2=0.999, clip_norm=None
    )
    update = make_optimizer(settings)

    def loss(params):
        return jnp.square(params["w_up_DF"] * params["scale_D"] - WANT).mean()

    @jax.jit
    def step(params, state):
        updates, state = update.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    params, state = PARAMS, update.init(PARAMS)
    for _ in range(steps):
        params, state = step(params, state)
    return float(loss(params)), state


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_in_bfloat16_lead_where_those_in_float32_do(optimizer):
    (want, exact), (got, stored) = run(optimizer, "float32"), run(optimizer, "bfloat16")
    first = np.square(WANT).mean()
    assert want < 0.2 * first and abs(got - want) < 0.02 * first
    sizes = {}
    for name, state in (("float32", exact), ("bfloat16", stored)):
        found = [(p, x) for p, x in jax.tree_util.tree_leaves_with_path(state) if x.ndim]
        moments = [x for p, x in found if {k.name for k in p if hasattr(k, "name")} & {"mu", "nu"}]
        assert {x.dtype.name for x in moments} == {name}
        sizes[name] = sum(x.nbytes for x in moments)
        local = [Parameter(n, x.size, x.size, (), 0, 1) for n, x in PARAMS.items()]
        config = OptimConfig(optimizer=optimizer, moments=name)
        assert sum(optimizer_bytes(Config(optim=config), local).values()) == sizes[name]
    assert sizes["bfloat16"] * 2 == sizes["float32"]


def test_a_mean_of_squares_falls_when_gradients_end():
    """Rounded to the nearest, it would stay where it is with a decay of 0.999."""
    update = make_optimizer(OptimConfig(moments="bfloat16", beta2=0.999, clip_norm=None))
    params = {"w_up_DF": jnp.zeros((32, 32))}
    state = update.init(params)
    step = jax.jit(lambda g, state: update.update(g, state, params)[1])
    state = step({"w_up_DF": jnp.ones((32, 32))}, state)

    def mean(state):
        return float(
            next(
                x.astype(jnp.float32).mean()
                for p, x in jax.tree_util.tree_leaves_with_path(state)
                if x.ndim and any(getattr(k, "name", "") == "nu" for k in p)
            )
        )

    before = mean(state)
    for _ in range(200):
        state = step({"w_up_DF": jnp.zeros((32, 32))}, state)
    np.testing.assert_allclose(mean(state) / before, 0.999**200, rtol=0.02)
