"""How many bytes of weights a decode step must read, from the shapes of the parameters."""

import math
from typing import Any

import jax

from moejax.config.model import ModelConfig
from moejax.moe.experts import BANK


def weight_bytes(params: dict[str, Any]) -> int:
    """The size of all parameters."""
    return sum(_size(leaf) for leaf in jax.tree.leaves(params))


def mean_share(model: ModelConfig, rows: int) -> float:
    """The mean share of distinct experts that ``rows`` texts choose, K of E each, at random."""
    return 1 - (1 - model.moe.top_k / model.moe.num_experts) ** rows


def largest_share(model: ModelConfig, rows: int) -> float:
    """The largest share of experts that ``rows`` texts can choose."""
    return min(1.0, rows * model.moe.top_k / model.moe.num_experts)


def active_bytes(model: ModelConfig, params: dict[str, Any], rows: int, share: float) -> int:
    """The size of the parameters that a decode step of ``rows`` texts needs: of the embedding a row
    for each text (all of it if it is the head), of routed layers the ``share`` of experts that some
    text chose, counted once, and the rest.
    """
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path if hasattr(key, "key")]  # also of codes and scales
        if names[-1] == "embedding_VD" and not model.tie_embeddings:
            total += rows * _size(leaf) / leaf.shape[0]
        else:
            total += _size(leaf) * (share if "moe" in names and names[-1] in BANK else 1)
    return round(total)


def _size(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize
