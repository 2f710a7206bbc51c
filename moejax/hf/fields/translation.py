"""Fields of ``config.json`` that are not taken over as they are: both ways."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moejax.config.checks import check, shorten
from moejax.config.model import ModelConfig

Fields = dict[str, Any]


@dataclass(frozen=True)
class Translation:
    """Both ways between fields of theirs and settings of ours, by dotted path."""

    read: Callable[[Fields], Fields]
    write: Callable[[ModelConfig], Fields]


def check_allowed(hf: Fields, name: str, allowed: tuple) -> Fields:
    """Raise ``ConfigError`` unless a field has one of the values ``allowed``. Gives nothing."""
    check(
        hf.get(name) in allowed,
        f"{name} is {shorten(hf.get(name))}: only {' or '.join(map(repr, allowed))} is supported.",
    )
    return {}
