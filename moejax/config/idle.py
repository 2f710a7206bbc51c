"""Settings that were changed and have no effect in a config."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any

from moejax.config.change import changed
from moejax.config.checks import flag
from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.config.files import differences, flatten, to_dict
from moejax.config.need import Need
from moejax.config.needs import NEEDS


@dataclass(frozen=True)
class Idle:
    """A setting without effect."""

    path: str
    need: Need
    value: Any
    message: str
    """It names the flag, the value, why it has no effect, and what to write instead."""


FILLED = ("model.moe.token_counts",)
"""Settings that a training finds out where they are not given, and keeps in its own config."""


def find_idle(config: Config, base: Config) -> list[Idle]:
    """The settings of ``config`` that are others than those of ``base``, and have no effect."""
    given = {path: new for path, (_, new) in differences(base, config).items()}
    return find_unmet(config, given, NEEDS)


def differences_that_matter(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The ``differences`` of two configs, without settings that have no effect in either, and
    without those that one of them leaves to be found.
    """
    filled = {path for path in FILLED if None in (_read(old, path), _read(new, path))}
    nowhere = {idle.path for idle in find_idle(new, old)} & {i.path for i in find_idle(old, new)}
    found = differences(old, new)
    return {path: pair for path, pair in found.items() if path not in nowhere | filled}


def _read(settings: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), settings)


def find_unmet(
    settings: Any, given: dict[str, Any], needs: Sequence[Need], hidden: tuple[str, ...] = ()
) -> list[Idle]:
    """Those of the ``given`` settings, values by their paths, of which a need is not met.
    ``hidden`` are sections that flags do not name.
    """
    found = []
    for path, value in given.items():
        need = next((n for n in needs if n.covers(path) and not n.met(settings)), None)
        if need is None:
            continue
        section, _, name = path.rpartition(".")
        typed = flag("" if section in hidden else section, name)
        words = (
            f"{typed} {_write(value)} {need.says} {need.without.format(c=settings)}:"
            f" {need.instead.format(c=settings)}{', or ' * bool(need.instead)}leave {typed} out."
        )
        found.append(Idle(path, need, value, words))
    return found


def _write(value: Any) -> str:
    """A value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_flags(config: Config, base: Config) -> None:
    """Raise ``ConfigError`` for flags without effect, which have made ``config`` of ``base``; warn
    where the flag has one alone, which another flag takes away, as where twins are compared.
    """
    refuse_or_warn(
        (idle, idle.need.met(_with(base, idle.path, idle.value)))
        for idle in find_idle(config, base)
    )


HIDDEN = ("sampling", "bench", "engine", "speculation")
"""Sections of subcommands that flags do not name."""


def check_command(settings: Any, needs: Sequence[Need], hidden: tuple[str, ...] = HIDDEN) -> None:
    """Raise ``ConfigError`` for settings of a subcommand that were given and have no effect; warn
    where the need says ``twin``.
    """
    given = {}
    for path in (path for need in needs for path in need.settings):
        *sections, name = path.split(".")
        section = reduce(getattr, sections, settings)
        value = getattr(section, name)
        if value != next(item.default for item in fields(section) if item.name == name):
            given[path] = value
    found = find_unmet(settings, given, needs, hidden)
    refuse_or_warn((idle, idle.need.twin) for idle in found)


def refuse_or_warn(found: Iterable[tuple[Idle, bool]]) -> None:
    """Raise ``ConfigError`` for settings without effect, or warn where that is all right."""
    wrong = []
    for idle, allowed in found:
        if allowed:
            warnings.warn(idle.message, stacklevel=3)
        else:
            wrong.append(idle.message)
    if wrong:
        raise ConfigError("\n".join(wrong))


def _with(base: Config, path: str, value: Any) -> Config:
    try:
        return changed(base, {path: value})
    except ConfigError:  # it cannot be without the other flags
        return base


def warn_of_file(config: Config, file: Path) -> None:
    """Warn of settings of a config file that have no effect."""
    for idle in find_idle(config, Config()):
        if not idle.need.twin:
            warnings.warn(f"{file}: {idle.message}", stacklevel=2)


def warn_of_runs(runs: Mapping[str, Config]) -> None:
    """Warn of settings that one run of a study alone has, and that have no effect in it."""
    values = {name: flatten(to_dict(config)) for name, config in runs.items()}
    for name, config in runs.items():
        others = [theirs for other, theirs in values.items() if other != name]
        for idle in find_idle(config, Config()):
            if all(theirs[idle.path] != idle.value for theirs in others):
                warnings.warn(f"{name}: {idle.message}", stacklevel=2)
