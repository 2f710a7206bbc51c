"""What a decode step takes, read from the compiled program: nothing is run."""

import math
from dataclasses import replace

import jax
import pytest

from moejax.config import Config, ModelConfig, MoEConfig
from moejax.inference.compile_decode import compile_decode
from moejax.models.decoder import make_cache

SMALL = ModelConfig(
    num_layers=3,
    width=64,
    num_heads=4,
    vocab_size=96,
    moe=MoEConfig(num_experts=8, top_k=2, hidden_size=32),
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_is_written_in_place(dtype: str) -> None:
    """All of it is an argument and a result that share their memory."""
    compiled = compile_decode(Config(model=SMALL), 2, dtype, 128)
    cache = jax.eval_shape(lambda: make_cache(replace(SMALL, dtype=dtype), 2, 128))
    size = sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(cache))
    assert compiled.memory_analysis().alias_size_in_bytes >= size
