"""An engine for a model that was opened."""

from dataclasses import replace

import jax
from jax.sharding import Mesh

from moejax.inference.engine.engine import Engine
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.runner import PageRunner
from moejax.inference.engine.sizes import choose_sizes
from moejax.inference.engine.texts import TextRules
from moejax.inference.open_model import OpenModel


def open_engine(
    model: OpenModel,
    mesh: Mesh,
    settings: EngineSettings,
    place_LER: jax.Array | None = None,
) -> Engine:
    """The engine of a language model, with all its programs compiled. ``place_LER`` goes with
    parameters that have replicas of experts. Raises ``ConfigError`` for a model that cannot
    generate, and if there is no room for its texts.
    """
    assert model.tokenizer is not None  # callers check it
    window = settings.window or model.context
    runner = PageRunner(
        model.config,
        model.layout,
        model.params,
        model.bias_LE,
        mesh=mesh,
        sizes=choose_sizes(model.config, model.context, mesh, settings),
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
