"""Sequences split over devices: a step is that of one device."""

import dataclasses
import functools
import math
import re
from typing import Any

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
    ConfigError,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    changed,
)
from moejax.lab.plan.devices import paper_mesh
from moejax.lab.plan.step_sizes import size_step
from moejax.lab.plan.traffic import list_moves
from moejax.models.attend import over_context
from moejax.models.attend.dense import attend_dense
from moejax.models.attend.seen import Seen, make_mask
from moejax.moe.layer import MoELayer
from moejax.routing.routers import ROUTERS
from moejax.runtime import batch_rows, device_fit, device_mesh, partition
from moejax.runtime.pieces import cut, join, join_for_each, shift

N, B = 32, 8
ROUTED = {"num_experts": 8, "group_size": 4, "capacity_factor": 0.8}
DEEPSEEK = AttentionConfig(kv_rank=6, query_rank=10, rope_head_size=4)
BALANCE = BalanceConfig(loss_weight=0.3, z_loss_weight=0.1)
KINDS: dict[str, dict[str, Any]] = {
    "deepseek": {
        "moe": {
            "router": "deepseek_v3",
            "expert_groups": 4,
            "kept_expert_groups": 2,
            "shared_experts": 1,
            "balance": dataclasses.replace(BALANCE, scope="sequence", bias_update="sign"),
        },
        "attention": DEEPSEEK,
        "qk_norm": False,
        "next_tokens": 2,
        "remat": "layer",
    },
    "noisy": {
        "moe": {
            "router": "noisy_top_k",
            "router_jitter": 0.1,
            "router_dropout": 0.1,
            "balance": BalanceConfig(importance_loss_weight=0.1, load_loss_weight=0.1),
        },
        "num_kv_heads": 1,
        "attention": AttentionConfig(window=9, full_every=2, sinks=True, form="blockwise"),
    },
}
"""What differs from the tiny config."""


def find_positions(of_BN: np.ndarray) -> np.ndarray:
    """Where each position is in its document."""
    fresh = np.diff(of_BN, axis=1, prepend=-1) != 0
    at_N = np.arange(of_BN.shape[1])
    return (at_N - np.maximum.accumulate(np.where(fresh, at_N, 0), 1)).astype(np.int32)


