"""In which form the layers of a model compute attention, from its settings alone.

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; O: blocks of
queries; P: blocks of keys; U: width of a head's values; X: queries in a block; Y: keys in a block.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.attention import AttentionForm
from moejax.config.model import ModelConfig
from moejax.models.attend.blockwise import choose_sizes
from moejax.models.attend.case import describe
from moejax.models.attend.choose_form import choose_form
from moejax.models.attend.seen import Seen


def has_attention(model: ModelConfig) -> bool:
    """Whether any layer of a model has softmax attention."""
    return model.kind != "mlp" and set(model.attention_kinds) != {"delta"}


def choose_training_form(model: ModelConfig, N: int, pieces: int = 1) -> tuple[AttentionForm, str]:
    """The form that training on N positions takes on the mesh in use, and why (see
    ``choose_form``), where devices have so many ``pieces`` of each sequence. The model must have
    attention.
    """
    H, J = model.num_heads, model.key_value_heads
    A, U = model.query_head_size, model.value_head_size
    own = N // pieces

    def shape(*sizes: int, dtype: str = model.dtype) -> Any:
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))

    arrays = shape(1, own, H, A), shape(1, N, J, A), shape(1, N, J, U)
    seeing = set(model.attention_kinds) - {"delta"}
    ids_BN, ids_BM = (shape(1, length, dtype="int32") for length in (own, N))
    seen = Seen(
        of_BN=ids_BN,
        at_BN=ids_BN,
        of_BM=ids_BM,
        at_BM=ids_BM,
        window=model.attention.window if "window" in seeing else None,
        near=shape(dtype="bool") if len(seeing) > 1 else None,
        causal=model.material.language,
        in_order=model.material.language and pieces == 1,
    )
    sink_H = shape(H, dtype="float32") if model.attention.sinks else None
    return choose_form(model.attention.form, describe(*arrays, seen, sink_H))


def share_of_scores(model: ModelConfig, N: int) -> float:
    """The part of all N x N scores that is computed block by block, if a sequence is one document:
    the mean of all layers with attention.
    """
    if not model.material.language:
        return 1.0
    X, Y = choose_sizes(N, N, model.num_heads // model.key_value_heads)
    first_O, first_P = np.arange(0, N, X)[:, None], np.arange(0, N, Y)
    shares = []
    for kind, window in zip(model.attention_kinds, model.windows, strict=True):
        if kind != "delta":
            looked_OP = first_P < first_O + X
            looked_OP &= first_P + Y > first_O - (window or N) + 1
            shares.append(looked_OP.sum() * X * Y / N**2)
    return float(np.mean(shares))
