"""Training on many devices: the same steps as on one, in a part of the memory."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import make_parts

from moejax.config import (
    AttentionConfig,
    BalanceConfig,
    Config,
    MeshConfig,
    changed,
    load_config_file,
)
from moejax.data.pipeline import train_batches
from moejax.data.stdlib_corpus import find_library, list_library_files
from moejax.data.text_files import TextFiles
from moejax.data.tokenizer import load_tokenizer
from moejax.models.decoder import DecoderLM
from moejax.models.initial_params import init_params
from moejax.runtime import batch_rows, device_fit, device_mesh, partition
from moejax.train.gradients import gradients
from moejax.train.optimizer import make_optimizer
from moejax.train.state import init_state

MESHES = {"1x1": (1, 1, 1), "8x1": (8, 1, 1), "1x8": (1, 8, 1), "2x4": (2, 4, 1), "4x2": (4, 2, 1)}
MESHES["2x2x2"] = (2, 2, 2)
FORMS = ("auto", "all_to_all", "ragged", "all_gather")
GRID = [(mesh, form) for mesh in MESHES if mesh != "1x1" for form in FORMS]
# Whole steps on half of the grid (all of which test_parallel.py tries with a layer), which has all
# meshes and all forms; ten steps on two.
HALF = [both for i, both in enumerate(GRID) if (i // len(FORMS) + i) % 2 == 0]
SOME = [("8x1", "auto"), ("2x4", "ragged")]


def test_half_of_the_grid_has_all_meshes_and_forms():
    for which in (0, 1):
        assert {both[which] for both in HALF} == {both[which] for both in GRID}
    assert set(QUICK) <= set(HALF)


def on(config: Config, mesh: str, **settings) -> tuple[Config, jax.sharding.Mesh]:
    """The config for this mesh, and the mesh, of as many devices as it takes."""
    data, expert, model = MESHES[mesh]
    layout = MeshConfig(data=data, expert=expert, model=model, **settings)
    grid = device_mesh.make_mesh(layout, jax.devices()[: data * expert * model])
    config = dataclasses.replace(config, mesh=layout)
    device_fit.check_fits(config, grid)
    return config, grid


def trainer(config: Config, grid: jax.sharding.Mesh, optimizer=None):
    """As the training loop has them: the first state, as it lies on the mesh, and the step."""
    begin, step = make_parts(config, optimizer or make_optimizer(config.optim))
    shardings = partition.tree_shardings(grid, jax.eval_shape(begin), config.mesh.spreads)
    placed = (shardings, partition.activation_sharding(grid, "batch_BN"))
    step = jax.jit(step, in_shardings=placed, out_shardings=(shardings, None))
    return jax.jit(begin, out_shardings=shardings)(), step


def assert_equal(got, want) -> None:
    """Every array to 1e-5 of the largest of its numbers: also where all of them are small."""
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True
    ):
        largest = np.abs(one).max() if np.size(one) else 0
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * largest, err_msg=name)


# Cut over the expert and the model axis; over the model axis; not at all. Devices of the other axes
# hold copies, unless FSDP spreads those, too.
EXPERTS = ("w_gate_EDF", "w_up_EDF", "w_down_EFD")
WIDTHS = ("w_gate_DF", "w_up_DF", "w_down_FD", "w_query_DX", "w_key_DX", "w_value_DX", "w_out_XD")
WHOLE = ("w_router_DE", "w_head_DV", "embedding_VD")
UP = ("w_query_up_RX", "w_latent_up_RX")
DOWN = ("w_query_down_DR", "w_latent_DX", "w_merge_XD")
OF_HEADS = ("b_query_X", "b_key_X", "b_value_X", "sink_H")
OF_EXPERTS = ("b_gate_EF", "b_up_EF", "b_down_ED")


def parts(name: str, data: int, expert: int, model: int, fsdp: bool) -> int:
    """Into how many parts the parameter of this name is cut."""
    if name in EXPERTS:
        return expert * model * (data if fsdp else 1)
    if name in WIDTHS + UP:
        return model * (data * expert if fsdp else 1)
    if name in OF_HEADS:
        return model
    if name in OF_EXPERTS:
        return expert
    return data * expert if name in WHOLE + DOWN and fsdp else 1


def numbers_of(tree) -> dict[str, list[int]]:
    """The size of every array, by the name of its parameter, optimizer moments included."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        known = [name for name in names if name in partition.PARAMETERS]
        found.setdefault(known[-1] if known else "rest", []).append(leaf)
    return {name: [math.prod(leaf.shape) for leaf in leaves] for name, leaves in found.items()}


