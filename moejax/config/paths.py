"""Paths as people type them."""

from pathlib import Path

from moejax.config.checks import check
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


def check_plain(flag: str, path: Path) -> None:
    """Raise ``ConfigError``, naming the flag, for a place where no checkpoint can be saved: Orbax
    takes its whole path for a pattern, and what it saves in `run[1]` cannot be read again; nor can
    it save where a name is not UTF-8.
    """
    place = str(path.absolute())
    shown = place.encode("utf-8", "replace").decode()
    check(shown == place, f"{flag} {shown} is not UTF-8: choose another path.")
    found = [sign for sign in "[*?" if sign in place]
    check(
        not found,
        f"{flag} {place}: checkpoints cannot be saved in a path with {' or '.join(found)}, which"
        f" the library that saves them takes for a pattern. Choose another path.",
    )
