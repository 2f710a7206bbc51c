"""The language model: what each position may see, and what must not matter."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import AttentionConfig, ModelConfig, MoEConfig
from moejax.models.attend.dense import attend_dense
from moejax.models.counts import cost
from moejax.models.decoder import DecoderLM
from moejax.models.layer_runs import cut_layers
from moejax.models.rotary import rotary, rotate


def build(config: ModelConfig, batch):
    init, run = programs(config)
    return DecoderLM(config, 257), init(batch), run


@functools.cache
def programs(config: ModelConfig):
    """What draws the parameters, and the forward pass."""
    model = DecoderLM(config, 257)
    init = jax.jit(lambda b: model.init(jax.random.key(0), b, True)["params"])
    return init, jax.jit(lambda p, b: model.apply({"params": p}, b, True))


def roomy(config: ModelConfig, **changes) -> ModelConfig:
    """The same model with a slot for every choice."""
    moe = dataclasses.replace(config.moe, capacity_factor=4.0, **changes)
    return dataclasses.replace(config, moe=moe)


def test_no_position_sees_a_later_one(tiny, batch):
    model, params, run = build(roomy(tiny.model), batch)
    logits, _ = run(params, batch)
    for n in (3, 8, 12):
        changed = batch["inputs"].copy()
        changed[:, n:] = 5
        other, _ = run(params, batch | {"inputs": changed})
        np.testing.assert_allclose(logits[:, :n], other[:, :n], atol=1e-6)
        assert np.abs(logits[:, n:] - other[:, n:]).max() > 1e-3


def test_switch_is_causal_even_when_it_drops(tiny, batch):
    """With one choice a token, slots go by position: who comes later takes nothing from who is
    before.
    """
    moe = dataclasses.replace(tiny.model.moe, router="switch", top_k=1, capacity_factor=0.6)
    model, params, run = build(dataclasses.replace(tiny.model, moe=moe), batch)
    logits, routed = run(params, batch)
    assert routed.stats.seated_BE.sum() < routed.stats.asked_BE.sum()
    changed = batch["inputs"].copy()
    changed[:, 12:] = 5
    other, _ = run(params, batch | {"inputs": changed})
    np.testing.assert_allclose(logits[:, :12], other[:, :12], atol=1e-6)


def test_documents_in_one_row_do_not_see_each_other(tiny, batch):
    """The second document of a row gives the same logits when it stands alone."""
    model, params, run = build(roomy(tiny.model), batch)
    logits, _ = run(params, batch)
    alone = {name: np.zeros_like(value) for name, value in batch.items()}
    for name in ("inputs", "positions"):
        alone[name][:, :7] = batch[name][:, 9:]
    alone["segments"][:, :7] = np.minimum(batch["segments"][:, 9:], 1)
    other, _ = run(params, alone)
    real = batch["segments"][:, 9:] > 0
    np.testing.assert_allclose(logits[:, 9:][real], other[:, :7][real], atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing(tiny, batch):
    model, params, run = build(tiny.model, batch)
    logits, routed = run(params, batch)
    padding = batch["segments"] == 0
    noise = np.where(padding, 77, batch["inputs"]).astype(np.int32)
    other, other_routed = run(params, batch | {"inputs": noise})
    np.testing.assert_array_equal(np.asarray(logits)[~padding], np.asarray(other)[~padding])
    chex.assert_trees_all_equal(routed, other_routed)


@pytest.mark.parametrize("sinks", [False, True])
def test_attention_equals_softmax_in_float64_gradients_included(sinks):
    """Four query heads share two of keys, values are narrower; against the formula, for values and
    all gradients. A sink is one more logit, whose value is 0.
    """
    rng = np.random.default_rng(0)
    B, N, H, J, A, U = 2, 6, 4, 2, 8, 3
    q, k = rng.normal(size=(B, N, H, A)), rng.normal(size=(B, N, J, A))
    v, dy = rng.normal(size=(B, N, J, U)), rng.normal(size=(B, N, H, U))
    arrays = (q, k, v, rng.normal(size=H)) if sinks else (q, k, v)
    mask = np.tri(N, dtype=bool)[None, None].repeat(B, 0)

    def exact(q, k, v, sink=None):
        k, v = (jnp.repeat(x, H // J, axis=2) for x in (k, v))
        score = 0.3 * jnp.einsum("bnha,bmha->bhnm", q, k)
        e = jnp.exp(jnp.where(mask, score, -jnp.inf))
        total = e.sum(-1, keepdims=True) + (0 if sink is None else jnp.exp(sink)[:, None, None])
        return jnp.einsum("bhnm,bmha->bnha", e / total, v)

    def ours(q, k, v, sink=None):
        return attend_dense(q, k, v, mask, sink, 0.3)

    got_y, pull = jax.vjp(ours, *map(jnp.float32, arrays))
    got = pull(jnp.float32(dy))
    with jax.enable_x64(True):
        want_y, pull = jax.vjp(exact, *map(jnp.float64, arrays))
        want = pull(jnp.float64(dy))
    np.testing.assert_allclose(got_y, want_y, atol=1e-5)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_rotary_products_depend_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    products = []
    for start in (0, 5):
        positions = jnp.array([[start, start + 3]])
        cos, sin = rotary(positions, ModelConfig(width=8, num_heads=1))
        both = rotate(jnp.concatenate([q, k], axis=1), cos, sin)
        products.append(jnp.vdot(both[0, 0], both[0, 1]))
    np.testing.assert_allclose(*products, rtol=1e-5)
    # By hand: one pair, position 1, base anything: (1, 0) turns to (cos 1, sin 1).
    cos, sin = rotary(jnp.array([[1]]), ModelConfig(width=2, num_heads=1))
    turned = rotate(jnp.array([[[[1.0, 0.0]]]]), cos, sin)[0, 0, 0]
    np.testing.assert_allclose(turned, [np.cos(1), np.sin(1)], rtol=1e-6)


@pytest.mark.parametrize(
    ("layers", "every", "first", "kinds", "plan"),
    [
        (3, 1, 0, "RRR", [("R", 3)]),
        (4, 2, 0, "DRDR", [("DR", 2)]),
        (7, 2, 2, "DDDRDRD", [("D", 2), ("DR", 2), ("D", 1)]),
        (5, 3, 1, "DDDRD", [("D", 1), ("DDR", 1), ("D", 1)]),
        (4, 1, 3, "DDDR", [("D", 3), ("R", 1)]),
        (3, 0, 0, "DDD", [("D", 3)]),
    ],
)
def test_routed_layers_are_placed_by_pattern(layers, every, first, kinds, plan):
    config = ModelConfig(num_layers=layers, moe=MoEConfig(every=every, first_dense=first))
    assert "".join("DR"[r] for r in config.routed_layers) == kinds
    got = cut_layers(config)
    assert [("".join("DR"[k.routed] for k in run.unit), run.repeats) for run in got] == plan


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 1, "qk_norm": False, "head_size": 6},
        {"tie_embeddings": True, "activation": "gelu"},
        {"num_layers": 5, "moe": {"every": 2, "first_dense": 1, "shared_experts": 1}},
        {"moe": {"every": 0}},
        {"moe": {"router": "noisy_top_k", "shared_experts": 1, "shared_gate": True}},
        {"moe": {"router": "gpt_oss", "identity_experts": 1, "null_experts": 1}},
        {"moe": {"router": "soft"}},
        {"norm_place": "sandwich", "attention": AttentionConfig(output_gate=True, rotary_size=4)},
        {"norm_place": "pre_and_experts", "moe": {"first_dense": 1, "shared_experts": 1}},
        {"norm_place": "post", "moe": {"shared_experts": 2, "shared_hidden_size": 5}},
    ],
)
def test_parameters_are_as_planned_and_stats_have_a_row_for_each_routed_layer(tiny, batch, changes):
    moe = dataclasses.replace(tiny.model.moe, **changes.pop("moe", {}))
    config = dataclasses.replace(tiny.model, moe=moe, **changes)
    init, run = programs(config)
    params = jax.eval_shape(init, batch)
    planned = cost(config, 257, 16)
    assert planned.parameters_total == sum(x.size for x in jax.tree.leaves(params))
    logits, routed = jax.eval_shape(run, params, batch)
    chex.assert_shape(logits, (8, 16, 257))
    layers = sum(config.routed_layers)
    if layers == 0:
        assert routed is None
        assert planned.parameters_active == planned.parameters_total
    else:
        chex.assert_shape(routed.stats.asked_BE, (layers, 8, moe.num_choices))
        idle = layers * (4 - 2) * len(moe_matrices(config)) * 16 * 8
        assert planned.parameters_active == planned.parameters_total - idle


def moe_matrices(config: ModelConfig) -> tuple[str, ...]:
    return ("gate", "up", "down") if config.activation in ("swiglu", "geglu") else ("up", "down")


def test_the_dense_twin_is_one_change_away_and_has_the_same_active_size(tiny):
    twin = dataclasses.replace(tiny.model, moe=dataclasses.replace(tiny.model.moe, every=0))
    router = 2 * 16 * 4  # layers x width x experts
    ours, theirs = (cost(m, 257, 16).parameters_active for m in (tiny.model, twin))
    assert ours == theirs + router


def test_planned_flops_agree_with_the_compiler(tiny, batch):
    """XLA's own count of a dense forward pass, elementwise work included: a few per cent more."""
    dense = dataclasses.replace(tiny.model.moe, every=0, hidden_size=128)
    # XLA counts the body of a scan once, so unroll it.
    model = dataclasses.replace(tiny.model, width=64, unroll=True, moe=dense)
    _, params, run = build(model, batch)
    counted = run.lower(params, batch).compile().cost_analysis()["flops"] / (8 * 16)
    planned = cost(model, 257, 16).flops_per_token / 3
    assert 0.95 < counted / planned < 1.15


def test_scanning_changes_nothing(tiny, batch):
    def loss(config):
        model = DecoderLM(config, 257)

        def value(params):
            logits, routed = model.apply({"params": params}, batch, True)
            return jnp.square(logits).mean() + routed.stats.probability_BE.max(), routed

        return jax.jit(jax.value_and_grad(value, has_aux=True))

    _, params, _ = build(tiny.model, batch)
    want = loss(tiny.model)(params)
    got = loss(dataclasses.replace(tiny.model, unroll=True))(params)
    chex.assert_trees_all_close(got, want, atol=1e-5)


def test_bfloat16_stays_near_float32(tiny, batch):
    _, params, run = build(tiny.model, batch)
    half = dataclasses.replace(tiny.model, dtype="bfloat16")
    logits, _ = jax.jit(lambda p: DecoderLM(half, 257).apply({"params": p}, batch, True))(params)
    assert logits.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    want, _ = run(params, batch)
    assert np.abs(logits - want).mean() < 0.05 * np.abs(want).mean()
