"""Where the drafts of a model that was opened come from, and which models can have them."""

from pathlib import Path

from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.inference.engine.speculation import NOTHING, Speculation, SpeculationSettings
from moejax.inference.open_model import OpenModel
from moejax.inference.opening import open_model

DRAFTS = 4
"""Tokens that are guessed for a text, where nobody says and as many can be."""


def open_speculation(model: OpenModel, mesh: Mesh, settings: SpeculationSettings) -> Speculation:
    """What settings ask for, with the smaller model on the mesh. Raises ``UserError`` for models
    that cannot be speculated with, one whose tokens are others, and one without modules.
    """
    way, drafts = settings.speculate, settings.drafts or DRAFTS
    if way == "none":
        return NOTHING
    check_goes_back(model.config, f"--speculate {way}: this model")
    draft: OpenModel | None = None
    if way == "mtp":
        drafts = count_modules(model.config, settings.drafts)
    elif way == "draft":
        path = settings.draft
        assert path is not None and model.tokenizer is not None  # checked with the settings
        check(path.is_dir(), f"--draft {path}: there is no such directory, give that of a model.")
        draft = open_model(path, mesh=mesh, layout=model.layout, dtype=model.config.dtype)
        check_draft(path, draft, model)
    return Speculation(way=way, drafts=drafts, match=settings.match, draft=draft)


def count_modules(config: ModelConfig, drafts: int | None) -> int:
    """How many modules make drafts. Raises ``ConfigError`` if there are none, or too few."""
    there = config.next_tokens
    check(
        there > 0,
        "--speculate mtp: this model has no modules that predict further tokens; it has them if it"
        " was trained with --model.next-tokens 1, or imported with them. Take --speculate prompt or"
        " draft instead, or leave it out.",
    )
    check(
        (drafts or there) <= there,
        f"--drafts {drafts}: each of this model's modules guesses one token, and it has {there}:"
        f" give at most as many, or leave it out.",
    )
    return drafts or there


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
