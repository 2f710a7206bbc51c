"""An engine for a model that was opened."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.inference.engine.calls import Sizes
from moejax.inference.engine.engine import Engine
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.open_speculation import open_speculation
from moejax.inference.engine.runner import PageRunner
from moejax.inference.engine.sizes import bytes_on_device, choose_sizes, describe_cache
from moejax.inference.engine.speculation import SpeculationSettings
from moejax.inference.engine.texts import TextRules
from moejax.inference.open_model import OpenModel


def open_engine(
    model: OpenModel,
    mesh: Mesh,
    settings: EngineSettings,
    place_LER: jax.Array | None = None,
    tell: Callable[[str], None] = lambda line: None,
    guessing: SpeculationSettings | None = None,
) -> Engine:
    """The engine of a language model, with all its programs compiled. ``place_LER`` goes with
    parameters that have replicas of experts; ``tell`` gets a line about the cache, before any
    memory is taken; ``guessing`` says whether tokens are guessed, and how. Raises ``ConfigError``
    for a model that cannot generate, or cannot be speculated with, if there is no room for its
    texts, and for several processes.
    """
    check(
        jax.process_count() == 1,  # as requests come to one of them
        "texts that share a running batch are for one process, not several.",
    )
    assert model.tokenizer is not None  # callers check it
    window = settings.window or model.context
    speculation = open_speculation(model, mesh, guessing or SpeculationSettings())
    sizes = choose_sizes(model.config, model.context, mesh, settings, speculation)
    configs = speculation.list_configs(model.config)
    shape = (sizes.lanes, sizes.seats, sizes.pages, sizes.page)
    tell(describe_cache(sizes, bytes_on_device(configs, mesh, *shape, settings)))
    make = partial(make_runner, mesh=mesh, settings=settings, window=window)
    runner = make(model, sizes=sizes, place_LER=place_LER, modules=speculation.modules)
    smaller: PageRunner | None = None
    if speculation.draft is not None:
        smaller = make(speculation.draft, sizes=replace(sizes, checks=False))
    if "delta" in model.config.attention_kinds:  # what they remember lies in no page
        settings = replace(settings, share_prefixes=False)
    rules = TextRules(
        tokenizer=model.tokenizer,
        ends=model.ends,
        vocab_size=model.vocab_size,
        window=window,
        attention=model.config.attention,
    )
    return Engine(runner, rules, settings, speculation.make_drafter(smaller))


def make_runner(
    model: OpenModel,
    mesh: Mesh,
    settings: EngineSettings,
    sizes: Sizes,
    window: int,
    place_LER: jax.Array | None = None,
    modules: int = 0,
) -> PageRunner:
    """What calls a model, with all its programs compiled; so many modules make drafts."""
    runner = PageRunner(
        model.config,
        model.layout,
        model.params,
        model.bias_LE,
        mesh=mesh,
        sizes=sizes,
        window=window,
        place_LER=place_LER,
        cache=settings.cache,
        modules=modules,
    )
    runner.warm()
    return runner
