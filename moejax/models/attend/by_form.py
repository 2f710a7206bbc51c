"""Softmax attention in the form that is wanted.

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; U: width of a
head's values.
"""

import jax

from moejax.models.attend.dense import attend_dense
from moejax.models.attend.seen import Seen, make_mask


def attend(
    q_BNHA: jax.Array,
    k_BMJA: jax.Array,
    v_BMJU: jax.Array,
    seen: Seen,
    sink_H: jax.Array | None,
    scale: float,
) -> jax.Array:
    """Softmax attention of H query heads over J key/value heads, H a multiple of J: ``y_BNHU``.

    Scores and probabilities are float32. ``sink_H`` are logits that take a part of the probability
    (gpt-oss).
    """
    return attend_dense(q_BNHA, k_BMJA, v_BMJU, make_mask(seen), sink_H, scale)
