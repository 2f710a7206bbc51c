"""A call as one array, as each array that goes to a device takes its time.

Letters: B: rows of a call, lane by lane; F: what a call says of a row, side by side; N: tokens of a
row; Q: pages that a row looks at.
"""

from typing import Any

import jax
import numpy as np

from moejax.inference.engine.calls import Call
from moejax.inference.sampling import Draws
from moejax.models.kv_pages import PagedRows

DRAWS = {
    "temperature_B": np.float32,
    "top_k_B": np.int32,
    "top_p_B": np.float32,
    "seed_B": np.int32,
    "row_B": np.int32,
}


def pack(call: Call) -> np.ndarray:
    """A call as an array, int32 [B, F]."""
    draws = [np.asarray(call.draws[name], kind).view(np.int32) for name, kind in DRAWS.items()]
    of_B = [call.seat_B, call.count_B, call.at_B, call.begin_B, call.since_B, call.scores, *draws]
    B, Q = call.table_BQ.shape
    tokens = len(of_B)
    table = tokens + (0 if call.token_BN is None else call.token_BN.shape[1])
    packed_BF = np.empty((B, table + Q), np.int32)
    for place, x_B in enumerate(of_B):
        packed_BF[:, place] = x_B
    if call.token_BN is not None:
        packed_BF[:, tokens:table] = call.token_BN
    packed_BF[:, table:] = call.table_BQ
    return packed_BF


def unpack(packed_BF: jax.Array, N: int) -> tuple[PagedRows, jax.Array, jax.Array, Any, Draws]:
    """The rows of a call, ``since_B``, their N tokens, whether scores are wanted, and how tokens
    are drawn.
    """
    seat_B, count_B, at_B, begin_B, since_B, scores_B = (packed_BF[:, i] for i in range(6))
    ends = np.cumsum([6, len(DRAWS), N])
    draws = {
        name: jax.lax.bitcast_convert_type(packed_BF[:, i], dtype)
        for i, (name, dtype) in enumerate(DRAWS.items(), ends[0])
    }
    rows = PagedRows(seat_B, count_B, at_B, begin_B, packed_BF[:, ends[2] :])
    return rows, since_B, packed_BF[:, ends[1] : ends[2]], scores_B.any(), draws


def empty_call(B: int, N: int | None, Q: int) -> Call:
    """A call without a text."""
    nothing_B = np.zeros(B, np.int32)
    return Call(
        seat_B=nothing_B,
        token_BN=None if N is None else np.zeros((B, N), np.int32),
        count_B=nothing_B,
        at_B=nothing_B,
        begin_B=nothing_B,
        since_B=nothing_B,
        table_BQ=np.zeros((B, Q), np.int32),
        draws={name: np.zeros(B, dtype) for name, dtype in DRAWS.items()},
    )
