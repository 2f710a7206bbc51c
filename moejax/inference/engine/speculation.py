"""Speculation: where drafts come from, and which models can have them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from jax.sharding import Mesh

from moejax.config.checks import check, check_sizes
from moejax.config.model import ModelConfig
from moejax.inference.engine.calls import Runner
from moejax.inference.engine.drafts import Drafter, ModelDrafter, ModuleDrafter, PromptDrafter
from moejax.inference.open_model import OpenModel
from moejax.inference.opening import open_model

Way = Literal["none", "prompt", "draft", "mtp"]
DRAFTS = 4
"""Tokens that are guessed for a text, where nobody says and as many can be."""


@dataclass(frozen=True, kw_only=True)
class SpeculationSettings:
    """Whether tokens are guessed, and how."""

    speculate: Way = "none"
    """Guess several tokens, and check them in one call; texts stay the same. `prompt`: as the text
    went on where its last tokens were before; `draft`: by a smaller model (--draft); `mtp`: by the
    model's own modules for further tokens (--model.next-tokens). It pays with few texts at once, on
    devices that take hardly longer for a few tokens more."""
    drafts: int | None = None
    """With --speculate: tokens that are guessed for a text, at most; by default 4, and with mtp one
    by each of the model's modules."""
    match: int = 3
    """With --speculate prompt: so many last tokens must be the same."""
    draft: Path | None = None
    """With --speculate draft: the directory of a smaller model, with the same tokenizer."""

    def __post_init__(self) -> None:
        check_sizes("", self, "drafts", "match")
        check(
            self.speculate != "draft" or self.draft is not None,
            "--speculate draft needs a smaller model: give its directory as --draft.",
        )


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """Where the drafts of a model come from; by default there are none."""

    way: Way = "none"
    drafts: int = 0
    """Tokens that are checked at once."""
    match: int = 0
    draft: OpenModel | None = None
    """The smaller model."""

    @property
    def modules(self) -> int:
        """So many modules of the model make drafts."""
        return self.drafts if self.way == "mtp" else 0

    def list_configs(self, config: ModelConfig) -> list[ModelConfig]:
        """The settings of all models that keep something in pages, with the modules that do."""
        first = replace(config, next_tokens=self.modules)
        return [first] if self.draft is None else [first, replace(self.draft.config, next_tokens=0)]

    def make_drafter(self, smaller: Runner | None) -> Drafter | None:
        """What makes the drafts; ``smaller`` calls the smaller model."""
        if smaller is not None:
            return ModelDrafter(smaller, self.drafts)
        if self.way == "prompt":
            return PromptDrafter(self.drafts, self.match)
        return ModuleDrafter(self.drafts) if self.way == "mtp" else None


NOTHING = Speculation()


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
