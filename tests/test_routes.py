"""Recorded routes: replayed, they give the same losses and gradients; others are refused."""

import base64
import functools
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import Config, ConfigError, MeshConfig, changed
from moejax.data.route_files import Recording, read_recording, write_recording
from moejax.data.routes import fit_routes, lay_batch
from moejax.models.decoder import DecoderLM
from moejax.models.replay import record_routes
from moejax.routing.contract import RouterInput
from moejax.routing.routers import ROUTERS
from moejax.runtime import batch_rows, device_mesh, partition
from moejax.train.gradients import gradients
from moejax.train.optimizer import make_optimizer
from moejax.train.state import init_state

KEY = jax.random.key(0)


@functools.cache
def start(config: Config) -> tuple:
    """Parameters without a program that draws them, and the selection bias."""
    model = DecoderLM(config.model, 257)
    state = jax.eval_shape(lambda: init_state(model, make_optimizer(config.optim), config))
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        centre, size = (1, 0) if path[-1].key == "scale_D" else (0, leaf.shape[-2:][0] ** -0.5)
        return rng.normal(centre, size, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, state.params)
    bias = state.bias_LE
    return params, None if bias is None else np.zeros(bias.shape, np.float32)


@functools.cache
def learner(config: Config, grid: jax.sharding.Mesh):
    model = DecoderLM(config.model, 257, config.mesh)
    return jax.jit(functools.partial(gradients, model, config=config))


def learn(config: Config, batch: dict, begin: tuple) -> tuple:
    """The gradient and the sums of a batch, on the mesh of the settings."""
    layout = config.mesh
    count = layout.data * layout.expert * layout.model * layout.context
    grid = device_mesh.make_mesh(layout, jax.devices()[:count])
    with jax.set_mesh(grid):
        shardings = partition.tree_shardings(grid, begin[0], layout.spreads)
        params = jax.device_put(begin[0], shardings)
        placed = batch_rows.place_batch(grid, batch)
        return jax.device_get(learner(config, grid)(params, begin[1], placed, KEY))


def record(config: Config, batch: dict, begin: tuple) -> np.ndarray:
    """The routes of a batch, as in training."""
    run = jax.jit(functools.partial(record_routes, DecoderLM(config.model, 257)))
    return np.asarray(run(*begin, batch, KEY))


def routed(tiny: Config, **settings) -> Config:
    """A model with a bias, and layers that are computed again."""
    moe = {
        "router": "deepseek_v3",
        "capacity_factor": 2.0,  # room for all
        "balance.loss_weight": 0.1,
        "balance.bias_update": "sign",
    }
    base = {f"model.moe.{name}": value for name, value in moe.items()}
    base |= {"model.remat": "layer", "mesh": MeshConfig(data=1)}
    return changed(tiny, base | settings)


REMEMBERED = {}


def reference(tiny: Config, batch: dict, parts: int = 1) -> tuple:
    """Where a model begins, its routes, and its gradient and sums on one device."""
    if parts not in REMEMBERED:
        begin = start(routed(tiny))
        routes = record(routed(tiny), batch, begin)
        config = routed(tiny, **{"optim.accumulate": parts})
        REMEMBERED[parts] = begin, routes, learn(config, batch, begin)
    return REMEMBERED[parts]


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_replay_gives_the_loss_and_the_gradients_to_the_bit(parts, tiny, batch):
    """Under recomputation and accumulation. The selection bias is of no account then."""
    begin, routes, want = reference(tiny, batch, parts)
    real = batch["segments"] > 0
    assert routes.shape == (8, 16, 2, 2)
    assert (routes[real] >= 0).all() and (routes[~real] == -1).all()
    moved = (begin[0], begin[1] + np.array([9.0, 0, 0, 9.0], np.float32))
    replaying = functools.partial(learn, routed(tiny, **{"optim.accumulate": parts}), begin=moved)
    grads, sums = replaying(batch | {"routes": routes})
    chex.assert_trees_all_equal(grads, want[0])
    chex.assert_trees_all_equal(sums, want[1])
    router = grads["layers_0"]["block_0"]["moe"]["w_router_DE"]
    assert (np.abs(router).max((1, 2)) > 1e-6).all()  # in every layer
    others = np.where(routes < 0, routes, (routes + 1) % 4)
    _, sums = replaying(batch | {"routes": others})
    assert abs(sums.nats - want[1].nats) > 1e-2
    load_LE = np.roll(want[1].router.asked_BE, 1, axis=-1)
    assert np.ptp(load_LE) > 0
    np.testing.assert_array_equal(sums.router.asked_BE[0], load_LE[0])


