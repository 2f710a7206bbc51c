"""The corpus of a config: one source, or the sources of a mixture."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from moejax.config.checks import check
from moejax.config.data import DataConfig, in_words_of
from moejax.config.errors import ConfigError
from moejax.config.mixture import FLAG, SourceConfig
from moejax.data.batches import TrainBatches
from moejax.data.corpus import Corpus
from moejax.data.documents import Joined
from moejax.data.epoch_size import count_targets
from moejax.data.fingerprint import Mark
from moejax.data.mixture import Plan, Wanted, make_plan
from moejax.data.pipeline import mixed_train_batches, train_batches
from moejax.data.sources import open_documents
from moejax.data.token_cache import cache_tokens
from moejax.data.tokenizer import Tokenizer


def open_corpus(
    config: DataConfig, tokenizer: Tokenizer | None = None, models: Sequence[Path] = ()
) -> Corpus:
    """The corpus that the settings name, as ``sources.open_documents`` opens it; of a mixture all
    sources, one after the other, which ``Corpus.sources`` has by name.

    Raises ``ConfigError``, naming the source, if one cannot be had, and if a file is in two.
    """
    if config.mixture is None:
        return open_documents(config, tokenizer, models)
    found: dict[str, Corpus] = {}
    for source in config.sources:
        try:
            one = open_documents(config.of_source(source), tokenizer, models)
        except ConfigError as error:
            raise ConfigError(in_words_of(source, error)) from error
        found[source.name] = replace(one, take_marks=cache(one.take_marks))
    _check_files(config.sources, found)
    return _join(found)


def cache_corpus(
    corpus: Corpus, tokenizer: Tokenizer, config: DataConfig, marks: Sequence[Mark]
) -> Corpus:
    """The corpus with the tokens of its documents in their place, as ``cache_tokens`` keeps them;
    of a mixture those of each source.
    """
    if not corpus.sources:
        return cache_tokens(corpus, tokenizer, config, marks)
    return _join(
        {
            name: cache_tokens(one, tokenizer, config, one.take_marks())
            for name, one in corpus.sources.items()
        }
    )


def plan_mixture(
    corpus: Corpus, tokenizer: Tokenizer, config: DataConfig, steps: int
) -> Plan | None:
    """Of which source each sequence of a run is; None without a mixture. An epoch of a source are
    its targets over ``config.sequence_length``; padding, which is a percent or so of packed rows,
    is not counted. Raises ``ConfigError`` if epochs and steps do not fit.
    """
    if config.mixture is None:
        return None
    wanted = []
    for source in config.sources:
        rows = None
        if source.epochs is not None:
            documents = corpus.sources[source.name].train
            rows = count_targets(documents, tokenizer) / config.sequence_length
        wanted.append(
            Wanted(name=source.name, weight=source.weight, epochs=source.epochs, rows=rows)
        )
    try:
        return make_plan(wanted, steps, config.batch_size)
    except ConfigError as error:
        raise ConfigError(f"{FLAG}: {error}") from error


def batch_corpus(
    corpus: Corpus,
    tokenizer: Tokenizer,
    config: DataConfig,
    plan: Plan | None,
    rows: np.ndarray | None = None,
) -> TrainBatches:
    """The training batches of a corpus; of each, the ``rows`` of one process, by default all."""
    size = config.batch_size
    if plan is None:
        return train_batches(corpus.train, tokenizer, config, batch_size=size, rows=rows)
    sources = {name: one.train for name, one in corpus.sources.items()}
    return mixed_train_batches(sources, tokenizer, config, plan, batch_size=size, rows=rows)


def _join(sources: Mapping[str, Corpus]) -> Corpus:
    counts: dict[str, int] = {}
    for one in sources.values():
        for key, count in one.counts.items():
            counts[key] = counts.get(key, 0) + count
    return Corpus(
        train=Joined([one.train for one in sources.values()]),
        validation=Joined([one.validation for one in sources.values()]),
        description=f"a mixture of {', '.join(sources)}",
        take_marks=lambda: [
            (f"{name}: {first}", f"{name}: {last}", digest)
            for name, one in sources.items()
            for first, last, digest in one.take_marks()
        ],
        counts=counts,
        bad=next((f"{name}: {one.bad}" for name, one in sources.items() if one.bad), None),
        sources=sources,
    )


def _check_files(mixture: Sequence[SourceConfig], found: Mapping[str, Corpus]) -> None:
    """No text is in two sources, nor held out of one and trained on in another."""
    trained: dict[object, str] = {}
    fields = {source.name: source.field for source in mixture}
    for name, one in found.items():
        for file in one.files[0]:
            key = (file.identity, fields[name])
            other = trained.setdefault(key, name)
            check(
                other == name,
                f"{FLAG}: {file.path} is in two sources, {other} and {name}: take it out of one.",
            )
    for name, one in found.items():
        for file in one.files[1]:
            other = trained.get((file.identity, fields[name]), name)
            check(
                other == name,
                f"{FLAG}: {file.path} is held out of source {name}, but trained on in {other}:"
                f" take it out of one.",
            )
