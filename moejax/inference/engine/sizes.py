"""How many texts and pages there are on each device, and in which shapes the model is called."""

from math import ceil, prod
from typing import Any

import jax
from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.inference.engine.calls import Sizes
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.inference_config import inference_config
from moejax.models.kv_pages import empty_pool, pool_shardings
from moejax.runtime import device_mesh


def choose_sizes(config: ModelConfig, context: int, mesh: Mesh, settings: EngineSettings) -> Sizes:
    """Sizes for a model that was trained on ``context`` positions and lies on this mesh already.
    Raises ``ConfigError`` if there is no room for one text of the longest kind.
    """
    with jax.set_mesh(mesh):
        lanes = device_mesh.token_devices()
    window = settings.window or context
    seats, page = ceil(settings.seats / lanes), settings.page or choose_page(window)
    chunk = ceil(settings.chunk / page) * page
    # What the first token of a call sees need not begin with a page.
    seen = ceil((window - 1) / page)
    most, most_prompt = seen + 1, seen + chunk // page
    pages = settings.pages
    if pages is None:
        room = free_bytes(mesh)
        used = [bytes_on_device(config, mesh, lanes, seats, n, page, settings) for n in (1, 2)]
        pages = seats * most + 1 + settings.prompt_rows * chunk // page
        if room is not None:
            left = room * settings.memory_share - used[0]
            pages = min(pages, 1 + int(max(0, left) // max(1, used[1] - used[0])))
    check(
        pages > most_prompt,
        f"--pages {pages} of {page} positions do not hold one text: it may need {most_prompt}"
        f" beside the one that is kept for padding.",
    )
    return Sizes(
        lanes=lanes,
        seats=seats,
        page=page,
        pages=pages,
        rows=tuple(sorted({1, ceil(seats / 4), ceil(seats / 2), seats})),
        tables=tuple(sorted({ceil(most / 2), most})),
        prompt_rows=tuple(sorted({1, min(settings.prompt_rows, seats)})),
        prompt_tables=tuple(sorted({max(chunk // page, ceil(most_prompt / 4)), most_prompt})),
        chunk=chunk,
    )


def choose_page(window: int) -> int:
    """Positions of a page so that texts which have as many as the window leave less than 4 % of
    their slots empty: half a page at their end, and half a page before the window.
    """
    return 4 if window < 256 else 8 if window < 512 else 16


def bytes_on_device(
    config: ModelConfig,
    mesh: Mesh,
    lanes: int,
    seats: int,
    pages: int,
    page: int,
    settings: EngineSettings,
) -> int:
    """Bytes of a pool on one device."""
    config = inference_config(config)

    def make() -> Any:
        return empty_pool(config, lanes, seats, pages, page, settings.cache)

    with jax.set_mesh(mesh):
        pool = jax.eval_shape(make)
    shardings = jax.tree.leaves(pool_shardings(mesh, pool))
    return sum(
        prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x, sharding in zip(jax.tree.leaves(pool), shardings, strict=True)
    )


def free_bytes(mesh: Mesh) -> int | None:
    """Bytes that are free on the fullest device of this process; None where it does not tell."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    known = [s["bytes_limit"] - s["bytes_in_use"] for s in stats if s and "bytes_limit" in s]
    return min(known, default=None)
