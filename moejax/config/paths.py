"""Paths as people type them."""

from pathlib import Path

from moejax.config.errors import ConfigError


def expand_home(flag: str, path: str) -> str:
    """The path with a leading `~` or `~user` replaced by the home directory, as a shell does it.

    Raises ``ConfigError``, naming the flag, if there is no such user: a folder that is really named
    so is written `./~user`.
    """
    if not path.startswith("~"):
        return path
    first, slash, rest = path.partition("/")
    try:
        return f"{Path(first).expanduser()}{slash}{rest}"
    except RuntimeError as error:
        raise ConfigError(
            f"{flag} {path}: there is no user {first[1:] or '(this one)'} with a home directory."
            f" If the name is meant as it stands, write ./{path}."
        ) from error
