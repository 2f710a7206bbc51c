"""The forms of attention and where norms stand, beside a float64 decoder: outputs, a gradient, and
text token by token.
"""

from dataclasses import replace

import decoder_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import PAGE, make_pool, make_rows

from moejax.config import AttentionConfig, ConfigError, ModelConfig, MoEConfig
from moejax.config.files import from_dict, to_dict
from moejax.models.decoder import DecoderLM

V, N = 11, 7
DENSE = MoEConfig(every=0, hidden_size=6)
PLAIN = ModelConfig(
    num_layers=3, width=16, num_heads=4, num_kv_heads=2, head_size=8, unroll=False, moe=DENSE
)
TOKENS = np.random.default_rng(1).integers(0, V, N).astype(np.int32)

CASES = {
    "no positions in full layers": {
        "attention": {"window": 3, "kinds": ["full", "window", "window"], "rotary_in": "window"}
    },
    "a theta for windows, norms on both sides": {
        "attention": {"window": 4, "full_every": 2, "window_rope_theta": 20.0},
        "rope_theta": 500.0,
        "norm_place": "sandwich",
    },
    "a part of a head, a gate, norms of outputs": {
        "attention": {"rotary_size": 4, "output_gate": True},
        "norm_place": "post",
    },
    "norms of queries at their positions": {
        "attention": {"qk_norm_place": "after_rotation", "qk_norm_over": "width"},
        "num_layers": 1,
    },
}


def configure(changes: dict) -> ModelConfig:
    """The plain model with some changes, as ``config.json`` has them."""
    whole = to_dict(PLAIN)
    for section, values in changes.items():
        whole[section] = whole[section] | values if isinstance(values, dict) else values
    return from_dict(ModelConfig, whole)


def draw(config: ModelConfig) -> dict:
    """Parameters that are all different, norms included."""
    zeros = np.zeros((1, N), np.int32)
    batch = dict.fromkeys(("inputs", "segments", "positions"), zeros)
    model, rng = DecoderLM(config, V), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, False)["params"])
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: rng.normal(path[-1].key == "scale_D", 0.3, leaf.shape).astype("f4"),
        shapes,
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_outputs_a_gradient_and_text_token_by_token_are_those_of_float64(case):
    config = configure(CASES[case])
    model, params = DecoderLM(config, V), draw(config)
    want_NV = decoder_oracle.decode(config, params, TOKENS)
    segments, positions = np.ones((1, N), np.int32), np.arange(N, dtype=np.int32)[None]
    batch = {"inputs": TOKENS[None], "segments": segments, "positions": positions}
    weight_NV = np.random.default_rng(2).normal(size=(N, V))

    @jax.jit
    def differentiate(params):
        def loss(params):
            logits_NV = model.apply({"params": params}, batch, False)[0][0]
            return (logits_NV * jnp.float32(weight_NV)).sum(), logits_NV

        return jax.grad(loss, has_aux=True)(params)

    gradient, got_NV = differentiate(params)
    np.testing.assert_allclose(got_NV, want_NV, atol=1e-5)

    # The gradient along one direction, by two values a little apart.
    rng, step = np.random.default_rng(3), 1e-5
    way = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    ends = [
        (decoder_oracle.decode(config, moved, TOKENS) * weight_NV).sum()
        for sign in (1, -1)
        for moved in [jax.tree.map(lambda p, d, s=sign: p + s * step * d, params, way)]
    ]
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, way)))
    np.testing.assert_allclose(along, (ends[0] - ends[1]) / (2 * step), rtol=1e-4)

    @jax.jit
    def extend(params, pool, token_11, rows):
        return model.apply({"params": params}, token_11, rows, pool, method="extend")[:2]

    slots = -(-N // PAGE) * PAGE
    pool = make_pool(config, 1, slots)
    for n in range(N):
        rows = make_rows(np.array([1]), np.array([n]), slots)
        logits_11V, pool = extend(params, pool, TOKENS[None, [n]], rows)
        np.testing.assert_allclose(logits_11V[0, 0], want_NV[n], atol=1e-5)


def test_kinds_are_a_pattern_or_one_for_each_layer():
    def kinds_of(**settings) -> str:
        config = replace(PLAIN, num_layers=7, attention=AttentionConfig(**settings))
        return "".join(kind[0] for kind in config.attention_kinds)

    assert kinds_of() == "fffffff"
    assert kinds_of(window=4) == "wwwwwww"
    assert kinds_of(window=4, kinds=("window", "window", "full")) == "wwfwwfw"
    assert kinds_of(window=4, full_every=3) == "wwfwwfw"
    assert kinds_of(window=4, full_every=1) == kinds_of(window=4, kinds=("full",)) == "fffffff"
    assert kinds_of(window=4, kinds=(*["full"] * 6, "window")) == "ffffffw"


WRONG = [
    ({"kinds": ["window"]}, "has layers with a window: give --model.attention.window,"),
    (
        {"kinds": ["local"]},
        "--model.attention.kinds must be a tuple of full and window and delta, not",
    ),
    (
        {"kinds": "full"},
        "--model.attention.kinds must be a tuple of full and window and delta, not 'full'",
    ),
    ({"window": 2, "kinds": ["window"], "full_every": 2}, "leave one of them out"),
    ({"window": 2, "kinds": ["full"] * 4}, "has 4 entries, more than the --model.num-layers 3"),
    ({"rotary_in": "full"}, "--model.attention.rotary-in must be one of all, window, none"),
    ({"rotary_size": 3}, "--model.attention.rotary-size must be even, not 3"),
    ({"rotary_size": 10}, "--model.attention.rotary-size 10 is more than a head has: 8"),
    ({"rotary_size": 2, "kv_rank": 4}, "in latent attention"),
    ({"window_rope_theta": 0.0}, "--model.attention.window-rope-theta must be greater than 0"),
]


@pytest.mark.parametrize(("attention", "words"), WRONG)
def test_settings_that_cannot_be_are_refused_by_name(attention, words):
    with pytest.raises(ConfigError) as caught:
        configure({"attention": attention})
    assert words in str(caught.value)
