"""`moejax generate --chat`: messages from flags, files or a terminal, and what is answered."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from moejax.config.errors import ConfigError
from moejax.config.paths import expand_home
from moejax.data.chat.conversations import read_talks
from moejax.data.chat.messages import Message
from moejax.data.kinds.table import TEXT, TOKENS, find_kind, find_problem, read_records
from moejax.inference.chat_prompts import chat_prompt
from moejax.inference.generation import Generator
from moejax.inference.open_model import OpenModel
from moejax.inference.sampling import Sampling

Answer = Callable[[np.ndarray], str]
"""Shows what comes after a prompt (int32 [n]) as it grows, and returns it."""


@dataclass(frozen=True)
class Talking:
    """A conversation that waits for an answer."""

    messages: list[Message]
    tools: list[Any] | None = None
    place: str = "the message"
    """Where it is from, for messages about it."""

    def ids(self, model: OpenModel) -> np.ndarray:
        """Its tokens, int32 [n]. Raises ``ConfigError``."""
        found = chat_prompt(model, self.messages, tools=self.tools, place=self.place)
        return np.asarray(found, np.int32)


def begin(system: str | None) -> list[Message]:
    """The messages before those of a user."""
    return [] if system is None else [{"role": "system", "content": system}]


def ask(text: str, system: str | None, place: str) -> Talking:
    """A conversation of one message."""
    return Talking([*begin(system), {"role": "user", "content": text}], None, place)


def has_conversations(file: str) -> bool:
    """Whether a file of prompts has conversations, by its suffix."""
    return find_kind(file) not in (TEXT, TOKENS)


def read_conversations(file: str, system: str | None) -> list[Talking]:
    """The conversations of a file of JSON lines, JSON, Parquet or Arrow; ``system`` begins those
    that have no such message of their own. Raises ``ConfigError``, naming file and place.
    """
    path = expand_home("--prompt-file", file)
    if not os.path.isfile(path):
        raise ConfigError(f"--prompt-file {file}: there is no such file.")
    if (problem := find_problem(path)) is not None:
        raise ConfigError(f"--prompt-file: {path} {problem}.")
    found = []
    for talk, place in read_talks(read_records(path, find_kind(path))):
        messages = talk.messages
        if messages[-1]["role"] == "assistant":
            raise ConfigError(
                f"{place} ends with what the assistant has said, and nothing is left to be"
                f" answered: leave its last message out."
            )
        first = [] if messages[0]["role"] == "system" else begin(system)
        found.append(Talking(first + messages, talk.tools, place))
    if not found:
        raise ConfigError(f"--prompt-file {file} has no conversation.")
    return found


def converse(model: OpenModel, window: int | None, system: str | None, answer: Answer) -> None:
    """Read messages from the terminal and answer each, until the input ends. When a conversation is
    longer than the ``window`` of the model, its first turns are left out.
    """
    with suppress(ImportError):
        import readline  # noqa: F401  keys that edit a line
    tell(f"{model.description}. Ctrl-D ends.")
    messages = begin(system)
    while True:
        try:
            text = input("> ")
        except EOFError:
            print(flush=True)
            return
        if not text.strip():
            continue
        messages.append({"role": "user", "content": text})
        try:
            messages, ids = shorten(model, messages, window)
            said = answer(ids)
        except ConfigError as error:
            tell(f"{error} A new conversation begins.")
            messages = begin(system)
            continue
        messages.append({"role": "assistant", "content": said})


def stream(generator: Generator, sampling: Sampling, ids: np.ndarray) -> str:
    """Print an answer as it grows, and return it."""

    def show(_: int, text: str) -> None:
        print(text, end="", flush=True)

    done = generator.generate([ids], sampling, on_text=show)
    print(flush=True)
    return done.continuations[0].text


def shorten(
    model: OpenModel, messages: list[Message], window: int | None
) -> tuple[list[Message], np.ndarray]:
    """The messages that fit into the ``window``, with their tokens: of a conversation that is too
    long, the first turns are left out, but for the system's message and the last turn.
    """
    ids, count = Talking(messages).ids(model), len(messages)
    while window is not None and len(ids) > window:
        users = [i for i, one in enumerate(messages) if one["role"] == "user"]
        if len(users) < 2:
            break
        messages = messages[: users[0]] + messages[users[1] :]
        ids = Talking(messages).ids(model)
    if len(messages) < count:
        tell(f"(the first {count - len(messages)} messages are left out: it sees {window} tokens)")
    return messages, ids


def tell(words: str) -> None:
    """Say something that is no answer."""
    print(words, file=sys.stderr, flush=True)
