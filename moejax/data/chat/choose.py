"""The settings of conversations, and what to say of long ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moejax.config.config import Config
from moejax.config.data import DOCSTRINGS, DataConfig
from moejax.config.paths import expand_home
from moejax.data.chat.conversations import ChatFormat
from moejax.data.chat.find_template import find_template
from moejax.data.find_files import count_words
from moejax.data.tokenizer import Tokenizer

KEPT = "tokenizer"
"""The folder in which runs keep their tokenizer and their chat template."""


def list_models(config: Config, kept: Path | None = None) -> list[Path]:
    """The directories, besides the tokenizer's, that may have the chat template which ``auto``
    means: what the run has ``kept`` of its tokenizer, and the model that it begins from, where runs
    have theirs in a folder.
    """
    began = config.run.init_from
    place = None if began is None else Path(expand_home("--run.init-from", began))
    return [*([] if kept is None else [kept]), *([place / KEPT, place] if place else [])]


def choose_format(
    config: DataConfig, tokenizer: Tokenizer, models: Sequence[Path] = ()
) -> ChatFormat:
    """How the conversations of ``--data.train`` become tokens; ``models`` as in
    ``find_template``.
    """
    assert config.chat_template is not None
    return ChatFormat(
        template=find_template(config.chat_template, tokenizer, models),
        tokenizer=tokenizer,
        field=None if config.field == DataConfig.field else config.field,
        length=config.sequence_length,
        too_long=config.too_long,
    )


def place_docstrings(config: DataConfig) -> DataConfig:
    """The settings with files where they name ``stdlib:docstrings``, made first if that is needed;
    of these conversations alone, a part of their own is held out.
    """
    if config.train == DOCSTRINGS and config.validation is None:
        config = replace(config, validation=DOCSTRINGS)
    given: dict[str, Any] = {"train": config.train, "validation": config.validation}
    if not any(DOCSTRINGS in (one or ()) for one in given.values()):
        return config
    from moejax.data.chat.docstrings import write_docstrings  # late: it imports TFDS

    for side, file in write_docstrings(config.directory).items():
        one = given[side]
        if isinstance(one, tuple):
            given[side] = tuple(file if name == DOCSTRINGS else name for name in one)
        elif one == DOCSTRINGS:
            given[side] = file
    return replace(config, **given)


def tell_long(config: DataConfig, counts: dict[str, int]) -> str:
    """``; 3 conversations longer than --data.sequence-length 128 (2 cut, 1 left out)``."""
    long, lost = counts.get("long_conversations", 0), counts.get("lost_conversations", 0)
    if not long:
        return ""
    words = f"; {count_words(long, 'conversation')} longer than --data.sequence-length"
    return f"{words} {config.sequence_length} ({long - lost} cut, {lost} left out)"
