"""Settings of a mixture: several sources of text, and how much is read of each."""

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moejax.config.checks import check, check_paths, check_types, make_tuples, shorten
from moejax.config.errors import ConfigError
from moejax.config.paths import expand_home

FLAG = "--data.mixture"
Given = str | tuple[str, ...]
PATHS = ("path", "eval")
"""The settings that name files, folders and globs."""
NONE = "none"
"""The ``chat_template`` of texts that stand beside conversations."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of a mixture."""

    name: str
    """In metrics, lines and figures: letters, digits, `-`, `_` and `.`."""
    path: Given
    """What is read, written as ``--data.train`` is."""
    eval: Given | None = None
    """What is held out of it, written as ``path`` is; by default ``--data.validation-percent`` of
    its documents."""
    field: str | None = None
    """Where a document has its text; by default what ``--data.field`` says."""
    weight: float | None = None
    """Its part of the sequences, in proportion to the weights of the others; 0: it is evaluated
    alone."""
    epochs: float | None = None
    """Without a weight: how often it is read in the whole run. With one: how often at most; then
    the others with weights take its part."""
    chat_template: str | None = None
    """Read it as conversations, as ``--data.chat-template`` says, which is the default; `none`:
    read it as texts."""

    def __post_init__(self) -> None:
        make_tuples(self, *PATHS)
        if type(self.name) is not str or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ConfigError(
                f"the name {shorten(self.name)} of a source may have letters, digits, -, _ and .,"
                f" and begins with one of the former."
            )
        try:
            check_types("", self)
            check_paths("", self, *PATHS, "field", "chat_template")
        except ConfigError as error:  # it names flags: there are none
            words = re.sub(r"^--([a-z-]+)", lambda m: m[1].replace("-", "_"), str(error))
            raise ConfigError(f"source {self.name}: {words}") from error
        for key, value in (("weight", self.weight), ("epochs", self.epochs)):
            good = value is None or math.isfinite(value) and value >= 0
            self._check(good, f"{key} must be a number of at least 0, not {shorten(value)}.")
        given = self.weight is not None or self.epochs is not None
        self._check(given, "it has neither a weight nor epochs: write weight = 1, say.")
        self._check(self.epochs != 0, "epochs = 0 reads nothing of it: write weight = 0 instead.")
        both = self.weight == 0 and self.epochs is not None
        self._check(not both, "weight = 0 reads nothing of it, so that its epochs mean nothing.")

    def _check(self, condition: bool, words: str) -> None:
        check(condition, f"source {self.name}: {words}")


Mixture = tuple[SourceConfig, ...]


def make_mixture(given: str | Sequence[Any]) -> Mixture:
    """The sources of a file, or of a list in a config (of ``SourceConfig``, or of dicts as in
    ``config.json``), by name. Raises ``ConfigError``.
    """
    if isinstance(given, str):
        tables = read_tables(given)
        sources = [_make_source(given, {"name": name} | table) for name, table in tables.items()]
        at = given
    else:
        at = FLAG
        sources = [one if isinstance(one, SourceConfig) else _make_source(at, one) for one in given]
    names = [source.name for source in sources]
    check(bool(names), f"{at} has no source: write [NAME], and below it path and weight.")
    twice = next((name for name in names if names.count(name) > 1), None)
    check(twice is None, f"{at}: there are two sources {twice}: give one of them another name.")
    given_to: dict[tuple[Given, str | None], str] = {}
    for one in sources:
        other = given_to.setdefault((one.path, one.field), one.name)
        check(
            other == one.name,
            f"{at}: {shorten(one.path)} is in two sources, {other} and {one.name}: take it out of"
            f" one.",
        )
    weights = [source.weight for source in sources if source.weight is not None]
    check(
        not weights or sum(weights) > 0 or any(source.epochs for source in sources),
        f"{at}: the weights sum to 0, so that nothing is read: give a source weight = 1, say.",
    )
    return tuple(sorted(sources, key=lambda source: source.name))


