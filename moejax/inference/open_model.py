"""A model that can be run."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from moejax.config.checks import check
from moejax.config.data import DataConfig
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.data.chat.find_template import AUTO, find_template
from moejax.data.chat.template import Template
from moejax.data.check_tokens import check_known
from moejax.data.tokenizer import Tokenizer
from moejax.moe.quantise_params import Weights


@dataclass(frozen=True)
class Base:
    """The model that adapters belong to."""

    path: Path
    digest: str | None
    """Which model it is, by ``same_model.sum_arrays``; None if that is not known."""
    scale: float
    """What multiplies the product of an adapter."""
    weights: Weights | None = None
    """How it was quantised while the adapters were trained."""


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model on a mesh, without what only training needs."""

    config: ModelConfig
    """As it was trained, and of a language model with the size of its vocabulary;
    ``inference_config`` makes it ready to be run."""
    layout: MeshConfig
    vocab_size: int
    params: dict
    """On the mesh, in the types in which the model uses them."""
    bias_LE: jax.Array | None
    tokenizer: Tokenizer | None
    """None if a released model came without its own, and for images."""
    context: int
    """Positions of the sequences that it was trained on; tokens of an image."""
    beginning: tuple[int, ...]
    """The tokens before every prompt: as a run has learned documents to begin, or as a released
    tokenizer puts them."""
    ends: frozenset[int]
    """The tokens that end a text."""
    description: str
    """One line: where it is, and its size."""
    data: DataConfig | None
    """The text or images that it was trained on, with a part held out; None if unknown."""
    rows: int = 64
    """Sequences, or images, in a batch, by default."""
    chat_template: str | None = None
    """How it writes conversations: ``auto`` (the template that it came with), a name, or a file, as
    in ``--data.chat-template``; None if it has learned none, which is as ``auto``."""
    base: Base | None = None
    """While it is being opened: what ``params``, which then are adapters, belong to."""

    @cached_property
    def template(self) -> Template:
        """Its chat template. Raises ``ConfigError`` if it has none."""
        assert self.tokenizer is not None  # callers check it
        return find_template(self.chat_template or AUTO, self.tokenizer, flag="--chat-template")

    def begin(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """The tokens of a text that is to be continued, int32 [n]. With ``special_tokens``, names
        of control tokens in it stand for these, and a beginning that it has is not put twice.
        Raises ``ConfigError`` for tokens beyond the model's embedding.
        """
        assert self.tokenizer is not None  # callers check it
        if special_tokens:
            ids = self.tokenizer.encode_with_names(text)
        else:
            ids, _ = self.tokenizer.encode(text.encode())
        there = special_tokens and tuple(ids[: len(self.beginning)].tolist()) == self.beginning
        ids = np.concatenate([() if there else self.beginning, ids]).astype(np.int32)
        check_known(ids, self.vocab_size, self.tokenizer)
        return ids


def check_no_step(path: Path, step: int | None) -> None:
    """Raise ``ConfigError`` for a step: only runs have several checkpoints."""
    check(step is None, f"--step {step}: {path} is no run, and has one state only.")
