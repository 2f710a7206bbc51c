"""Sizes for texts that begin together, and have room for all that they become."""

from math import ceil

import jax
from jax.sharding import Mesh

from moejax.inference.engine.calls import Sizes
from moejax.inference.prompts import round_up
from moejax.runtime import device_mesh

PAGE = 16
"""Positions of a page. (Those of larger pages are copied whole by XLA on CPUs.)"""


def sizes_together(
    mesh: Mesh,
    rows: int,
    prompt: int,
    tokens: int,
    window: int | None = None,
    drafts: int = 0,
    modules: int = 0,
) -> Sizes:
    """Sizes for so many texts that begin together: prompts of at most ``prompt`` tokens, all read
    by one call, and ``tokens`` after each, by calls of one shape; of another one where ``drafts``
    are checked, which that many ``modules`` of the model may make. None waits for pages.
    """
    with jax.set_mesh(mesh):
        lanes = device_mesh.token_devices()
    seats, chunk = ceil(rows / lanes), round_up(prompt)
    table = round_up(prompt + tokens - 1) // PAGE
    if window is not None:
        table = min(table, ceil((window - 1 + drafts) / PAGE) + 1)
    return Sizes(
        lanes=lanes,
        seats=seats,
        page=PAGE,
        pages=seats * (table + 1) + 1,  # a text is given a seat where it has a page to spare
        rows=(seats,),
        tables=(table,),
        prompt_rows=(seats,),
        prompt_tables=(chunk // PAGE,),
        chunk=chunk,
        drafts=drafts,
        ahead=modules,
    )