def read_tables(file: str) -> dict[str, dict[str, Any]]:
    """The tables of a file, by name. Raises ``ConfigError``, naming the file and the line."""
    try:
        with open(expand_home(FLAG, file), "rb") as opened:
            found = tomllib.load(opened)
    except OSError as error:
        raise ConfigError(f"{FLAG} {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{FLAG} {file} is no TOML: it is not UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        twice = re.search(r"Cannot declare \('(.*?)',\) twice(.*)", str(error))
        words = f"the source {twice[1]} is there twice{twice[2]}" if twice else str(error)
        raise ConfigError(
            f"{FLAG} {file} is no mixture: {words}. Write [NAME] for each source, and below it"
            f' path = "..." and weight = 1, say.'
        ) from error
    for name, table in found.items():
        check(
            isinstance(table, dict),
            f"{file}: `{name}` is no source: write [NAME] for each, and below it path and weight.",
        )
        check("name" not in table, f"{file}: source {name}: its name is {name}: leave `name` out.")
    return found


def _make_source(at: str, values: Any) -> SourceConfig:
    check(isinstance(values, Mapping), f"{at}: a source is {shorten(values)}, not a table.")
    known = [field.name for field in dataclasses.fields(SourceConfig)]
    said = f"{at}: source {values.get('name', '(without a name)')}"
    for key in values:
        near = difflib.get_close_matches(str(key), known, n=1)
        keys = ", ".join(known[1:])
        more = f"Did you mean {near[0]}?" if near else f"There are {keys}."
        check(key in known, f"{said} has the unknown key {shorten(key)}. {more}")
    check("path" in values, f'{said} has no path: write path = "corpus/*.jsonl", say.')
    check("name" in values, f"{said} has no name.")
    try:
        return SourceConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{at}: {error}") from error


def explain_mixture(old: Mixture, new: Mixture) -> str:
    """What differs between two mixtures, a line for each source, with what to write instead; empty
    if nothing does. Weights count in proportion to each other.
    """
    before, now = ({source.name: source for source in mixture} for mixture in (old, new))
    lines = []
    for name in sorted(before | now):
        one, other = before.get(name), now.get(name)
        if one is None:
            lines.append(f"  source {name} is new: take it out.")
        elif other is None:
            lines.append(f"  source {name} is gone: write [{name}], {_write(one)}.")
        elif changed := _list_changed(one, other, _sum(old), _sum(new)):
            pairs = "; ".join(
                f"{key}: {getattr(one, key)!r} -> {getattr(other, key)!r}" for key in changed
            )
            lines.append(f"  source {name}: {pairs}. Write {_write(one, changed)}.")
    return "\n".join(lines)


def explain_epochs(mixture: Mixture, old_steps: int, new_steps: int) -> str:
    """Why a run cannot go on with another number of steps: a line for each source of which a part
    of the run is spread over all steps. Empty if it can.
    """
    if old_steps == new_steps:
        return ""
    return "\n".join(
        f"  source {source.name}: its epochs = {source.epochs:g} are spread over all steps, whose"
        f" number was {old_steps} and is {new_steps}. Write --run.steps {old_steps}."
        for source in mixture
        if source.weight is None
    )


def _sum(mixture: Mixture) -> float:
    return math.fsum(source.weight or 0.0 for source in mixture) or 1.0


def _list_changed(
    one: SourceConfig, other: SourceConfig, one_sum: float, other_sum: float
) -> list[str]:
    """The settings that differ."""
    names = (field.name for field in dataclasses.fields(SourceConfig))
    found = [name for name in names if getattr(one, name) != getattr(other, name)]
    weights = one.weight, other.weight
    if "weight" in found and None not in weights:
        parts = (weights[0] or 0.0) / one_sum, (weights[1] or 0.0) / other_sum
        if math.isclose(*parts, rel_tol=1e-9):
            found.remove("weight")
    return found


def _write(source: SourceConfig, names: Sequence[str] = ()) -> str:
    """Settings as in a file; by default all that are given."""
    fields = [field.name for field in dataclasses.fields(source) if field.name != "name"]
    names = names or [name for name in fields if getattr(source, name) is not None]
    values = ((name, getattr(source, name)) for name in names)
    return ", ".join(
        f"no {name}" if value is None else f"{name} = {_quote(value)}" for name, value in values
    )


def _quote(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_quote, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value}"
