"""In training, experts are read in the stack of all layers' banks, and no bank is copied."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

from moejax.config import MeshConfig, ModelConfig, MoEConfig, changed
from moejax.hf.reading import make_batch
from moejax.models.decoder import DecoderLM
from moejax.runtime import device_mesh, targets

MODEL = ModelConfig(
    num_layers=4,
    width=16,
    num_heads=2,
    vocab_size=32,
    unroll=False,
    remat="layer",
    moe=MoEConfig(
        num_experts=4,
        group_size=16,
        top_k=2,
        hidden_size=8,
        dispatch="grouped",
        every=2,
        first_dense=0,
        expert_bias=True,
    ),
)


def gradient(config: ModelConfig, params: dict, batch: dict[str, jax.Array]) -> dict:
    """Of the squared logits of a model."""
    model = DecoderLM(config, config.vocab_size)

    def loss(params: dict) -> jax.Array:
        return jnp.square(model.apply({"params": params}, batch, True)[0]).sum()

    return jax.grad(loss)(params)


def start(config: ModelConfig, rows: int, length: int) -> tuple[dict, dict[str, jax.Array]]:
    batch = make_batch(jnp.arange(rows * length).reshape(rows, length) % config.vocab_size)
    model = DecoderLM(config, config.vocab_size)
    return model.init(jax.random.key(0), batch, True)["params"], batch


@pytest.mark.slow
def test_gradients_are_those_of_layers_cut_out_of_their_stack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params, batch = jax.jit(partial(start, MODEL, 2, 16))()
    found = jax.jit(partial(gradient, MODEL))(params, batch)
    monkeypatch.setattr("moejax.models.layers.reads_stacks", lambda *_: False)
    wanted = jax.jit(partial(gradient, MODEL))(params, batch)
    largest = jax.tree.map(lambda x: abs(x).max(), wanted)
    assert min(jax.tree.leaves(largest)) > 0
    scale = partial(jax.tree.map, lambda x, m: x / m)
    chex.assert_trees_all_close(scale(found, largest), scale(wanted, largest), atol=1e-5)


@pytest.mark.slow
def test_on_a_tpu_no_bank_is_cut_out(little_effort) -> None:
    """Of a model's gradient, compiled ahead of time for one chip of v5e, the only arrays of a
    bank's shape are its gradients.
    """
    pytest.importorskip("libtpu")
    grid = device_mesh.make_mesh(MeshConfig(), targets.describe_devices("v5e:1x1"))
    wide = {"width": 128, "moe.hidden_size": 256, "num_heads": 1, "dtype": "bfloat16"}
    config = changed(MODEL, wide | {"moe.expert_bias": False})
    with jax.set_mesh(grid):
        shapes = jax.eval_shape(partial(start, config, 2, 128))
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=jax.NamedSharding(grid, jax.P())
            ),
            shapes,
        )
        traced = jax.jit(partial(gradient, config)).trace(*shapes)
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    made = re.findall(r"= bf16\[(?:1,)?4,(?:128,256|256,128)\]\S* ([\w-]+)\(", text)
    assert sorted({*made}) == ["custom-call", "parameter"], made
