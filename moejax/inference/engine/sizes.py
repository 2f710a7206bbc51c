"""How many texts and pages there are on each device, and in which shapes the model is called."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import ceil, prod
from typing import Any

import jax
from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.inference.engine.calls import Sizes
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.speculation import NOTHING, Speculation
from moejax.inference.inference_config import inference_config
from moejax.models.kv_pages import empty_pool, pool_shardings
from moejax.runtime import device_mesh
from moejax.runtime.host_memory import read_free_memory
from moejax.runtime.number_words import short

SHORTEST, STEP = 256, 4
"""Positions of the smallest table of a model with a long window, and how much larger the next one
is: a step reads at most so many times what its longest text has."""
SAVED_ROWS, SAVED_TOKENS = 8, 32
"""On a CPU, a call takes by itself about as long as so many rows of a decode step, or so many
tokens of prompts: what a further program must save to be worth its compilation. (On GPUs and TPUs,
small calls read the weights, and take as long whatever their rows.)"""
SHARE, HOST_SHARE = 0.9, 0.5
"""Of what a device has left, for pages; of the machine's memory, which other programs want, too."""


def choose_sizes(
    config: ModelConfig,
    context: int,
    mesh: Mesh,
    settings: EngineSettings,
    speculation: Speculation = NOTHING,
) -> Sizes:
    """Sizes for a model that was trained on ``context`` positions and lies on this mesh already.
    Another one that makes drafts has as many pages as it. Raises ``ConfigError`` if there is no
    room for one text of the longest kind.
    """
    configs, drafts = speculation.list_configs(config), speculation.drafts
    with jax.set_mesh(mesh):
        lanes = device_mesh.token_devices()
    window = settings.window or context
    seats, page = ceil(settings.seats / lanes), settings.page or choose_page(window)
    chunk = ceil((settings.chunk or choose_chunk(window)) / page) * page
    # What the first token of a call sees need not begin with a page.
    seen = ceil((window - 1) / page)
    most = ceil((window - 1 + drafts) / page) + 1
    most_prompt = seen + chunk // page
    prompt_rows = min(settings.prompt_rows, seats)
    check_calls(config, mesh, seats, prompt_rows, chunk)
    cost = partial(bytes_on_device, configs, mesh, lanes, seats, page=page, settings=settings)
    pages, least = settings.pages, most_prompt + 1
    if pages is None:
        wanted = seats * most + 1 + prompt_rows * chunk // page
        what = f"{window:,} positions (in pages of {page}, read by {chunk:,} at a time)"
        pages = fit_pages(cost, mesh, what, wanted, least, settings.memory_share)
    check(
        pages >= least,
        f"--pages {pages} of {page} positions do not hold one text: it may need {most_prompt}"
        f" beside the one that is kept for padding.",
    )
    check_free(cost(pages), mesh, f"--pages {pages}: the cache takes")
    sizes = Sizes(
        lanes=lanes,
        seats=seats,
        page=page,
        pages=pages,
        rows=tuple(sorted({1, ceil(seats / 4), seats})),
        tables=make_ladder(most, page),
        prompt_rows=tuple(sorted({1, prompt_rows})),
        prompt_tables=make_ladder(most_prompt, page, chunk // page),
        chunk=chunk,
        drafts=drafts,
        ahead=speculation.modules,
    )
    return fit_calls(sizes) if _on_host(mesh) else sizes


def fit_calls(sizes: Sizes) -> Sizes:
    """With calls of half the rows and tokens, too, where these save enough, and where there is one
    table: with several, each would be as many programs more. Then one prompt may have a call of a
    quarter of the tokens alone, since most prompts are shorter than a large chunk.
    """
    if len(sizes.tables) + len(sizes.prompt_tables) > 2:
        quarter = ceil(sizes.chunk / 4 / sizes.page) * sizes.page
        return replace(sizes, short=quarter if sizes.chunk - quarter >= 2 * SAVED_TOKENS else 0)
    half, tokens = ceil(sizes.seats / 2), ceil(sizes.chunk / 2 / sizes.page) * sizes.page
    prompts = ceil(sizes.prompt_rows[-1] / 2)
    rows, prompt_rows = set(sizes.rows), set(sizes.prompt_rows)
    if half - ceil(sizes.seats / 4) >= SAVED_ROWS:
        rows.add(half)
    if (sizes.prompt_rows[-1] - prompts) * sizes.chunk >= SAVED_TOKENS:
        prompt_rows.add(prompts)
    return replace(
        sizes,
        rows=tuple(sorted(rows)),
        prompt_rows=tuple(sorted(prompt_rows)),
        short=tokens if sizes.chunk - tokens >= SAVED_TOKENS else 0,
    )


def make_ladder(most: int, page: int, more: int = 0) -> tuple[int, ...]:
    """Numbers of pages for tables of at most ``most``, of which ``more`` are beside what a text
    has: few, as each one is a program, but so that short texts do not read as much as long ones.
    """
    rungs, rung = {most}, ceil(SHORTEST / page)
    while rung <= (most - more) / 2:
        rungs.add(rung + more)
        rung *= STEP
    return tuple(sorted(rungs))


def fit_pages(
    cost: Callable[[int], int],
    mesh: Mesh,
    text: str,
    wanted: int,
    least: int,
    share: float | None,
) -> int:
    """As many pages as are ``wanted``, or as this ``share`` of the free memory holds; ``cost``
    gives the bytes of so many. Raises ``ConfigError`` if that is less than the ``least``, which one
    ``text`` of the longest kind needs.
    """
    free = free_bytes(mesh)
    if free is None:
        return wanted
    share = share or (HOST_SHARE if _on_host(mesh) else SHARE)
    none, one = cost(0), cost(1)
    pages = min(wanted, int(max(0, free * share - none) // max(1, one - none)))
    check(
        pages >= least,
        f"the cache of one text of {text} takes {short(cost(least))}B, more than --memory-share"
        f" {share:g} of the {short(free)}B that are free{_where(mesh)}: give a smaller --window,"
        f" --cache bfloat16 or int8, or a larger --memory-share.",
    )
    return pages


def check_calls(config: ModelConfig, mesh: Mesh, seats: int, prompt_rows: int, chunk: int) -> None:
    """Raise ``ConfigError`` for calls whose largest arrays alone find no room."""
    V = config.vocab_size or 0
    check_free(4 * seats * V, mesh, f"--seats {seats * mesh.size:,}: the logits of a call take")
    read = prompt_rows * chunk
    size = 4 * max(prompt_rows * V, read * config.width)
    check_free(size, mesh, f"--prompt-rows, --chunk and --page: a call of {read:,} tokens takes")


def check_free(size: float, mesh: Mesh, what: str) -> None:
    """Raise ``ConfigError`` unless so many bytes are free on each device."""
    free = free_bytes(mesh)
    check(
        free is None or size <= free,
        f"{what} {short(size, 'kMGTPE')}B, but {short(free or 0)}B are free{_where(mesh)}: give"
        f" smaller numbers.",
    )


def _on_host(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def _where(mesh: Mesh) -> str:
    if not _on_host(mesh):
        return " on a device"
    return " in this machine" + (f", for each of {mesh.size} devices" if mesh.size > 1 else "")


def choose_page(window: int) -> int:
    """Positions of a page so that texts which have as many as the window leave less than 4 % of
    their slots empty: half a page at their end, and half a page before the window.
    """
    return 4 if window < 256 else 8 if window < 512 else 16


def choose_chunk(window: int) -> int:
    """Tokens of a prompt in one call. Each call reads all experts that its tokens choose, so large
    ones cost less a token; prompts of models with a short window would not fill them.
    """
    return 64 if window < 512 else 256


def bytes_on_device(
    configs: Sequence[ModelConfig],
    mesh: Mesh,
    lanes: int,
    seats: int,
    pages: int,
    page: int,
    settings: EngineSettings,
) -> int:
    """Bytes on one device of a pool for each of these models."""

    def make() -> Any:
        sizes = (lanes, seats, pages, page, settings.cache)
        pools = [empty_pool(inference_config(config), *sizes) for config in configs]
        return [cache for pool in pools for cache in pool]

    with jax.set_mesh(mesh):
        pool = jax.eval_shape(make)
    shardings = jax.tree.leaves(pool_shardings(mesh, pool))
    return sum(
        prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x, sharding in zip(jax.tree.leaves(pool), shardings, strict=True)
    )


def free_bytes(mesh: Mesh) -> float | None:
    """Bytes that are free on the fullest device of this process, or, of devices that share the
    memory of the machine, for each; None where it is not known.
    """
    devices = mesh.local_devices
    if devices[0].platform == "cpu":
        free = read_free_memory()
        return None if free is None else free / len(devices)
    stats = [device.memory_stats() for device in devices]
    known = [s["bytes_limit"] - s["bytes_in_use"] for s in stats if s and "bytes_limit" in s]
    return min(known, default=None)


def describe_cache(sizes: Sizes, size: int) -> str:
    """One line: what the pages hold, and the bytes that they take on each device."""
    pages, lanes = sizes.pages, sizes.lanes
    each = f" on each of {lanes} devices" if lanes > 1 else ""
    return (
        f"cache: {pages:,} pages of {sizes.page} positions{each}, {lanes * pages * sizes.page:,}"
        f" positions in all; {short(size)}B{' a device' if each else ''}"
    )
