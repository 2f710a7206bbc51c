"""Texts that have pages of their own, one behind another, for tests of the decoder alone."""

import jax.numpy as jnp
import numpy as np

from moejax.config import ModelConfig
from moejax.inference.inference_config import inference_config
from moejax.models.kv_cache import CacheType
from moejax.models.kv_pages import PagedRows, Pool, empty_pool

PAGE = 4


def make_pool(config: ModelConfig, rows: int, slots: int, kind: CacheType | None = None) -> Pool:
    """Seats and pages for so many texts of ``slots`` positions, a multiple of 4."""
    return empty_pool(inference_config(config), 1, rows, rows * slots // PAGE + 1, PAGE, kind)


def make_rows(count_B: np.ndarray, at_B: np.ndarray, slots: int) -> PagedRows:
    """Rows of a call in such a pool: the text of each row has the seat and the pages of its
    number; how many tokens come, and the position of the first.
    """
    rows = len(count_B)
    table_BQ = 1 + np.arange(rows * slots // PAGE).reshape(rows, -1)
    given = (np.arange(rows), count_B, at_B, np.zeros(rows), table_BQ)
    return PagedRows(*(jnp.asarray(x, jnp.int32) for x in given))
