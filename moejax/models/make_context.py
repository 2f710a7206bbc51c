"""What the layers of a model look at, made of a batch, or of the rows of a call.

Letters: M: positions that are looked at; Q: pages that a row looks at.
"""

import jax
import jax.numpy as jnp

from moejax.config.attention import check_length
from moejax.config.model import ModelConfig
from moejax.models.attend.seen import Seen
from moejax.models.context import Context
from moejax.models.delta_rule import find_fresh
from moejax.models.kv_pages import PagedRows, Pool, find_slots, page_size
from moejax.models.rotary import rotary
from moejax.runtime.pieces import join_for_each


def make_context(config: ModelConfig, batch: dict[str, jax.Array], pieces: int = 1) -> Context:
    """What all layers look at. Rows are sequences, or ``pieces`` of them."""
    segments_BN, positions_BN = batch["segments"], batch["positions"]
    N = pieces * segments_BN.shape[1]
    check_length(config.attention, N, f"{N} positions")
    context: Context = {"real_BN": segments_BN > 0, "token_BN": batch["inputs"]}
    if "delta" in config.attention_kinds:
        context["fresh_BN"] = find_fresh(segments_BN)
    if set(config.attention_kinds) != {"delta"}:
        context["cos"], context["sin"] = rotary(positions_BN, config)
        context["seen"] = Seen(
            of_BN=segments_BN,
            at_BN=positions_BN,
            of_BM=join_for_each(segments_BN, pieces),
            at_BM=join_for_each(positions_BN, pieces),
            window=find_window(config),
            in_order=pieces == 1,
            pieces=pieces,
        )
    return context


def make_paged_context(
    config: ModelConfig, token_BN: jax.Array, rows: PagedRows, pool: Pool, reach: int | None
) -> tuple[dict[str, jax.Array], Context]:
    """The batch of a call's rows, and what all layers look at, as ``make_context``. Positions see
    nothing that is ``reach`` or more before them.
    """
    N, page = token_BN.shape[1], page_size(pool)
    real_BN = jnp.arange(N) < rows.count_B[:, None]
    position_BN = jnp.where(real_BN, rows.at_B[:, None] + jnp.arange(N), 0)
    segment_BN = real_BN.astype(jnp.int32)
    context: Context = {
        "real_BN": real_BN,
        "token_BN": token_BN,
        "slots": find_slots(rows, N, pool),
        "fresh_BN": real_BN & (position_BN == 0),
    }
    if set(config.attention_kinds) != {"delta"}:
        context["cos"], context["sin"] = rotary(position_BN, config)
        at_BM = rows.begin_B[:, None] + jnp.arange(rows.table_BQ.shape[1] * page)
        context["seen"] = Seen(
            of_BN=segment_BN,
            at_BN=position_BN,
            of_BM=jnp.ones_like(at_BM),  # what is behind a row's tokens is later than all of them
            at_BM=at_BM,
            window=find_window(config),
            reach=reach,
            page=page,
        )
    return {"inputs": token_BN, "segments": segment_BN, "positions": position_BN}, context


def find_window(config: ModelConfig) -> int | None:
    """How many positions layers with a window see; None if no layer has one."""
    return config.attention.window if "window" in config.attention_kinds else None
