"""Softmax attention in the form that is wanted.

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; U: width of a
head's values.
"""

from functools import partial
from importlib import import_module
from typing import Any

import jax

from moejax.config.attention import AttentionForm
from moejax.models.attend.case import describe
from moejax.models.attend.choose_form import choose_form
from moejax.models.attend.dense import attend_dense
from moejax.models.attend.on_parts import attend_on_parts
from moejax.models.attend.over_context import (
    OF_HEADS,
    Kept,
    MakeHeads,
    attend_over_context,
    deals_queries,
)
from moejax.models.attend.seen import Seen, make_mask
from moejax.runtime import device_mesh
from moejax.runtime.pieces import join_for_each

ON_PARTS = ("blockwise", "splash", "cudnn")
"""Forms that XLA cannot spread over a mesh by itself, each a function in a file of its name."""


@jax.named_scope("attention_scores")
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


def attend_to_kept(
    q_BNHA: jax.Array,
    kept: Kept,
    seen: Seen,
    sink_H: jax.Array | None,
    scale: float,
    form: AttentionForm = "auto",
    *,
    weights: Any = None,
    make_heads: MakeHeads = lambda kept, _: kept,
    lie: tuple[Any, Any] = (OF_HEADS, None),
) -> jax.Array:
    """``attend`` to keys and values that ``make_heads`` makes of what is ``kept`` of each position,
    ``y_BNHU``; by default keys and values themselves. Where sequences lie in pieces, what is kept
    is gathered. ``lie`` says how it and the ``weights`` lie on the mesh.
    """

    def make_all(kept: Kept, weights: Any) -> tuple[jax.Array, jax.Array]:
        return make_heads(jax.tree.map(lambda x: join_for_each(x, seen.pieces), kept), weights)

    if seen.pieces == 1 or device_mesh.context_devices() == 1:
        return attend(q_BNHA, *make_all(kept, weights), seen, sink_H, scale, form)
    k_BMJA, v_BMJU = jax.eval_shape(make_all, kept, weights)
    chosen, _ = choose_form(form, describe(q_BNHA, k_BMJA, v_BMJU, seen, sink_H))
    deals = deals_queries(chosen, q_BNHA.shape[1], seen.pieces)
    rest = (weights, make_heads, seen, sink_H, scale)
    attend_here = partial(attend, form=chosen)
    return attend_over_context(attend_here, q_BNHA, kept, *rest, lie=lie, deals=deals)