@functools.cache
def text() -> dict[str, np.ndarray]:
    """Sequences with up to four documents, and padding at the end of some."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(32, 127, (B, N + 1), dtype=np.int32)
    segments = np.sort(rng.integers(1, 5, (B, N)), 1).astype(np.int32)
    segments[::3, 27:] = 0
    found = {
        "inputs": np.where(segments > 0, tokens[:, :-1], 0),
        "targets": np.where(segments > 0, tokens[:, 1:], 0),
        "segments": segments,
        "positions": np.where(segments > 0, find_positions(segments), 0),
    }
    found["bytes"] = (segments > 0).astype(np.int32)
    return {name: x.astype(np.int32) for name, x in found.items()}


def make_config(tiny: Config, kind: str) -> Config:
    settings = dict(KINDS[kind])
    moe = dataclasses.replace(tiny.model.moe, **(ROUTED | settings.pop("moe", {})))
    model = {f"model.{name}": value for name, value in settings.items()} | {"model.moe": moe}
    data = {"data.sequence_length": N, "data.batch_size": B, "data.eval_batch_size": B}
    return changed(tiny, model | data)


def jit_step(config: Config, grid: jax.sharding.Mesh) -> tuple[Any, Any, Any]:
    """The first state, its shardings, and a step of an optimizer that keeps clipped gradients."""
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.trace(0.9))
    begin, step = make_parts(config, optimizer)
    shardings = partition.tree_shardings(grid, jax.eval_shape(begin), config.mesh.spreads)
    placed = (shardings, partition.activation_sharding(grid, "batch_BN"))
    return begin, shardings, jax.jit(step, in_shardings=placed, out_shardings=(shardings, None))


def compile_tiny(config: Config, grid: jax.sharding.Mesh) -> Any:
    with jax.set_mesh(grid):
        begin, shardings, step = jit_step(config, grid)
        state = partition.set_shardings(jax.eval_shape(begin), shardings)
        return step.lower(state, batch_rows.place_batch(grid, text())).compile()


REMEMBERED: dict[Any, Any] = {}


def take_step(tiny: Config, kind: str, **mesh: Any) -> tuple:
    """The state and the report after a step."""
    key = (kind, *mesh.items())
    if key in REMEMBERED:
        return REMEMBERED[key]
    layout = MeshConfig(**mesh)
    config = dataclasses.replace(make_config(tiny, kind), mesh=layout)
    grid = device_mesh.make_mesh(layout, jax.devices()[: mesh["data"] * layout.beside_data])
    device_fit.check_fits(config, grid)
    with jax.set_mesh(grid):
        begin, shardings, step = jit_step(config, grid)
        state = jax.jit(begin, out_shardings=shardings)()
        if state.bias_LE is not None:
            bias_LE = 0.1 * jnp.sin(jnp.arange(state.bias_LE.size)).reshape(state.bias_LE.shape)
            state = dataclasses.replace(state, bias_LE=bias_LE)
        REMEMBERED[key] = step(state, batch_rows.place_batch(grid, text()))
    return REMEMBERED[key]


def assert_equal(got: Any, want: Any) -> None:
    """Every array to 1e-5 of the largest of its numbers."""
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True
    ):
        largest = np.abs(one).max() if np.size(one) else 0
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * largest, err_msg=name)


# Steps.

STEPS = [
    ("deepseek", {"data": 1, "context": 2, "expert": 2, "model": 2, "expert_parallel": "auto"}),
    ("noisy", {"data": 1, "context": 4, "expert": 2, "expert_parallel": "ragged"}),
    (
        "noisy",
        {"data": 2, "context": 2, "expert": 2, "expert_parallel": "all_to_all", "fsdp": True},
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mesh"), STEPS)
def test_a_step_is_that_of_one_device(tiny, kind, mesh):
    """Losses, metrics, the gradient's norm, every gradient and parameter, and the bias."""
    want = take_step(tiny, kind, data=1)
    assert_equal(take_step(tiny, kind, **mesh), want)
    router = want[1].batch.sums.router
    assert (router.seated_BE.sum(-1) < router.asked_BE.sum(-1)).all()  # and choices are dropped


# What looks beyond a piece.


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_pieces_are_those_of_sequences(pieces):
    x_BN = np.arange(3 * 8 * 2).reshape(3, 8, 2)
    rows = cut(x_BN, pieces)
    for piece in range(pieces):
        size = 8 // pieces
        np.testing.assert_array_equal(
            rows[3 * piece : 3 * piece + 3], x_BN[:, size * piece : size * (piece + 1)]
        )
    np.testing.assert_array_equal(join(rows, pieces), x_BN)
    np.testing.assert_array_equal(join_for_each(rows, pieces), np.tile(x_BN, (pieces, 1, 1)))
    for count in (1, 2):
        want = np.concatenate([x_BN[:, count:], np.zeros_like(x_BN[:, :count])], 1)
        np.testing.assert_array_equal(join(shift(rows, count, pieces), pieces), want)


ONE = ("switch", "base", "llama4")
"""Routers that know no K but 1."""
OWN_WAY = (
    *("top_k", "noisy_top_k", "gshard", "v_moe", "expert_choice", "soft", "base", "sinkhorn"),
    *("hash", "random"),
)
"""Routers that draw, or have a function of their own; the others are settings of the first."""


