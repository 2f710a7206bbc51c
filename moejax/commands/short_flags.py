"""Short names of the flags that are used most: those of the routed layer and of its balance."""

from collections.abc import Iterator, Sequence

from moejax.config.errors import ConfigError

SHORT = {"--moe.": "--model.moe.", "--balance.": "--model.moe.balance."}
"""How short flags begin, and the long ones that they stand for."""


def lengthen(words: Sequence[str]) -> list[str]:
    """The words of a command line with long flags for short ones: ``--moe.top-k`` becomes
    ``--model.moe.top-k``. Raises ``ConfigError`` where a setting is given by both of its names with
    different values.
    """
    found: list[str] = []
    given: dict[str, tuple[str, str]] = {}
    for name, parts in _split(words):
        long = _long_name(name)
        value = " ".join(parts).removeprefix("=")
        typed, before = given.setdefault(long, (name, value))
        if typed != name:
            if before != value:
                raise ConfigError(
                    f"{typed} {before} and {name} {value} give one setting two values: leave one"
                    f" of them out."
                )
            continue
        glued = parts[0] if parts and parts[0].startswith("=") else ""
        found += [long + glued, *(parts[1:] if glued else parts)]
    return found


def _long_name(name: str) -> str:
    for short, long in SHORT.items():
        if name.startswith(short):
            return long + name.removeprefix(short)
    return name


def _split(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag, with dashes for underscores, and what follows it up to the next: ``=VALUE``, or
    words of their own.
    """
    name, parts = None, []
    for word in words:
        if name is not None and not word.startswith("--"):
            parts.append(word)
            continue
        if name is not None:
            yield name, parts
        name, equals, value = word.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else name
        parts = [f"={value}"] if equals else []
    if name is not None:
        yield name, parts