FORMS = {
    "einsum": {"model.moe.dispatch": "einsum"},
    "gather": {"model.moe.dispatch": "gather", "model.remat": "none", "optim.accumulate": 1},
    "2x2 all_to_all": {"mesh": MeshConfig(data=2, expert=2, expert_parallel="all_to_all")},
    "2x2x2 ragged": {"mesh": MeshConfig(data=2, expert=2, model=2, expert_parallel="ragged")},
    "1x4 all_gather": {"mesh": MeshConfig(data=1, expert=4, expert_parallel="all_gather")},
    "context": {"mesh": MeshConfig(context=2, data=2)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_every_form_and_mesh_replays_the_routes_of_one_device(name, tiny, batch):
    begin, routes, want = reference(tiny, batch)
    if name == "gather":
        routes = routes[..., ::-1]  # nothing is dropped, so that the order does not matter
    got = learn(
        routed(tiny, **{"optim.accumulate": 2, **FORMS[name]}), batch | {"routes": routes}, begin
    )
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(want[0]), jax.tree.leaves(got[0]), strict=True
    ):
        largest = np.abs(one).max()
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * largest, err_msg=where)
    np.testing.assert_allclose(got[1].nats, want[1].nats, rtol=1e-5)
    np.testing.assert_array_equal(got[1].router.asked_BE, want[1].router.asked_BE)


@pytest.mark.parametrize("name", [name for name, router in ROUTERS.items() if router.replays])
def test_a_router_weighs_recorded_choices_as_its_own(name):
    router, K = ROUTERS[name], 1 if name in ("switch", "base") else 2
    rng = np.random.default_rng(0)
    inputs = RouterInput(
        logits_GSE=jnp.asarray(rng.normal(size=(1, 6, 2 if name == "dense" else 4)), jnp.float32),
        real_GS=jnp.ones((1, 6), bool),
        top_k=K,
        capacity=6,
    )
    own = router.choose(inputs)
    again = router.choose(replace(inputs, replayed_GSK=own.expert_GSK))
    chex.assert_trees_all_equal(own, again)
    none = own.expert_GSK.at[0, 0].set(-1)
    changed_choice = router.choose(replace(inputs, replayed_GSK=none, training=True))
    np.testing.assert_array_equal(changed_choice.expert_GSK, none)
    assert (changed_choice.weight_GSK[0, 0] == 0).all()


def test_seats_are_given_out_in_the_order_of_recorded_choices(tiny, batch):
    """All first choices go before any second: here tokens 0 to 3 of a group want expert 0 second,
    tokens 4 to 7 first, and each expert has two slots.
    """
    config = changed(tiny, {"model.num_layers": 1, "model.moe.dispatch": "gather"})
    model = DecoderLM(changed(config, {"model.moe.capacity_factor": 0.5}).model, 257)
    begin = start(config)
    routes = np.array([[1, 0]] * 4 + [[0, 2]] * 4)
    routes = np.broadcast_to(np.concatenate([routes, routes])[:, None], (8, 16, 1, 2))
    run = jax.jit(lambda r: model.apply({"params": begin[0]}, batch | {"routes": r}, True)[1])
    for order, want in ((1, [1, 1, 0, 0, 2, 2, 0, 0]), (-1, [2, 2, 0, 0, 1, 1, 0, 0])):
        routed = run(routes[..., ::order])
        np.testing.assert_array_equal(routed.stats.seated_BW[0, 1], want * 2)  # no padding there
        np.testing.assert_array_equal(routed.expert_LBNK[0, 1], routes[1, :, 0, ::order])


# Routes of other engines, and what is no route.


def four(tiny: Config, **settings) -> Config:
    """Four layers, the first of them dense: three are routed."""
    moe = replace(tiny.model.moe, first_dense=1, **settings)
    return changed(tiny, {"model.num_layers": 4, "model.moe": moe})


def test_recordings_of_other_engines_are_read(tiny):
    model = four(tiny).model
    rng = np.random.default_rng(0)
    want = np.argsort(rng.random((5, 3, 4)), -1)[..., :2]
    everywhere = np.concatenate([np.zeros((5, 1, 2), int), want], axis=1)  # the dense layer unused
    for given in (want, want.astype(np.uint8), everywhere.astype(np.int32)):
        got = fit_routes(model, given, 5)
        np.testing.assert_array_equal(got, want)
        assert got.dtype == np.int32
        text = base64.b64encode(given.astype(np.int32).tobytes()).decode()
        np.testing.assert_array_equal(fit_routes(model, text, 5), want)
        short = fit_routes(model, given[:-1], 5)  # without the token that no model has read
        np.testing.assert_array_equal(short[:-1], want[:-1])
        assert (short[-1] == -1).all()


WRONG = {
    "layers": (np.zeros((5, 2, 2), int), "it has 3 routed layers and 2 experts a token"),
    "experts a token": (np.zeros((5, 3, 8), int), "[5, 3, 8] are not this model's"),
    "tokens": (np.zeros((7, 3, 2), int), "are not of these tokens: there are [5]"),
    "dimensions": (np.zeros((5, 6), int), "[5, 3, 2]: tokens, layers, experts"),
    "no integers": (np.zeros((5, 3, 2)), "which are integers, not float64"),
    "too large": (np.full((5, 3, 2), [1, 4]), "token 0 in routed layer 0: 4 is no expert"),
    "too small": (np.full((5, 3, 2), [1, -2]), "-2 is no expert of this model"),
    "twice": (np.full((5, 3, 2), 1), "expert 1 is there twice"),
    "no base64": ("!", "no array of int32 in base64"),
    "base64 of another model": ("AAAA" * 4, "3 numbers of experts are not this model's"),
}