@pytest.mark.parametrize(
    "router",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in OWN_WAY))
        for name in ROUTERS
        if not name.startswith("made_up")
    ],
)
def test_a_routed_layer_sees_pieces_as_it_sees_sequences(router):
    """What it gives, the experts that are chosen, and the statistics of a sequence: in training,
    with noise, and with drops.
    """
    pieces, rows, length = 2, 2, 16
    K = 4 if router == "dense" else 1 if router in ONE else 2
    settings = {"num_experts": 4, "hidden_size": 4, "group_size": 4, "capacity_factor": 0.8}
    moe = MoEConfig(router=router, router_jitter=0.1, **settings, top_k=K)
    rng = np.random.default_rng(1)
    x_BND = rng.normal(size=(rows, length, 6)).astype(np.float32)
    real_BN = rng.random((rows, length)) < 0.9
    token_BN = rng.integers(0, 99, (rows, length), dtype=np.int32)

    def run(layout: MeshConfig, *arrays: np.ndarray) -> Any:
        layer, key = MoELayer(moe, "swiglu", layout), jax.random.key(0)
        given = {"training": True, "token_BN": arrays[2]}
        params = layer.init(key, *arrays[:2], **given)
        return layer.apply(params, *arrays[:2], **given, rngs={"router": key})

    arrays = (x_BND, real_BN, token_BN)
    y_BND, stats, chosen_BNE = run(MeshConfig(), *arrays)
    got = run(MeshConfig(context=pieces), *(cut(x, pieces) for x in arrays))
    np.testing.assert_allclose(join(got[0], pieces), y_BND, atol=1e-5)
    np.testing.assert_array_equal(join(got[2], pieces), chosen_BNE)
    summed = jax.tree.map(lambda x: x.reshape(pieces, rows, *x.shape[1:]).sum(0), got[1])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), summed, stats)


def on_context(function: Any, devices: int) -> Any:
    """``function`` of the pieces [B, N, ...] that each device has, and of whole sequences."""
    grid = device_mesh.make_mesh(MeshConfig(data=1, context=devices), jax.devices()[:devices])
    P = jax.sharding.PartitionSpec
    specs = {"in_specs": (P(None, "context"), P()), "out_specs": P(None, "context")}
    return jax.jit(jax.shard_map(function, mesh=grid, check_vma=False, **specs))


