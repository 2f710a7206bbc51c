"""What layers compute again changes nothing but what they keep."""

from dataclasses import replace
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import ConfigError, ModelConfig, MoEConfig, changed
from moejax.lab.plan.residuals import trace_residuals
from moejax.models.decoder import DecoderLM
from moejax.models.layer_runs import list_blocks

B, N, V = 2, 16, 13
MODEL = ModelConfig(
    num_layers=1,
    width=16,
    num_heads=2,
    unroll=False,
    moe=MoEConfig(
        num_experts=4, top_k=2, hidden_size=8, group_size=8, shared_experts=1, capacity_factor=0.8
    ),
)
KEEP_ALL = (
    *("queries_keys_values", "attention_heads", "attention_output", "router_logits"),
    *("expert_inputs", "hidden", "expert_outputs"),
)


def make_batch() -> dict[str, jax.Array]:
    inputs = np.random.default_rng(0).integers(0, V, (B, N)).astype(np.int32)
    segments = np.broadcast_to(np.repeat([1, 2, 0], [7, 6, 3]), (B, N)).astype(np.int32)
    positions = np.broadcast_to(np.concatenate([np.arange(7), np.arange(6), [0] * 3]), (B, N))
    return {"inputs": inputs, "segments": segments, "positions": positions.astype(np.int32)}


@cache
def value_and_grad(model: ModelConfig):
    """The loss, the statistics and the gradients of some parameters, which all models share."""
    module, batch = DecoderLM(model, V), make_batch()
    plain = replace(model, remat="none", remat_keep=())
    params = jax.jit(DecoderLM(plain, V).init, static_argnums=2)(jax.random.key(0), batch, True)

    def loss(params):
        logits, routed = module.apply(params, batch, True)
        asked = routed.stats.probability_BE.max() if routed is not None else 0.0
        return jnp.square(logits).mean() + asked, None if routed is None else routed.stats

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize(
    "changes",
    [
        {"remat": "attention"},
        {"remat": "experts"},
        {"remat": "layer", "remat_keep": KEEP_ALL},
        pytest.param({"remat": "layer"}, marks=pytest.mark.slow),
        pytest.param({"remat": "experts", "unroll": True}, marks=pytest.mark.slow),
        pytest.param({"remat": "offload", "remat_keep": KEEP_ALL}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_losses_statistics_and_gradients_stay(changes):
    chex.assert_trees_all_close(
        value_and_grad(replace(MODEL, **changes)), value_and_grad(MODEL), atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"remat": "attention"}, {"attention.kinds": ("delta",)}),
        (
            {"remat": "experts"},
            {"attention.kv_rank": 4, "qk_norm": False, "norm_place": "sandwich", "moe.every": 0},
        ),
        ({"remat": "experts"}, {"moe.dispatch": "grouped", "moe.capacity_factor": None}),
    ],
    ids=str,
)
def test_other_models_stay_as_they_are(changes, other):
    model = changed(MODEL, other)
    chex.assert_trees_all_close(
        value_and_grad(replace(model, **changes)), value_and_grad(model), atol=1e-6
    )


def kept(**changes: object) -> float:
    """Bytes that a wide layer keeps, as its program says."""
    model = replace(MODEL, width=64, num_heads=4, **changes)
    return trace_residuals(model, list_blocks(model)[0], 4, 64)


def test_policies_keep_what_they_say():
    """What `attention` keeps is the rest of the layer, and `experts` the other way round."""
    none, layer, attention, experts = (
        kept(remat=remat) for remat in ("none", "layer", "attention", "experts")
    )
    assert layer < attention < none and layer < experts < none
    x = 4 * 4 * 64 * 64  # float32 [4, 64, 64]
    assert layer == x
    # Both keep the residual stream in front of the layer, or between its parts.
    assert attention + experts - none - layer == x


@pytest.mark.slow
def test_a_name_keeps_the_array_that_it_names():
    layer = x = 4 * 4 * 64 * 64
    experts, shared = 2 * 2 * x * 8 / 64, 2 * x * 8 / 64  # two slots a token of 8 hidden numbers
    for name, size in {
        "queries_keys_values": 3 * x,
        "attention_heads": x,
        "attention_output": x,
        "router_logits": 4 / 64 * x,
        "expert_inputs": 2 * x,
        "hidden": experts + shared,
        "expert_outputs": 0,  # of gather on one device: weights multiply hidden numbers
    }.items():
        assert kept(remat="layer", remat_keep=(name,)) == layer + size, name
    einsum = replace(MODEL.moe, dispatch="einsum")
    outputs = kept(remat="layer", remat_keep=("expert_outputs",), moe=einsum)
    assert outputs == layer + 2 * x


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"remat": "all"}, "--model.remat must be one of none, layer, attention, experts, offload"),
        ({"remat_keep": ("scores",)}, "--model.remat-keep must be a tuple of queries_keys_values"),
        ({"remat_keep": "hidden"}, "--model.remat-keep must be a tuple of"),
    ],
)
def test_wrong_policies_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(MODEL, **changes)
