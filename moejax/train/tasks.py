"""What a run learns: the next token of texts, or the class of images."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moejax.config.config import Config
from moejax.config.paths import expand_home
from moejax.data.batches import Batch, TrainBatches
from moejax.data.chat.choose import list_models
from moejax.data.check_tokens import check_some_tokens
from moejax.data.corpus import Corpus
from moejax.data.fingerprint import Mark, join_marks
from moejax.data.image_batches import image_train_batches, image_validation_batches
from moejax.data.images import ImageSet, check_images, mark_images, open_images
from moejax.data.lost_text import measure_loss
from moejax.data.mixed_corpus import batch_corpus, cache_corpus, open_corpus, plan_mixture
from moejax.data.mixture import Plan
from moejax.data.pipeline import validation_batches
from moejax.data.tokenizer import Tokenizer, choose_vocab_size, load_tokenizer
from moejax.inference.kept_files import adopt_edges


@dataclass(frozen=True, kw_only=True)
class LanguageTask:
    """Texts, cut into tokens."""

    config: Config
    corpus: Corpus
    tokens: Corpus
    """The same; where tokens are kept on disk, these are the documents."""
    tokenizer: Tokenizer
    marks: list[Mark]
    """A fingerprint of the text."""
    plan: Plan | None = None
    """Of a mixture: of which source each sequence is."""

    @property
    def vocab_size(self) -> int:
        """Logits of a target (V)."""
        return choose_vocab_size(self.config.model, self.tokenizer)

    @property
    def description(self) -> str:
        """One line about the data; other data have another."""
        return self.corpus.description

    @property
    def facts(self) -> dict[str, Any]:
        """More about the data, for ``summary.json``: which documents were left out, and what the
        tokenizer loses of the text.
        """
        facts: dict[str, Any] = dict(self.counted)
        if self.corpus.bad is not None:
            facts["first_bad_document"] = self.corpus.bad
        if self.plan is not None:
            facts["mixture"] = self.shares
        if not self.tokenizer.is_lossless:
            facts["lost_fraction"] = measure_loss(self.corpus.validation, self.tokenizer)
        return facts

    @property
    def shares(self) -> dict[str, dict[str, Any]]:
        """Of a mixture, by source: its share of the sequences of the whole run, and what it is."""
        if self.plan is None:
            return {}
        shares = self.plan.shares(self.config.run.steps * self.config.data.batch_size)
        return {
            name: {"share": share, "data": self.corpus.sources[name].description}
            for name, share in zip(self.plan.names, shares, strict=True)
        }

    @property
    def counted(self) -> dict[str, int]:
        """The documents that were left out or cut, where that is allowed, for every line of
        metrics.
        """
        return self.corpus.counts

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same in all processes."""
        return {
            "the tokenizer": self.tokenizer.fingerprint,
            "the beginnings and ends of texts": self.tokenizer.edges.to_json(),
            "the text": self.description,
            "the content of the text": join_marks(self.marks),
        }

    def train_batches(self, rows: np.ndarray) -> TrainBatches:
        """These rows of the training batches."""
        return batch_corpus(self.tokens, self.tokenizer, self.config.data, self.plan, rows)

    def validation_batches(self, rows: np.ndarray) -> dict[str, Iterable[Batch]]:
        """These rows of the evaluation batches by source, made when they are asked for; without a
        mixture, that is "".
        """
        data = self.config.data
        return {
            name: validation_batches(
                tokens.validation,
                self.tokenizer,
                data,
                batch_size=data.eval_batch_size,
                rows=rows,
                limit=self.config.run.eval_batches,
            )
            for name, tokens in (self.tokens.sources or {"": self.tokens}).items()
        }


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """Images and their classes."""

    config: Config
    images: ImageSet
    marks: list[Mark]
    """A fingerprint of the images."""

    @property
    def vocab_size(self) -> int:
        """Classes (V)."""
        return len(self.images.classes)

    @property
    def description(self) -> str:
        """One line about the data; other data have another."""
        return self.images.description

    @property
    def facts(self) -> dict[str, Any]:
        """More about the data, for ``summary.json``."""
        return {"classes": list(self.images.classes)}

    @property
    def counted(self) -> dict[str, int]:
        """Nothing is left out."""
        return {}

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same in all processes."""
        return {
            "the images": self.description,
            "the classes": list(self.images.classes),
            "the content of the images": join_marks(self.marks),
        }

    def train_batches(self, rows: np.ndarray) -> TrainBatches:
        """These rows of the training batches."""
        data = self.config.data
        return image_train_batches(self.images.train, data, batch_size=data.batch_size, rows=rows)

    def validation_batches(self, rows: np.ndarray) -> dict[str, Iterable[Batch]]:
        """These rows of the evaluation batches, of the one source that there is."""
        batches = image_validation_batches(
            self.images.validation,
            batch_size=self.config.data.eval_batch_size,
            rows=rows,
            limit=self.config.run.eval_batches,
        )
        return {"": batches}


Task = LanguageTask | ImageTask


def open_task(config: Config, kept_tokenizer: Path) -> Task:
    """What ``config`` trains on, prepared first if TFDS has to. If the tokenizer is no longer at
    its place, the copy that the run has kept is used. Raises ``ConfigError`` if the data cannot be
    had, or do not fit the model.
    """
    if config.model.material.language:
        name = expand_home("--data.tokenizer", config.data.tokenizer)
        if name != "bytes" and not os.path.exists(name) and kept_tokenizer.is_dir():
            name = str(kept_tokenizer)
        tokenizer = adopt_edges(load_tokenizer(name), kept_tokenizer.parent)
        corpus = open_corpus(config.data, tokenizer, list_models(config, kept_tokenizer))
        for source, one in (corpus.sources or {"": corpus}).items():
            what = "the held-out text" + f" of source {source}" * bool(source)
            check_some_tokens(one.validation, range(len(one.validation)), tokenizer, what)
        marks = corpus.take_marks()
        tokens = cache_corpus(corpus, tokenizer, config.data, marks)
        return LanguageTask(
            config=config,
            corpus=corpus,
            tokens=tokens,
            tokenizer=tokenizer,
            marks=marks,
            plan=plan_mixture(tokens, tokenizer, config.data, config.run.steps),
        )
    images = open_images(config.data)
    check_images(images, config.model)
    return ImageTask(config=config, images=images, marks=mark_images(images))