@pytest.mark.parametrize(
    ("devices", "length", "strips"), [(2, 128, 1), (8, 128, 1), (2, 6144, 6), (4, 8192, 2)]
)
def test_strips_share_out_the_work_of_causal_attention_evenly(devices, length, strips):
    """And they come back to where they were."""
    at_BN = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    assert over_context.count_strips(length // devices, devices) == strips

    def run(piece: jax.Array, whole: jax.Array) -> jax.Array:
        strips = over_context.deal(piece)
        same = (strips == over_context.take_strips(whole)).all()
        back = (over_context.collect(strips) == piece).all()
        return jnp.stack([strips.sum(1), 0 * strips.sum(1) + same + 2 * back], axis=1)

    found = np.asarray(on_context(run, devices)(at_BN, at_BN)).reshape(2, devices, 2)
    assert (found[:, :, 1] == 3).all()
    # A query's work is its position and one.
    assert (found[:, :, 0] == at_BN.sum(1)[:, None] / devices).all()
    unshared = at_BN.reshape(2, devices, -1).sum(2)
    assert (unshared[:, -1] > 1.4 * found[:, 0, 0]).all()


@pytest.mark.parametrize(("devices", "deals"), [(8, False), (4, True)])
def test_attention_over_pieces_is_that_of_whole_sequences(devices, deals):
    """Values, and all gradients: of packed documents, a window, grouped heads, and sinks."""
    layout = MeshConfig(data=1, context=devices, model=8 // devices)
    grid, rng, length = device_mesh.make_mesh(layout), np.random.default_rng(3), 32
    sizes = {"q": (2, length, 4, 6), "k": (2, length, 2, 6), "v": (2, length, 2, 5), "sink": (4,)}
    given = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    of_BN = np.sort(rng.integers(1, 4, (2, length)), 1).astype(np.int32)
    at_BN = find_positions(of_BN)
    whole = Seen(of_BN=of_BN, at_BN=at_BN, of_BM=of_BN, at_BM=at_BN, window=7)
    weight = rng.normal(size=(2, length, 4, 5)).astype(np.float32)

    def attend(q: Any, k: Any, v: Any, seen: Seen, *rest: Any) -> jax.Array:
        return attend_dense(q, k, v, make_mask(seen), *rest)

    def alone(given: dict) -> jax.Array:
        y = attend(given["q"], given["k"], given["v"], whole, given["sink"], 0.5)
        return (y * weight).sum(), y

    def spread(given: dict) -> jax.Array:
        q, k, v = (cut(given[name], devices) for name in "qkv")
        seen = dataclasses.replace(
            whole,
            **{name: cut(getattr(whole, name), devices) for name in ("of_BN", "at_BN")},
            **{name: np.tile(getattr(whole, name), (devices, 1)) for name in ("of_BM", "at_BM")},
            pieces=devices,
        )
        rest = ((k, v), None, lambda kept, _: kept, seen, given["sink"], 0.5)
        lie = (over_context.OF_HEADS, None)
        y = over_context.attend_over_context(attend, q, *rest, lie=lie, deals=deals)
        y = join(y, devices)
        return (y * weight).sum(), y

    (_, want), gradient = jax.jit(jax.value_and_grad(alone, has_aux=True))(given)
    with jax.set_mesh(grid):
        (_, got), spread_gradient = jax.jit(jax.value_and_grad(spread, has_aux=True))(given)
    assert_equal(got, want)
    assert_equal(spread_gradient, gradient)


# What a plan says of it.


def sent_by_attention(text: str, devices: int) -> dict[str, float]:
    """Bytes that a device sends for attention in the text of a compiled program, by collective."""
    found = dict.fromkeys(("all-gather", "reduce-scatter", "all-to-all"), 0.0)
    pattern = r"= (.+?) (all-gather|reduce-scatter|all-to-all)\(.*op_name=\"[^\"]*/attention/"
    for shapes, name in re.findall(pattern, text):
        sizes = re.findall(r"f32\[([\d,]+)\]", shapes)
        total = sum(4 * math.prod(map(int, size.split(","))) for size in sizes)
        found[name] += total * (devices - 1) / (1 if name == "reduce-scatter" else devices)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"num_kv_heads": 2, "attention": AttentionConfig(form="blockwise")},
        {"attention": DEEPSEEK, "qk_norm": False, "remat": "layer"},
    ],
    ids=["grouped heads, dealt out", "latent vectors, recomputed"],
)
def test_a_plan_counts_the_bytes_that_attention_sends(tiny, model):
    layout = MeshConfig(data=1, context=4, model=2)
    changes = {f"model.{name}": value for name, value in model.items()}
    sizes = {"num_heads": 4, "num_layers": 1, "unroll": True, "dense_hidden_size": 8}
    changes |= {f"model.{name}": value for name, value in sizes.items()}
    changes |= {"model.moe": dataclasses.replace(tiny.model.moe, every=0), "mesh": layout}
    config = changed(tiny, changes | {"data.sequence_length": N})
    text = compile_tiny(config, device_mesh.make_mesh(layout)).as_text()
    with jax.sharding.use_abstract_mesh(paper_mesh(layout, 8, "cpu")):
        step = size_step(config, 257)
        moved = list_moves(config, step, [])
    planned = dict.fromkeys(("all-gather", "reduce-scatter", "all-to-all"), 0.0)
    for move in moved:
        planned[move.name] = planned.get(move.name, 0.0) + move.count * move.bytes
    dealt = step.attention == "blockwise"
    assert (planned["all-to-all"] > 0) == dealt
    got = sent_by_attention(text, 4)
    assert got == {name: planned[name] for name in got}


# What does not fit.


