"""An engine for a model that was opened."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.inference.engine.calls import Sizes
from moejax.inference.engine.drafts import Drafter, ModelDrafter, PromptDrafter
from moejax.inference.engine.engine import Engine
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.runner import PageRunner
from moejax.inference.engine.sizes import bytes_on_device, choose_sizes, describe_cache
from moejax.inference.engine.texts import TextRules
from moejax.inference.open_model import OpenModel
from moejax.inference.opening import open_model


def open_engine(
    model: OpenModel,
    mesh: Mesh,
    settings: EngineSettings,
    place_LER: jax.Array | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Engine:
    """The engine of a language model, with all its programs compiled. ``place_LER`` goes with
    parameters that have replicas of experts; ``tell`` gets a line about the cache, before any
    memory is taken. Raises ``ConfigError`` for a model that cannot generate, or cannot be
    speculated with, if there is no room for its texts, and for several processes.
    """
    check(
        jax.process_count() == 1,  # as requests come to one of them
        "texts that share a running batch are for one process, not several.",
    )
    assert model.tokenizer is not None  # callers check it
    window = settings.window or model.context
    draft = open_draft(model, mesh, settings)
    of_draft = None if draft is None else draft.config
    sizes = choose_sizes(model.config, model.context, mesh, settings, of_draft)
    configs = [model.config] if of_draft is None else [model.config, of_draft]
    shape = (sizes.lanes, sizes.seats, sizes.pages, sizes.page)
    tell(describe_cache(sizes, bytes_on_device(configs, mesh, *shape, settings)))
    runner = make_runner(model, mesh, settings, sizes, window, place_LER)
    drafter: Drafter | None = None
    if settings.speculate == "prompt":
        drafter = PromptDrafter(settings.drafts, settings.match)
    elif draft is not None:
        smaller = make_runner(draft, mesh, settings, replace(sizes, checks=False), window)
        drafter = ModelDrafter(smaller, settings.drafts)
    if "delta" in model.config.attention_kinds:  # what they remember lies in no page
        settings = replace(settings, share_prefixes=False)
    rules = TextRules(
        tokenizer=model.tokenizer,
        ends=model.ends,
        vocab_size=model.vocab_size,
        window=window,
        attention=model.config.attention,
    )
    return Engine(runner, rules, settings, drafter)


def make_runner(
    model: OpenModel,
    mesh: Mesh,
    settings: EngineSettings,
    sizes: Sizes,
    window: int,
    place_LER: jax.Array | None = None,
) -> PageRunner:
    """What calls a model, with all its programs compiled."""
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
    return runner


def open_draft(model: OpenModel, mesh: Mesh, settings: EngineSettings) -> OpenModel | None:
    """The model that makes drafts, if one is to. Raises ``UserError`` for models that cannot be
    speculated with, and for one whose tokens are others.
    """
    if settings.speculate == "none":
        return None
    check_goes_back(model.config, f"--speculate {settings.speculate}: this model")
    if settings.speculate != "draft":
        return None
    path = settings.draft
    assert path is not None and model.tokenizer is not None  # checked with the settings
    check(path.is_dir(), f"--draft {path}: there is no such directory, give that of a model.")
    draft = open_model(path, mesh=mesh, layout=model.layout, dtype=model.config.dtype)
    check_draft(path, draft, model)
    return draft


def check_draft(path: Path, draft: OpenModel, model: OpenModel) -> None:
    """Raise ``ConfigError`` for a model that cannot make drafts for another."""
    check(
        draft.config.material.language and draft.tokenizer is not None,
        f"--draft {path}: give a language model with a tokenizer.",
    )
    assert draft.tokenizer is not None and model.tokenizer is not None
    same = draft.tokenizer.fingerprint == model.tokenizer.fingerprint
    check(
        same and draft.vocab_size == model.vocab_size,
        f"--draft {path} has another tokenizer ({draft.tokenizer.fingerprint}, of"
        f" {draft.vocab_size:,} tokens) than the model ({model.tokenizer.fingerprint}, of"
        f" {model.vocab_size:,}): drafts are tokens, so give a model with the same one.",
    )
    check_goes_back(draft.config, f"--draft {path}: it")


def check_goes_back(config: ModelConfig, who: str) -> None:
    """Raise ``ConfigError`` for a model that cannot forget drafts that were wrong."""
    check(
        "delta" not in config.attention_kinds,
        f"{who} has memory layers (gated_delta), which cannot forget what they have read, so no"
        f" drafts can be checked: leave --speculate out, or take models with attention alone.",
    )
