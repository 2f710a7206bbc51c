"""Speculation: what is asked for, and where drafts come from."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from moejax.config.checks import check, check_sizes
from moejax.config.model import ModelConfig
from moejax.inference.engine.calls import Runner
from moejax.inference.engine.drafts import Drafter, ModelDrafter, ModuleDrafter, PromptDrafter
from moejax.inference.open_model import OpenModel

Way = Literal["none", "prompt", "draft", "mtp"]


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
