"""Softmax attention in the form that is wanted.

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; U: width of a
head's values.
"""

from importlib import import_module

import jax

from moejax.config.attention import AttentionForm
from moejax.models.attend.case import describe
from moejax.models.attend.choose_form import choose_form
from moejax.models.attend.dense import attend_dense
from moejax.models.attend.on_parts import attend_on_parts
from moejax.models.attend.seen import Seen, make_mask

ON_PARTS = ("blockwise", "splash", "cudnn")
"""Forms that XLA cannot spread over a mesh by itself, each a function in a file of its name."""


def attend(
    q_BNHA: jax.Array,
    k_BMJA: jax.Array,
    v_BMJU: jax.Array,
    seen: Seen,
    sink_H: jax.Array | None,
    scale: float,
    form: AttentionForm = "auto",
) -> jax.Array:
    """Softmax attention of H query heads over J key/value heads, H a multiple of J: ``y_BNHU``.

    Scores and probabilities are float32. Each query must see a key, as it does where it sees its
    own. ``sink_H`` are logits that take a part of the probability (gpt-oss). All forms give the
    same; see ``choose_form`` for which are there. Raises ``ConfigError`` for a form that the
    platform does not have.
    """
    arrays = (q_BNHA, k_BMJA, v_BMJU)
    chosen, _ = choose_form(form, describe(*arrays, seen, sink_H))
    if chosen in ON_PARTS:
        # The kernels' library takes a while to import.
        function = getattr(import_module(f"moejax.models.attend.{chosen}"), f"attend_{chosen}")
        return attend_on_parts(function, *arrays, seen, sink_H, scale)
    return attend_dense(*arrays, make_mask(seen), sink_H, scale)