@pytest.mark.parametrize("name", WRONG)
def test_routes_of_another_model_are_refused(name, tiny):
    routes, words = WRONG[name]
    with pytest.raises(ConfigError) as refused:
        fit_routes(four(tiny).model, routes, 5)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"every": 0}, "a language model with routed layers, and this one has none"),
        ({"router": "expert_choice"}, "expert_choice has no routes to replay: tokens do not"),
        ({"router": "hash"}, "hash has no routes to replay: it takes no recorded choices"),
    ],
)
def test_models_without_routes_are_refused(settings, words, tiny, batch):
    model = DecoderLM(changed(tiny, {f"model.moe.{k}": v for k, v in settings.items()}).model, 257)
    batch = batch | {"routes": np.zeros((8, 16, 2, 2), np.int32)}
    with pytest.raises(ConfigError) as refused:
        jax.eval_shape(lambda: model.init(KEY, batch, False))
    assert words in str(refused.value)


def test_modules_that_predict_further_tokens_choose_by_themselves(tiny, batch):
    config = routed(tiny, **{"model.next_tokens": 1})
    model = DecoderLM(config.model, 257)
    begin = jax.eval_shape(lambda: init_state(model, make_optimizer(config.optim), config))
    routes = jax.eval_shape(
        functools.partial(record_routes, model), begin.params, begin.bias_LE, batch
    )
    assert routes.shape == (8, 16, 2, 2)
    run = functools.partial(gradients, model, config=config)
    _, sums = jax.eval_shape(run, begin.params, begin.bias_LE, batch | {"routes": routes}, KEY)
    assert sums.router.asked_BE.shape == (3, 4)


def test_a_batch_with_routes_of_another_model_is_refused_before_it_is_compiled(tiny, batch):
    model = DecoderLM(tiny.model, 257)
    for shape, words in (((8, 16, 3, 2), "not this model's"), ((8, 8, 2, 2), "these tokens")):
        with pytest.raises(ConfigError, match=words):
            jax.eval_shape(
                lambda shape=shape: model.init(KEY, batch | {"routes": np.zeros(shape)}, False)
            )


def recording() -> Recording:
    rng = np.random.default_rng(0)
    lengths = (5, 3)
    return Recording(
        tokens=[rng.integers(0, 99, n).astype(np.int32) for n in lengths],
        routes=[np.argsort(rng.random((n, 2, 4)), -1)[..., :2] for n in lengths],
        prompt_lengths=[2, 1],
        settings={"model": "of a test"},
    )


@pytest.mark.parametrize("experts, kind", [(4, "int8"), (128, "int8"), (129, "int16")])
def test_a_file_gives_back_what_was_recorded(experts, kind, tmp_path):
    want, file = recording(), tmp_path / "routes.safetensors"
    want.routes[0][0, 0, 0] = experts - 1
    want.routes[1][-1] = -1
    write_recording(file, want)
    got = read_recording(file)
    chex.assert_trees_all_equal(got.tokens, want.tokens)
    for one, other in zip(got.routes, want.routes, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == kind
    assert (got.prompt_lengths, got.settings) == (want.prompt_lengths, want.settings)


def test_files_that_are_no_recording_are_refused(tmp_path):
    from safetensors.numpy import save_file

    file = tmp_path / "other"
    with pytest.raises(ConfigError, match="cannot be read as routes"):
        read_recording(file)
    file.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="cannot be read as routes"):
        read_recording(file)
    save_file({"w": np.zeros(3)}, file)
    with pytest.raises(ConfigError, match="it has w"):
        read_recording(file)
    one = recording()
    write_recording(file, replace(one, tokens=[one.tokens[0], one.tokens[1][:-1]]))
    with pytest.raises(ConfigError, match="is broken"):
        read_recording(file)


def test_a_recording_becomes_a_batch(tiny):
    one = recording()
    batch = lay_batch(tiny.model, one.tokens, one.routes, 16)
    assert {name: x.shape for name, x in batch.items() if name != "routes"} == dict.fromkeys(
        ("inputs", "targets", "segments", "positions"), (2, 16)
    )
    np.testing.assert_array_equal(batch["inputs"][0, :4], one.tokens[0][:-1])
    np.testing.assert_array_equal(batch["targets"][0, :4], one.tokens[0][1:])
    np.testing.assert_array_equal(batch["segments"].sum(1), [4, 2])
    np.testing.assert_array_equal(batch["routes"][1, :2], one.routes[1][:-1])
    assert (batch["routes"][1, 2:] == -1).all()
    with pytest.raises(ConfigError, match="text 0 has 5 tokens, and a row of 3 positions"):
        lay_batch(tiny.model, one.tokens, one.routes, 3)
