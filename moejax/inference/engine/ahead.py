"""Drafts by the modules of a model that predict further tokens (DeepSeek-V3, 2024, section 2.2),
made in the call that draws the token before them.

The module k, from 1, sees of a position the state that the module before gives there, the first
one that of the model, and the token k further on. At the last position whose token is certain that
is the token just drawn, and for the modules after the first what the one before has drawn: each
draws the next draft. They draw with the keys of the drafts' own positions, as the model will.

Keys and values of the modules lie in the text's pages, at the positions of the model's own. At
first those of the last P positions depend on tokens that are not certain: on drafts, and in front
of the rest of a prompt on what was drawn in its place. So each call does the P positions before
its own again: the seat has kept their states and tokens. It has none of what was found in shared
pages. But a page is given to others only when it has been followed by P tokens, which its name
includes, so nothing in it will change.

Letters: M: positions that modules look at, from the left; P: modules; S: seats of a lane; W: the P
positions before a call, its own, and those of drafts; X: lanes.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.inference.engine.state import State, put_seats, take_seats
from moejax.inference.sampling import Draws, draw, make_keys
from moejax.models.kv_pages import PagedRows, Pool, take_last
from moejax.models.make_context import make_paged_context
from moejax.models.next_tokens import Reading, predict_from_pages
from moejax.runtime import partition


class Window(NamedTuple):
    """The tokens of a call, for those who look ahead of them."""

    rows: PagedRows
    since_B: jax.Array
    """The position from which on the seat of a row has read its text itself."""
    token_BN: jax.Array
    drawn_B: jax.Array
    """The token that comes next ..."""
    last_B: jax.Array
    """... and the place, among its own, of the token after which it was drawn: the last that is
    certain."""
    draws: Draws
    reach: int | None


def draft_ahead(
    config: ModelConfig,
    layout: MeshConfig,
    params: dict,
    own: dict[str, jax.Array | None],
    state: State,
    window: Window,
    reading: Reading,
) -> tuple[State, jax.Array]:
    """The state after the modules have looked at a call, and a draft of each, ``draft_BP``. ``own``
    is what each routed layer has for itself, those of the modules last.
    """
    rows, last_B, N = window.rows, window.last_B, window.token_BN.shape[1]
    P = config.next_tokens
    before_BP, before_BPD = (take_seats(state[x], rows) for x in ("before_XSP", "before_XSPD"))
    x_BWD = jnp.concatenate([before_BPD, reading.x_BND.astype(before_BPD.dtype)], axis=1)
    token_BW = jnp.concatenate([before_BP, window.token_BN], axis=1)
    end_B1, place_W = P + last_B[:, None] + 1, jnp.arange(P + N + 1 + P)
    token_BW = jnp.pad(token_BW, ((0, 0), (0, 1 + P)))
    token_BW = jnp.where(place_W == end_B1, window.drawn_B[:, None], token_BW)
    again_BP = end_B1 - P + jnp.arange(P)
    before = {
        "before_XSP": jnp.take_along_axis(token_BW, again_BP, axis=1),
        "before_XSPD": jnp.take_along_axis(x_BWD, again_BP[..., None], axis=1),
    }
    state = state | {name: put_seats(state[name], rows, x_B) for name, x_B in before.items()}

    # From here on rows begin with what is done again; none of it has been found in pages.
    first_B = rows.at_B - P
    from_B = jnp.maximum(first_B, jnp.maximum(window.since_B, rows.begin_B))
    index_BM = (from_B - first_B)[:, None] + jnp.arange(P + N)
    count_B = jnp.where(rows.count_B > 0, rows.at_B + last_B + 1 - from_B, 0)
    rows = replace(rows, at_B=from_B, count_B=count_B)
    pool, drafts = state["pool"], []
    x_BMD = jnp.take_along_axis(x_BWD, index_BM[..., None], axis=1, mode="clip")
    where = window._replace(rows=rows)
    for number in range(P):
        ahead_BM = jnp.take_along_axis(token_BW, index_BM + number + 1, axis=1, mode="clip")
        given = (x_BMD, ahead_BM, reading, where, pool)
        x_BMD, pool = _ask(config, layout, params, own, number, *given)
        logits_B1V = reading.head.read(take_last(x_BMD, count_B))
        keys = make_keys(window.draws, rows.at_B + count_B + number + 1)
        draft_B = draw(logits_B1V[:, 0], keys, window.draws)
        token_BW = jnp.where(place_W == end_B1 + number + 1, draft_B[:, None], token_BW)
        drafts.append(draft_B)
    return state | {"pool": pool}, partition.pin(jnp.stack(drafts, axis=1), "batch_BN")


def _ask(
    config: ModelConfig,
    layout: MeshConfig,
    params: dict,
    own: dict[str, jax.Array | None],
    number: int,
    x_BMD: jax.Array,
    ahead_BM: jax.Array,
    reading: Reading,
    window: Window,
    pool: Pool,
) -> tuple[jax.Array, Pool]:
    """The states that a module gives, and the pool with what it keeps."""
    _, context = make_paged_context(config, ahead_BM, window.rows, pool, window.reach)
    place = sum(config.routed_layers) + number
    mine = {name: x[place] for name, x in own.items() if x is not None and config.routed_blocks[-1]}
    given = (x_BMD, reading.embed(ahead_BM), pool[-1], context, mine)
    x_BMD, cache = predict_from_pages(config, layout, params, number, *given)
    return x_BMD, [*pool[:-1], cache]