def assert_lies_spread(state, mesh: str, fsdp: bool) -> None:
    """Each of the devices really has its part of every array, and no more."""
    whole = numbers_of(state)
    for device in range(math.prod(MESHES[mesh])):
        here = numbers_of(jax.tree.map(lambda a, i=device: a.addressable_shards[i].data, state))
        for name, sizes in whole.items():
            cut = parts(name, *MESHES[mesh], fsdp)
            assert here[name] == [size // cut for size in sizes], name


# One step of a small model.


def deepseek(tiny: Config) -> Config:
    """Where much can go wrong at once: groups of experts, a bias, a shared expert, drops, and
    micro-batches whose layers are computed again.
    """
    moe = dataclasses.replace(
        tiny.model.moe,
        router="deepseek_v3",
        num_experts=8,
        expert_groups=4,
        kept_expert_groups=2,
        shared_experts=1,
        capacity_factor=0.8,
        balance=BalanceConfig(
            loss_weight=0.3,
            z_loss_weight=0.1,
            bias_update="sign",
            orthogonality_loss_weight=0.01,
            coupling_loss_weight=0.1,
            variance_loss_weight=0.1,
        ),
    )
    model = {"model.moe": moe, "model.remat": "layer"}
    return changed(tiny, model | {"data.batch_size": 16, "optim.accumulate": 2})


def ahead(tiny: Config) -> Config:
    """A module that predicts a second token, too."""
    return changed(deepseek(tiny), {"model.next_tokens": 1})


def by_table(tiny: Config) -> Config:
    """Experts by a table in the first layer, and by a bias under control in the second."""
    counts = tuple(7 * i % 50 for i in range(99))
    moe = {"router": "hash_balanced", "hash_layers": 1, "token_counts": counts, "num_experts": 8}
    moe["balance"] = {"bias_update": "pid"}
    return changed(tiny, {"model.moe": moe, "data.batch_size": 16, "optim.accumulate": 2})


def by_relus(tiny: Config) -> Config:
    """A varying number of experts, and a coefficient that holds it."""
    moe = {"router": "remoe", "num_experts": 8, "top_k": 3, "capacity_factor": None}
    moe["balance"] = {"sparsity_loss_weight": 0.1, "sparsity_factor": 1.2}
    return changed(tiny, {"model.moe": moe, "data.batch_size": 16, "optim.accumulate": 2})


def sixteen(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch, and as many sequences again of other text: no half of it stands for the whole."""
    real, other = batch["segments"] > 0, dict(batch)
    for name in ("inputs", "targets"):
        other[name] = np.where(real, (batch[name] + 41) % 95 + 32, 0)
    return {name: np.concatenate([batch[name], other[name][::-1]]) for name in batch}


REMEMBERED = {}


def first_step(tiny: Config, batch: dict, mesh: str, kind=deepseek, **settings) -> tuple:
    """The state and the report after a step of an optimizer that keeps what it is fed: gradients,
    clipped by their norm.
    """
    key = (mesh, kind, *settings.items())
    if key not in REMEMBERED:
        config, grid = on(kind(tiny), mesh, **settings)
        keep = optax.chain(optax.clip_by_global_norm(0.5), optax.trace(0.9))
        with jax.set_mesh(grid):
            state, step = trainer(config, grid, keep)
            if state.bias_LE is not None:
                bias_LE = 0.1 * jnp.sin(jnp.arange(state.bias_LE.size))
                bias_LE = bias_LE.reshape(state.bias_LE.shape)
                state = dataclasses.replace(state, bias_LE=bias_LE)
            REMEMBERED[key] = step(state, batch_rows.place_batch(grid, sixteen(batch)))
    return REMEMBERED[key]


@pytest.mark.slow
def test_the_step_that_the_others_are_held_to_has_drops_and_gradients_everywhere(tiny, batch):
    state, report = first_step(tiny, batch, "1x1")
    router = report.batch.sums.router
    assert (router.seated_BE.sum(-1) < router.asked_BE.sum(-1)).all()
    assert report.gradient_norm > 0.5  # and is clipped
    gradients = state.optimizer[1].trace
    np.testing.assert_allclose(optax.tree.norm(gradients), 0.5, rtol=1e-5)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(gradient).max() > 1e-4, jax.tree_util.keystr(path)
    before = 0.1 * np.sin(np.arange(16)).reshape(2, 8)
    moved = (state.bias_LE - before) / deepseek(tiny).model.moe.balance.bias_rate
    np.testing.assert_allclose(np.abs(moved), 1, atol=1e-3)
    assert (moved > 0).any() and (moved < 0).any()


QUICK = [("4x2", "all_to_all"), ("2x2x2", "ragged")]


@pytest.mark.parametrize(
    ("mesh", "form"),
    [pytest.param(*both, marks=[pytest.mark.slow] * (both not in QUICK)) for both in HALF],
)
def test_every_mesh_and_form_takes_the_step_of_one_device(tiny, batch, mesh, form):
    """Losses, metrics, the gradient's norm, every gradient, every parameter, and the bias; and
    afterwards each array lies as before."""
    got = first_step(tiny, batch, mesh, expert_parallel=form)
    assert_equal(got, first_step(tiny, batch, "1x1"))
    assert_lies_spread(got[0], mesh, fsdp=False)


@pytest.mark.parametrize(
    ("mesh", "form", "chunks"),
    [
        ("2x2x2", "auto", 1),
        pytest.param("4x2", "ragged", 2, marks=pytest.mark.slow),
        pytest.param("2x4", "all_to_all", 2, marks=pytest.mark.slow),
        pytest.param("1x8", "all_gather", 2, marks=pytest.mark.slow),
        pytest.param("8x1", "ragged", 2, marks=pytest.mark.slow),
        pytest.param("2x2x2", "all_gather", 1, marks=pytest.mark.slow),
    ],
)
def test_parameters_that_lie_spread_take_the_same_step_and_stay_so(tiny, batch, mesh, form, chunks):
    got = first_step(tiny, batch, mesh, expert_parallel=form, chunks=chunks, fsdp=True)
    assert_equal(got, first_step(tiny, batch, "1x1"))
    assert_lies_spread(got[0], mesh, fsdp=True)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "form"), [("2x2x2", "auto"), ("4x2", "ragged")])
def test_parameters_that_are_gathered_once_a_step_take_the_same_step(tiny, batch, mesh, form):
    """In two micro-batches, whose gradients are scattered one after the other."""
    got = first_step(tiny, batch, mesh, expert_parallel=form, zero1=True)
    assert_equal(got, first_step(tiny, batch, "1x1"))
    assert_lies_spread(got[0], mesh, fsdp=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mesh", "form"), [(by_table, "2x2x2", "all_to_all"), (by_relus, "4x2", "ragged")]
)
def test_what_balancing_remembers_is_the_same_on_a_mesh(tiny, batch, kind, mesh, form):
    got = first_step(tiny, batch, mesh, kind, expert_parallel=form)
    want = first_step(tiny, batch, "1x1", kind)
    memory = jax.tree.leaves(want[0].memory)
    assert memory and all(np.abs(x).max() > 0 for x in memory)
    assert_equal(got, want)


@pytest.mark.slow
def test_a_second_token_is_predicted_alike_on_a_mesh(tiny, batch):
    """Its loss and its router's counts are in the sums, and its block in the gradients."""
    want = first_step(tiny, batch, "1x1", ahead)
    got = first_step(tiny, batch, "2x2x2", ahead, expert_parallel="all_to_all", fsdp=True)
    assert want[1].batch.sums.ahead.nats_P.shape == (1,)
    assert want[1].batch.sums.router.asked_BE.shape == (3, 8)
    assert_equal(got, want)
    assert_lies_spread(got[0], "2x2x2", fsdp=True)


@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_vocabulary_that_the_model_axis_divides_is_split(tiny, batch, tied, fsdp):
    """Each device has its part of the head and of the embedding, and of their gradients, which are
    those of one device.
    """
    model = {"moe.every": 0, "num_layers": 1, "tie_embeddings": tied}
    config = changed(tiny, {"model": changed(tiny.model, model)})
    found = []
    for mesh in ("1x1", "2x2x2"):
        here, grid = on(config, mesh, fsdp=fsdp)
        model = DecoderLM(here.model, 258, here.mesh)
        begin = functools.partial(init_params, model, here)
        shardings = partition.tree_shardings(grid, jax.eval_shape(begin), fsdp)
        with jax.set_mesh(grid):
            run = jax.jit(
                functools.partial(gradients, model, config=here), out_shardings=(shardings, None)
            )
            params = jax.jit(begin, out_shardings=shardings)()
            placed = batch_rows.place_batch(grid, batch)
            found.append(run(params, None, placed, jax.random.key(0)))
    assert_equal(found[1], found[0])
    width = 4 if fsdp else 16
    parts = {"embedding_VD": (129, width), "w_head_DV": (width, 129)}
    for name in parts if not tied else ("embedding_VD",):
        for tree in (params, found[1][0]):
            assert tree[name].addressable_shards[3].data.shape == parts[name]


# Ten steps of the quickstart.


@functools.cache
def quickstart() -> tuple[Config, list[dict[str, np.ndarray]]]:
    """The config, and its first batches of the standard library.

    Under this seed of the shuffle. Under 0, two experts of a token came so close in the seventh
    step of an earlier form (logits of 1.0465282 and 1.0465279) that rounding decided which was its
    first choice, and so who had a slot and who had none: one device alone parted by 2e-5 from
    itself there if its sums were taken in another order.
    """
    settings = {"model.unroll": False, "data.seed": 1, "data.shuffle_window": 8192}
    config = changed(load_config_file("configs/quickstart.py"), settings)
    files = [
        find_library() / f.path for f in list_library_files(find_library()) if f.split == "train"
    ]
    tokenizer = load_tokenizer(config.data.tokenizer)
    stream = train_batches(
        TextFiles(files), tokenizer, config.data, batch_size=config.data.batch_size
    )
    batches = [next(stream) for _ in range(10)]
    stream.close()
    return config, batches


@functools.cache
def ten_steps(mesh: str, **settings) -> np.ndarray:
    """By step: the loss, the balance loss, the z-loss, and the norm of the gradient."""
    config, batches = quickstart()
    config, grid = on(config, mesh, **settings)
    reports = []
    with jax.set_mesh(grid):
        state, step = trainer(config, grid)
        for batch in batches:
            state, report = step(state, batch_rows.place_batch(grid, batch))
            reports.append(jax.device_get(report))
    return np.array(
        [
            (r.batch.sums.nats / r.batch.sums.targets, *r.batch.losses.values(), r.gradient_norm)
            for r in reports
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "form"), SOME)
def test_ten_steps_of_the_quickstart_have_the_losses_of_one_device(mesh, form):
    want = ten_steps("1x1")
    assert want[-1, 0] < want[0, 0] - 1  # it learns
    np.testing.assert_allclose(ten_steps(mesh, expert_parallel=form), want, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["fsdp", "zero1"])
def test_ten_steps_where_parameters_lie_spread_have_the_losses_of_one_device(spread):
    """Muon's products need whole matrices, of which a device has a part."""
    got = ten_steps("2x2x2", expert_parallel="ragged", **{spread: True})
    np.testing.assert_allclose(got, ten_steps("1x1"), rtol=1e-5)


# Memory.


def on_one_device(grid: jax.sharding.Mesh, state, fsdp: bool):
    """Of every array, the part that one device holds."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(sharding.shard_shape(leaf.shape), leaf.dtype),
        state,
        partition.tree_shardings(grid, state, fsdp),
    )


def abstract_state(config: Config):
    model, optimizer = DecoderLM(config.model, 257, config.mesh), make_optimizer(config.optim)
    return jax.eval_shape(functools.partial(init_state, model, optimizer, config))


def latent(tiny: Config) -> Config:
    """DeepSeek's attention, too."""
    attention = AttentionConfig(kv_rank=6, query_rank=10, rope_head_size=4)
    return changed(deepseek(tiny), {"model.attention": attention, "model.qk_norm": False})


def memory(tiny: Config) -> Config:
    """Layers with a memory, and a gate on what heads find in the others."""
    attention = AttentionConfig(kinds=("delta", "full"), output_gate=True)
    return changed(tiny, {"model.attention": attention})


def gpt_oss(tiny: Config) -> Config:
    """Whatever can have a bias has one."""
    attention = AttentionConfig(bias="all", sinks=True)
    moe = dataclasses.replace(tiny.model.moe, num_experts=8, router="gpt_oss", expert_bias=True)
    model = {"attention": attention, "moe": moe, "activation": "clamped_swiglu"}
    return changed(tiny, {"model": model})


@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.parametrize(
    ("kind", "mesh"),
    [(deepseek, m) for m in ("8x1", "1x8", "2x4", "2x2x2")]
    + [(ahead, "2x2x2"), (latent, "2x4"), (latent, "2x2x2"), (gpt_oss, "2x4"), (gpt_oss, "1x8")],
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_device_holds_its_part_of_parameters_and_of_their_moments(
    tiny, optimizer, kind, mesh, fsdp
):
    config = changed(kind(tiny), {"optim.optimizer": optimizer})
    config, grid = on(config, mesh, fsdp=fsdp)
    state = abstract_state(config)
    whole, here = numbers_of(state), numbers_of(on_one_device(grid, state, fsdp))
    for name, sizes in whole.items():
        moments = 1 if optimizer == "muon" and name in EXPERTS + WIDTHS + UP + DOWN else 2
        assert name == "rest" or len(sizes) % (1 + moments) == 0  # none of which is forgotten
        cut = parts(name, *MESHES[mesh], fsdp)
        assert here[name] == [size // cut for size in sizes], name


def test_every_parameter_that_is_spread_is_in_one_of_these_models(tiny):
    kinds = (deepseek, latent, gpt_oss, ahead, memory)
    names = {name for kind in kinds for name in numbers_of(abstract_state(kind(tiny)))}
    assert names == {*partition.PARAMETERS, "rest"}


def test_with_everything_spread_a_device_holds_an_eighth(tiny):
    """But for what has no matrix: norms, counts and the selection bias."""
    config, grid = on(deepseek(tiny), "2x4", fsdp=True)
    state = abstract_state(config)
    whole, here = numbers_of(state), numbers_of(on_one_device(grid, state, True))
    rest, total = sum(whole.pop("rest")), sum(map(sum, whole.values()))
    assert sum(map(sum, here.values())) == total / 8 + rest
    assert rest < total / 100