def config(mesh: dict, moe: dict | None = None, length: int = 64, **model: Any) -> Config:
    routed = MoEConfig(**{"group_size": 16} | (moe or {}))
    return Config(
        model=ModelConfig(moe=routed, **model),
        data=DataConfig(sequence_length=length, batch_size=16, eval_batch_size=16),
        mesh=MeshConfig(**mesh),
    )


REFUSED = {
    "no device": (lambda: config({"context": 0}), "--mesh.context must be greater than 0, not 0"),
    "positions": (
        lambda: config({"context": 3}),
        "--data.sequence-length 64 cannot be cut into the pieces of --mesh.context 3: make it a"
        " multiple of 3",
    ),
    "groups": (
        lambda: config({"context": 4}, {"group_size": 32}),
        "--model.moe.group-size 32 must divide the 16 positions that each device has of a sequence"
        " (--data.sequence-length 64 / --mesh.context 4): make it 16, say",
    ),
    "groups of sequences": (
        lambda: config({"context": 2}, {"group_size": 128}),
        "--model.moe.group-size 128 must divide the 32 positions",
    ),
    "memories": (
        lambda: config(
            {"context": 2},
            attention=AttentionConfig(kinds=("delta", "full")),
            num_layers=2,
        ),
        "--mesh.context 2 splits sequences, but layers with a memory (--model.attention.kinds"
        " delta)",
        "spread their heads over --mesh.model instead",
    ),
    "dropout": (
        lambda: config({"context": 2}, {"expert_dropout": 0.1}),
        "--model.moe.expert-dropout 0.1 draws for all slots at once, which --mesh.context 2",
    ),
    "further tokens": (
        lambda: config({"context": 4}, {"group_size": 2}, length=8, next_tokens=3),
        "--model.next-tokens 3 looks beyond the 2 positions of the next device (--mesh.context 4)",
    ),
    "images": (
        lambda: Config(
            model=ModelConfig(kind="vit", moe=MoEConfig(group_size=16)),
            data=DataConfig(source="digits"),
            mesh=MeshConfig(context=2),
        ),
        "--mesh.context 2 splits sequences of text, and --model.kind vit sees images",
    ),
    "devices": (
        lambda: device_mesh.make_mesh(MeshConfig(context=3)),
        "--mesh.data 2 x --mesh.context 3 x --mesh.expert 1 x --mesh.model 1 needs 6 devices",
        "beside --mesh.context 3 and --mesh.model 1: nothing, as 3 does not divide 8",
    ),
    "experts": (
        lambda: device_mesh.make_mesh(MeshConfig(context=2, expert=3)),
        "What fits (data x expert) beside --mesh.context 2 and --mesh.model 1: 4x1, 2x2, 1x4.",
    ),
    "rows": (
        lambda: device_fit.check_fits(
            config({"data": 3, "context": 2}),
            device_mesh.make_mesh(MeshConfig(data=3, context=2), jax.devices()[:6]),
        ),
        "--data.batch-size / --optim.accumulate = 16 sequences cannot be spread over 3 devices",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_what_would_do(case):
    make, *messages = REFUSED[case]
    with pytest.raises(ConfigError) as refused:
        make()
    for message in messages:
        assert message in str(refused.value)


def test_each_device_gets_its_piece_of_its_rows():
    layout = MeshConfig(data=2, context=2, expert=2)
    grid = device_mesh.make_mesh(layout)
    x_BN = np.arange(8 * 6).reshape(8, 6)
    placed = batch_rows.place_batch(grid, {"inputs": x_BN, "signals_B": np.arange(8)})
    assert placed["signals_B"].tolist() == [*range(8), *range(8)]
    for shard in placed["inputs"].addressable_shards:
        d, c, e, _ = np.argwhere(grid.devices == shard.device)[0]
        first = 2 * (2 * d + e)
        want = x_BN[first : first + 2, 3 * c : 3 * c + 3]
        np.testing.assert_array_equal(shard.data, want)
