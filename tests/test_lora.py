"""Adapters beside a frozen model: what they add, what learns, and on which devices."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from moejax.config import AttentionConfig, Config, ConfigError, LoraConfig, MeshConfig, changed
from moejax.models.adapters import (
    ROUTERS,
    adapt,
    adapter_shapes,
    attach,
    begin_adapters,
    find_place,
    merge,
)
from moejax.models.attention import Attention
from moejax.models.decoder import DecoderLM
from moejax.models.initial_params import init_params
from moejax.models.latent_attention import LatentAttention
from moejax.models.make_context import make_context
from moejax.moe.adapted import Adapted, as_array
from moejax.moe.layer import FeedForward, MoELayer
from moejax.moe.quantise_params import Weights, quantise_params
from moejax.moe.quantised import Quantised
from moejax.runtime import batch_rows, device_mesh, partition
from moejax.train.gradients import gradients
from moejax.train.prepare import Learner, make_programs
from moejax.train.state import init_state, start_state

KEY = jax.random.key(0)
LORA = LoraConfig(rank=2, alpha=3.0)
MOE = {"num_experts": 8, "shared_experts": 1, "capacity_factor": 1.25, "first_dense": 1}
GROUPED = {"model.moe": MOE | {"dispatch": "gather"}, "model.num_layers": 2}
LATENT = AttentionConfig(kv_rank=6, query_rank=5, rope_head_size=4, value_head_size=6)
KINDS = {
    "grouped queries, slots": GROUPED,
    "latent attention, rows": {
        "model.qk_norm": False,
        "model.attention": LATENT,
        "model.moe": MOE | {"capacity_factor": None, "router": "deepseek_v3"},
    },
}


def settings(tiny: Config, kind: str) -> Config:
    return changed(tiny, KINDS[kind])


def fill(shapes):
    """Numbers for a tree of shapes."""
    rng = np.random.default_rng(0)

    def draw(path, like):
        size = like.shape[-2] ** -0.5 if like.ndim > 1 else 1
        return jnp.asarray(size * rng.normal(size=like.shape) + ("scale_D" in path), jnp.float32)

    return unflatten_dict({path: draw(path, like) for path, like in flatten_dict(shapes).items()})


@functools.cache
def drawn(config: Config):
    """A base, its adapters at first, and some that have learned."""
    model = DecoderLM(config.model, 257)
    base = fill(jax.eval_shape(lambda: init_params(model, config)))
    trained = begin_adapters(base, LORA, jax.random.key(1))
    return model, base, trained, fill(trained)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_adapters_add(tiny, batch, kind):
    """Those that begin change nothing, to the bit; any add what is added to the weights by merging;
    and the gradients are those of the sum by the chain rule.
    """
    config = settings(tiny, kind)
    model, base, first, moved = drawn(config)
    bias_LE = 0.1 * jnp.arange(8.0)[None] if config.model.moe.has_selection_bias else None
    key = jax.random.key(0)

    @jax.jit
    def run(base, trained):
        adapted = adapt(model, base, LORA)
        return adapted.apply({"params": trained}, batch, True, bias_LE)[0], gradients(
            adapted, trained, bias_LE, batch, key, config
        )[0]

    plain = jax.jit(
        lambda p: (
            model.apply({"params": p}, batch, True, bias_LE)[0],
            gradients(model, p, bias_LE, batch, key, config)[0],
        )
    )
    np.testing.assert_array_equal(run(base, first)[0], plain(base)[0])
    logits, found = run(base, moved)
    attached = attach(jax.tree.map(jnp.copy, base), moved, LORA.scale)
    whole, dwhole = plain(merge(attached, "float32"))
    np.testing.assert_allclose(logits, whole, atol=1e-4 * np.abs(whole).max())
    assert np.abs(whole - plain(base)[0]).max() > 0.01
    assert jax.tree.structure(found) == jax.tree.structure(moved)
    dwhole = flatten_dict(dwhole)
    for path, got in flatten_dict(found).items():
        other = flatten_dict(moved)[(*path[:-1], "lora_b" if path[-1] == "lora_a" else "lora_a")]
        dw = np.float64(dwhole[path[:-1]])
        want = np.swapaxes(other, -1, -2)
        want = LORA.scale * (dw @ want if path[-1] == "lora_a" else want @ dw)
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max(), err_msg=str(path))
        assert np.abs(want).max() > 0


def layers(config: Config, batch):
    """Each kind of layer, as what declares it, and what it is called with."""
    model = config.model
    latent = changed(model, {"qk_norm": False, "attention": LATENT})
    x = np.random.default_rng(3).normal(size=(*batch["inputs"].shape, model.width)).astype("f4")
    looks = {m: make_context(m, batch) for m in (model, latent)}
    yield "dense", FeedForward(12, "swiglu"), (x,), {}
    yield "attention", Attention(model), (x, looks[model], {}, 0), {}
    yield "latent attention", LatentAttention(latent), (x, looks[latent], {}, 0), {}
    for form in ("einsum", "gather", "grouped"):
        moe = changed(model.moe, {"dispatch": form, "shared_experts": 1, "shared_gate": True})
        yield form, MoELayer(moe, "swiglu"), (x, batch["segments"] > 0), {"training": True}


def test_every_kind_of_layer(tiny, batch):
    """Merged and not, to 1e-5."""
    for name, layer, args, options in layers(tiny, batch):
        shapes = jax.eval_shape(partial(layer.init, **options), jax.random.key(0), *args)["params"]
        key = {"dense": "feed_forward", "attention": name, "latent attention": "attention"}
        key = key.get(name, "moe")
        base = fill({key: shapes})
        moved = fill(adapter_shapes(base, LORA))
        run = jax.jit(
            lambda p, layer=layer, args=args, options=options, key=key: layer.apply(
                {"params": p[key]}, *args, **options
            )[0]
        )
        attached = attach(base, moved, LORA.scale)
        got, plain = run(attached), run(base)
        want = run(merge(attached, "float32"))
        scale = np.abs(want).max()
        np.testing.assert_allclose(got, want, atol=1e-5 * scale, err_msg=name)
        assert np.abs(plain - want).max() > 0.01 * scale


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_is_never_a_whole_model_in_float(tiny, batch, kind):
    """It gives what its decoded weights give, with no stack of them, forward or backward."""
    config = changed(settings(tiny, kind), {"model.num_layers": 4, "model.moe.hidden_size": 10})
    model, base, _, moved = drawn(config)
    held = quantise_params(base, Weights(kind="int8", embedding=False))

    @jax.jit
    def loss(trained, base):
        return gradients(adapt(model, base, LORA), trained, None, batch, KEY, config)

    compiled = loss.lower(moved, held).compile()
    decoded = jax.tree.map(
        lambda p: as_array(p, "float32"), held, is_leaf=lambda p: isinstance(p, Quantised)
    )
    for one, other in zip(
        jax.tree.leaves(compiled(moved, held)), jax.tree.leaves(loss(moved, decoded)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(np.abs(other).max(), 1e-6))
    for path, p in flatten_dict(base).items():
        if p.ndim > 2 and find_place(path):
            stack = f"f32[{','.join(map(str, p.shape))}]"
            assert p.shape[0] == 1 or stack not in compiled.as_text(), (path, stack)


def test_which_parameters_have_adapters(tiny):
    """Matrices of attention, of experts and of dense networks; no router, norm, embedding, head."""
    config = settings(tiny, "latent attention, rows")
    _, base, *_ = drawn(config)
    found = {}
    for path in flatten_dict(base):
        found.setdefault(find_place(path), set()).add(path[-1])
    assert found["experts"] == {"w_gate_EDF", "w_up_EDF", "w_down_EFD"}
    assert found["dense"] == {"w_gate_DF", "w_up_DF", "w_down_FD"}
    assert {"w_query_down_DR", "w_query_up_RX", "w_latent_DX", "w_out_XD"} < found["attention"]
    assert found[None] == {"scale_D", "w_router_DE", "embedding_VD", "w_head_DV"}


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ({"on": "attention"}, {"attention"}),
        ({"on": "experts, dense"}, {"experts", "dense"}),
        ({"on": "experts", "routers": True}, {"experts", None}),
    ],
)
def test_what_is_trained_is_chosen(tiny, lora, expected):
    config = settings(tiny, "latent attention, rows")
    _, base, *_ = drawn(config)
    shapes = flatten_dict(adapter_shapes(base, dataclasses.replace(LORA, **lora)))
    names = {path if path[-1].startswith(ROUTERS) else path[:-1] for path in shapes}
    assert {find_place(path) for path in names} == expected
    for path, leaf in shapes.items():
        rank = {"lora_a": -1, "lora_b": -2}.get(path[-1])
        assert rank is None or leaf.shape[rank] == 2


def test_a_model_without_such_matrices_is_refused(tiny):
    dense = changed(tiny, {"model.moe.every": 0})
    _, base, *_ = drawn(dense)
    with pytest.raises(ConfigError, match="--run.lora.on experts: the model has no such matrices"):
        adapter_shapes(base, dataclasses.replace(LORA, on="experts"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "--run.lora.rank must be greater than 0, not 0"),
        ({"rank": 4, "alpha": -1.0}, "--run.lora.alpha must be greater than 0, not -1.0"),
        ({"rank": 4, "on": "heads"}, "--run.lora.on must name some of attention, experts, dense"),
        ({"rank": 4, "on": ""}, "--run.lora.on must name some of"),
        ({"rank": 4, "on": "dense,dense"}, "each once, with commas between, not 'dense,dense'"),
        (
            {"rank": 4},
            "--run.lora.rank 4 trains adapters of a model that is there: give --run.init",
        ),
    ],
)
def test_bad_settings(tiny, given, message):
    with pytest.raises(ConfigError, match=message):
        changed(tiny, {"run.lora": given})


MESHES = [((2, 4, 1), "all_to_all"), ((1, 8, 1), "ragged"), ((2, 2, 2), "auto")]


@pytest.mark.slow
def test_every_mesh_takes_the_step_of_one_device(tiny, batch):
    """Gradients, their norm and what is trained; on the last mesh all lies spread (FSDP)."""
    lora = {"rank": 2, "routers": True}
    config = changed(
        tiny,
        {
            "model.moe": MOE,
            "run.lora": lora,
            "run.init_from": "base",
            "optim.warmup_fraction": 0.0,
        },
    )
    _, base, _, moved = drawn(changed(config, {"run.lora": {"rank": None}}))

    def step(shape, form, fsdp):
        layout = MeshConfig(
            data=shape[0], expert=shape[1], model=shape[2], expert_parallel=form, fsdp=fsdp
        )
        grid = device_mesh.make_mesh(layout, jax.devices()[: int(np.prod(shape))])
        own = dataclasses.replace(config, mesh=layout)
        with jax.set_mesh(grid):
            model, keep = DecoderLM(own.model, 257, layout), optax.trace(0.9)
            init = functools.partial(init_state, model, keep, own)
            shardings = partition.tree_shardings(grid, jax.eval_shape(init), fsdp)
            learner = Learner(model=model, optimizer=keep, init=init, shardings=shardings)
            placed = jax.device_put(base, partition.tree_shardings(grid, base, fsdp))
            trained = begin_adapters(base, own.run.lora, jax.random.key(0))
            trained = unflatten_dict(
                {p: flatten_dict(moved).get(p, leaf) for p, leaf in flatten_dict(trained).items()}
            )
            start = partial(start_state, bias_LE=None, optimizer=keep, config=own)
            state = jax.jit(start, out_shardings=shardings)(trained)
            spread = {leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params)}
            programs = make_programs(own, learner, grid, placed)
            state, report = programs.step(state, batch_rows.place_batch(grid, batch))
            return (state.params, state.optimizer, report.gradient_norm), spread

    want, _ = step((1, 1, 1), "auto", False)
    for number, (shape, form) in enumerate(MESHES):
        fsdp = number == len(MESHES) - 1
        got, spread = step(shape, form, fsdp)
        assert spread == ({False} if fsdp else {False, True})
        for (path, one), other in zip(
            jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True
        ):
            largest = np.abs(one).max()
            assert largest > 0
            name = f"{shape} {jax.tree_util.keystr(path)}"
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * largest, err_msg=name)


def test_an_adapted_matrix_is_a_matrix():
    w, a, b = (jnp.ones(shape) for shape in ((3, 4), (3, 2), (2, 4)))
    adapted = Adapted(w, a, b, 0.25)
    assert (adapted.shape, adapted.ndim, adapted.dtype) == ((3, 4), 2, jnp.float32)
    np.testing.assert_array_equal(jnp.asarray(adapted), 1.5)
