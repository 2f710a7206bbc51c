"""Checks of settings, with messages that name the flag."""

import dataclasses
import math
import typing
from typing import Literal

from moejax.config.errors import ConfigError

LARGEST = 2**31 - 1
"""The largest size of a dimension: indices are int32."""


def check(condition: bool, message: str) -> None:
    """Raise ``ConfigError(message)`` unless ``condition``."""
    if not condition:
        raise ConfigError(message)


def check_types(prefix: str, settings: object) -> None:
    """Every field must have the type of its hint: a config file is not checked by anyone else."""
    for name, hint in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        items = typing.get_args(hint)
        if any(typing.get_origin(item) is Literal for item in items) and type(None) in items:
            hint = Literal[(*typing.get_args(items[0]), None)]
            items = typing.get_args(hint)
        if typing.get_origin(hint) is Literal:
            ok, wanted = value in items, f"one of {', '.join(map(str, items))}"
        elif typing.get_origin(hint) is tuple and typing.get_origin(items[0]) is Literal:
            choices = typing.get_args(items[0])
            ok = type(value) is tuple and all(item in choices for item in value)
            wanted = f"a tuple of {' and '.join(map(str, choices))}"
        else:
            kinds = typing.get_args(hint) or (hint,)
            kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)  # tuple[str, ...]
            # An int will do for a float, but a bool is no number.
            ok = type(value) in (*kinds, *((int,) if float in kinds else ()))
            wanted = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        check(ok, f"{flag(prefix, name)} must be {wanted}, not {shorten(value)}.")


def make_tuples(settings: object, *names: str) -> None:
    """Of the named fields, lists become tuples: JSON has no others."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, list):
            object.__setattr__(settings, name, tuple(value))


def check_sizes(prefix: str, settings: object, *names: str) -> None:
    """Every named number is one of dimensions: greater than 0, and at most what an index holds."""
    check_positive(prefix, settings, *names)
    check_at_most(LARGEST, prefix, settings, *names)


def check_at_most(most: int, prefix: str, settings: object, *names: str) -> None:
    """Every named number must not be larger than ``most``."""
    for name in names:
        value = getattr(settings, name)
        check(
            value is None or value <= most,
            f"{flag(prefix, name)} must be at most {most:,}, not {shorten(value)}.",
        )


def check_positive(prefix: str, settings: object, *names: str) -> None:
    """Every named number must be finite and greater than zero; ``prefix`` completes its flag."""
    for name in names:
        value = getattr(settings, name)
        check(
            value is None or (math.isfinite(value) and value > 0),
            f"{flag(prefix, name)} must be greater than 0, not {shorten(value)}.",
        )


def check_not_negative(prefix: str, settings: object, *names: str) -> None:
    """Every named number must be finite and at least zero; ``prefix`` completes its flag."""
    for name in names:
        value = getattr(settings, name)
        check(
            value is None or (math.isfinite(value) and value >= 0),
            f"{flag(prefix, name)} must be at least 0, not {shorten(value)}.",
        )


def check_paths(prefix: str, settings: object, *names: str) -> None:
    """Every named path, or each of several, must be a text that is not empty."""
    for name in names:
        value = getattr(settings, name)
        paths = value if isinstance(value, tuple) else (value,)
        check(
            value is None or bool(paths) and all(type(p) is str and p.strip() for p in paths),
            f"{flag(prefix, name)} must be a path, not {shorten(value)}.",
        )


def shorten(value: object) -> str:
    """A value as Python writes it, for a message: its beginning, if that is long; of settings, and
    of lists of them, the kind alone.
    """
    if dataclasses.is_dataclass(value):
        return f"a {type(value).__name__}"
    if isinstance(value, list | tuple) and any(map(dataclasses.is_dataclass, value)):
        return f"a {type(value).__name__} of settings"
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def flag(prefix: str, name: str) -> str:
    """The command-line flag of a field: ``flag("model.moe", "top_k") == "--model.moe.top-k"``."""
    return f"--{prefix}.{name}".replace("--.", "--").replace("_", "-")
