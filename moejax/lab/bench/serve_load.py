"""What a server is asked in `moejax bench serve`: prompts, how long, and when. All by a seed."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moejax.config.checks import LARGEST, check, check_not_negative, check_sizes
from moejax.config.errors import ConfigError
from moejax.config.json_files import MEBIBYTE, parse_json, read_bounded
from moejax.data.stdlib_corpus import find_library, list_library_files
from moejax.data.tokenizer import Tokenizer
from moejax.lab.bench.lengths import Lengths, read_lengths

_MOST_BYTES = 1024 * MEBIBYTE
_SHORTEST_FILE = 20_000
"""Bytes of a file that is a topic: long prompts begin at many places of it."""
_NAMES = {"at", "prompt", "prompt_tokens", "tokens"}


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """Which requests are sent."""

    requests: int | None = None
    """Requests, by default 200; of a file, that many of its first lines, by default all."""
    prompt: str = "16-96"
    """Tokens of a prompt: a number, LOW-HIGH (all alike), geometric:MEAN, or
    lognormal:MEDIAN:SPREAD."""
    tokens: str = "50-350"
    """Tokens that are asked for, in the same forms. No text ends before it has them."""
    topics: int = 16
    """Prompts are of so many topics: modules of Python's standard library."""
    skew: float = 1.0
    """Topic number n comes up in proportion to 1 / n ** skew (Zipf); 0: all alike."""
    prefix: int = 16
    """Tokens with which all prompts of a topic begin."""
    load: Path | None = None
    """A file of JSON lines with requests instead: `prompt` (a text, or token ids) or
    `prompt_tokens` (a number), `tokens`, and if it matters `at` (seconds)."""
    temperature: float = 0.7
    """How tokens are drawn; 0 takes the most probable one."""
    seed: int = 0
    """Seed of all that is drawn; the same seed gives the same load."""

    def __post_init__(self) -> None:
        check_sizes("", self, "requests", "topics")
        check_not_negative("", self, "skew", "prefix", "temperature", "seed")
        _ = self.prompt_lengths, self.token_lengths

    @cached_property
    def prompt_lengths(self) -> Lengths:
        """Of prompts."""
        return read_lengths("--prompt", self.prompt)

    @cached_property
    def token_lengths(self) -> Lengths:
        """Of what is asked for."""
        return read_lengths("--tokens", self.tokens)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request."""

    prompt: np.ndarray
    """Token ids, int32 [n]."""
    tokens: int
    at: float | None = None
    """Seconds after the first, if that was recorded."""


class Texts:
    """Token ids of the modules that prompts are cut from, encoded when they are asked for."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, topics: int) -> None:
        root = find_library()
        files = [one for one in list_library_files(root) if one.size >= _SHORTEST_FILE]
        order = np.random.default_rng(0).permutation(len(files))  # neighbours are alike
        self._files = [root / files[i].path for i in order[:topics]]
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._known: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """There may be fewer modules than topics were asked for."""
        return len(self._files)

    def cut(self, topic: int, prefix: int, length: int, place: float) -> np.ndarray:
        """A stretch of a module, the same for all prompts, and then what stands at a place in it
        (0 to 1).
        """
        if topic not in self._known:
            ids = self.encode(self._files[topic].read_bytes())
            self._known[topic] = np.roll(ids, len(ids) // 2)  # modules begin alike
        ids = self._known[topic]
        ids = np.tile(ids, 2 + length // len(ids))  # one that is too short goes round
        begin = prefix + int(place * len(self._known[topic]))
        return np.concatenate([ids[:prefix], ids[begin:]])[:length]

    def encode(self, text: bytes) -> np.ndarray:
        """The tokens of a text that the model has, int32."""
        ids, _ = self._tokenizer.encode(text)
        return ids[ids < self._vocab_size].astype(np.int32)


def make_load(settings: LoadSettings, texts: Texts, seed: int) -> list[Ask]:
    """The requests of a seed; those of a file are the same for all. Raises ``ConfigError``."""
    random = np.random.default_rng(seed)
    if settings.load is not None:
        return read_load(settings, texts, random)
    count = settings.requests or 200
    lengths = settings.prompt_lengths.draw(random, count)
    tokens = settings.token_lengths.draw(random, count)
    topics, places = draw_topics(settings, len(texts), random, count), random.random(count)
    return [
        Ask(prompt=texts.cut(topic, settings.prefix, length, place), tokens=number)
        for topic, length, place, number in zip(
            topics.tolist(), lengths.tolist(), places.tolist(), tokens.tolist(), strict=True
        )
    ]


def draw_topics(
    settings: LoadSettings, topics: int, random: np.random.Generator, count: int
) -> np.ndarray:
    """A topic for each request, by Zipf's law."""
    weight = np.arange(1, topics + 1) ** -float(settings.skew)
    return random.choice(topics, count, p=weight / weight.sum())


def draw_arrivals(rate: float, seed: int, count: int) -> np.ndarray:
    """When requests come, in seconds after the first: a Poisson process of ``rate`` a second. The
    same seed gives the same pattern at every rate.
    """
    gaps = np.random.default_rng([seed, 1]).exponential(size=count)
    return (np.cumsum(gaps) - gaps[0]) / rate


def read_load(settings: LoadSettings, texts: Texts, random: np.random.Generator) -> list[Ask]:
    """The requests of a file. Raises ``ConfigError`` that names the line."""
    assert settings.load is not None
    file = f"--load {settings.load}"
    try:
        lines = read_bounded(settings.load, _MOST_BYTES).decode("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{file} cannot be read: {reason}.") from error
    there = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    asks = []
    for number, line in there[: settings.requests]:
        try:
            value = parse_json(line, finite=True)
        except ValueError as error:
            raise ConfigError(f"{file}, line {number} is not JSON: {error}") from error
        asks.append(_read_ask(value, f"{file}, line {number}", settings, texts, random))
    check(bool(asks), f"{file} has no line.")
    timed = sum(ask.at is not None for ask in asks)
    check(timed in (0, len(asks)), f"{file}: {timed} of {len(asks)} lines have `at`: all, or none.")
    begin = min((ask.at for ask in asks if ask.at is not None), default=0.0)
    return sorted(
        (
            ask if ask.at is None else Ask(prompt=ask.prompt, tokens=ask.tokens, at=ask.at - begin)
            for ask in asks
        ),
        key=lambda ask: ask.at or 0.0,
    )


def _read_ask(
    value: Any, where: str, settings: LoadSettings, texts: Texts, random: np.random.Generator
) -> Ask:
    check(isinstance(value, dict), f"{where} is not an object.")
    check(
        value.keys() <= _NAMES,
        f"{where} has the fields {_list(value.keys() - _NAMES)}; known ones are {_list(_NAMES)}.",
    )
    tokens = value.get("tokens")
    check(_whole(tokens), f"{where}: `tokens` must be a whole number greater than 0.")
    at, prompt = value.get("at"), value.get("prompt")
    check(at is None or _real(at), f"{where}: `at` must be seconds.")
    if prompt is None:
        length = value.get("prompt_tokens")
        check(_whole(length), f"{where}: give `prompt`, or the number of its `prompt_tokens`.")
        topic = int(draw_topics(settings, len(texts), random, 1)[0])
        ids = texts.cut(topic, settings.prefix, length, random.random())
    elif isinstance(prompt, str):
        ids = texts.encode(prompt.encode("utf-8", "replace"))
    else:
        good = isinstance(prompt, list) and all(type(one) is int for one in prompt)
        good = good and all(0 <= one <= LARGEST for one in prompt)
        check(good, f"{where}: `prompt` must be a text, or a list of token ids.")
        ids = np.asarray(prompt, np.int32)
    check(len(ids) > 0, f"{where}: the prompt is empty.")
    return Ask(prompt=ids, tokens=tokens, at=None if at is None else float(at))


def _whole(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST


def _real(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names)))
