"""An engine for a model that was opened."""

from collections.abc import Callable
from dataclasses import replace

import jax
from jax.sharding import Mesh

from moejax.inference.engine.engine import Engine
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.runner import PageRunner
from moejax.inference.engine.sizes import bytes_on_device, choose_sizes, describe_cache
from moejax.inference.engine.texts import TextRules
from moejax.inference.open_model import OpenModel


def open_engine(
    model: OpenModel,
    mesh: Mesh,
    settings: EngineSettings,
    place_LER: jax.Array | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Engine:
    """The engine of a language model, with all its programs compiled. ``place_LER`` goes with
    parameters that have replicas of experts; ``tell`` gets a line about the cache, before any
    memory is taken. Raises ``ConfigError`` for a model that cannot
    generate, and if there is no room for its texts.
    """
    assert model.tokenizer is not None  # callers check it
    window = settings.window or model.context
    sizes = choose_sizes(model.config, model.context, mesh, settings)
    shape = (sizes.lanes, sizes.seats, sizes.pages, sizes.page)
    tell(describe_cache(sizes, bytes_on_device(model.config, mesh, *shape, settings)))
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
    )
    runner.warm()
    if "delta" in model.config.attention_kinds:  # what they remember lies in no page
        settings = replace(settings, share_prefixes=False)
    rules = TextRules(
        tokenizer=model.tokenizer,
        ends=model.ends,
        vocab_size=model.vocab_size,
        window=window,
        attention=model.config.attention,
    )
    return Engine(runner, rules, settings)
