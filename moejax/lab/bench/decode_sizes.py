"""How many bytes of weights a decode step must read, from the shapes of the parameters."""

import math
from typing import Any

import jax

from moejax.config.model import ModelConfig
from moejax.moe.experts import bank_shapes

BANK = tuple(bank_shapes("swiglu", 1, 1, 1, bias=True))


def weight_bytes(params: dict[str, Any]) -> int:
    """The size of all parameters."""
    return sum(_size(leaf) for leaf in jax.tree.leaves(params))


def active_bytes(model: ModelConfig, params: dict[str, Any], rows: int) -> int:
    """The size of the parameters that a decode step of ``rows`` texts needs: of the embedding a row
    for each text (all of it if it is the head), of routed layers the experts that some text chose,
    counted once, and the rest.

    As experts, it takes the mean number of distinct ones if each text chooses K of E at random:
    E (1 - (1 - K/E)^rows).
    """
    E, K = model.moe.num_experts, model.moe.top_k
    share = 1 - (1 - K / E) ** rows
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names[-1] == "embedding_VD" and not model.tie_embeddings:
            total += rows * _size(leaf) / leaf.shape[0]
        else:
            total += _size(leaf) * (share if "moe" in names and names[-1] in BANK else 1)
    return round(total)


def _size(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize
