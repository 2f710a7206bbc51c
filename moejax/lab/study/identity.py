"""What a training is, in a name: two that would give the same figures have the same one.

The name has a digest of all settings that have an effect and are not the defaults, of the seeds,
and of what is read: the data, the tokenizer, the model that is begun from, and the code of a router
of one's own. It does not depend on where these lie, nor on what else a run writes.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moejax.config.config import Config
from moejax.config.data import DataConfig
from moejax.config.files import flatten, to_dict
from moejax.config.idle import find_idle
from moejax.config.mixture import PATHS
from moejax.config.own_code import find_router_file
from moejax.config.paths import expand_home
from moejax.data.chat.choose import list_models
from moejax.data.fingerprint import Mark, join_marks
from moejax.data.images import mark_images, open_images
from moejax.data.mixed_corpus import open_corpus
from moejax.data.tokenizer import load_tokenizer
from moejax.routing.routers import ROUTERS
from moejax.runs.run_layout import WITHOUT_EFFECT
from moejax.runs.same_model import sum_arrays

PLACES = frozenset(
    {
        "data.train",
        "data.validation",
        "data.mixture",
        "data.files",
        "data.validation_files",
        "data.tokenizer",
        "run.init_from",
    }
)
"""Settings that say where something lies: what lies there is a part of the name in their place."""
LEFT_OUT = PLACES | WITHOUT_EFFECT
LETTERS = 12
"""Of the digest, in a name: 48 bits."""


def name_training(config: Config, marks: Sequence[Mark] | None = None) -> str:
    """The name of a training: what it is in a few words for people, and the digest. ``marks`` and
    errors as for ``digest_data``.
    """
    model, moe = config.model, config.model.moe
    words = "dense"
    if any(model.routed_layers):
        words = f"{moe.router}-{moe.num_experts}x{moe.hidden_size}-top{moe.top_k}"
    words = re.sub(r"[^\w.+=-]", "_", words, flags=re.ASCII)[:60]
    digest = digest_training(config, digest_data(config, marks))
    return f"{words}-{config.run.steps}steps-seed{config.run.seed}-{digest}"


def digest_training(config: Config, data: str) -> str:
    """The digest of all that a training depends on; ``data``: that of its data."""
    values, defaults = (flatten(to_dict(one)) for one in (config, Config()))
    idle = {one.path for one in find_idle(config, Config())}
    own = {
        name: _plain(value)
        for name, value in values.items()
        if name not in LEFT_OUT and name not in idle and value != defaults.get(name)
    }
    read = {
        "data": data,
        "by": "train" if config.data.names_text else config.data.source,
        "sources": [
            {name: _plain(value) for name, value in vars(one).items() if name not in PATHS}
            for one in config.data.sources
        ],
        "model": _digest_beginning(config.run.init_from),
        "router": _read_own_router(config.model.moe.router),
    }
    words = json.dumps([own, read], sort_keys=True, default=repr)
    return hashlib.blake2b(words.encode()).hexdigest()[:LETTERS]


def digest_data(config: Config, marks: Sequence[Mark] | None = None) -> str:
    """A digest of the data of a config, by content: documents and tokenizer, or images. ``marks``:
    their fingerprint, if it is known; else they are opened and read. Raises ``ConfigError`` if they
    cannot be had.
    """
    data, language = dataclasses.replace(config.data, seed=0), config.model.material.language
    if marks is None:
        models = tuple(list_models(config)) if data.chat_templates else ()
        joined = _mark_text(data, models) if language else _mark_images(data)
    else:
        joined = join_marks(marks)
    return f"{joined} {load_tokenizer(data.tokenizer).fingerprint}" if language else joined


@functools.cache
def _mark_images(data: DataConfig) -> str:
    return join_marks(mark_images(open_images(data)))


@functools.cache
def _mark_text(data: DataConfig, models: tuple[Path, ...]) -> str:
    return join_marks(open_corpus(data, load_tokenizer(data.tokenizer), models).take_marks())


@functools.cache
def _digest_beginning(model: str | None) -> str | None:
    """What the model at a place is, by its arrays; if there are none, the place."""
    if model is None:
        return None
    return sum_arrays(Path(expand_home("--run.init-from", model))) or model


def _read_own_router(name: str) -> str | None:
    """The code of a router of the user's own; None for those that come with moejax."""
    if find_router_file(name) is None:
        return None
    try:
        return inspect.getsource(ROUTERS[name].function)
    except (OSError, TypeError):
        return None


def _plain(value: Any) -> Any:
    """A value as JSON has it, the same for 1 and 1.0."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
