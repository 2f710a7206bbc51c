"""API keys in a file: of the server, and of a client."""

from pathlib import Path

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.config.json_files import MEBIBYTE, read_bounded


def read_keys(file: Path) -> list[str]:
    """The keys in a file, one on each line; empty lines and those that begin with # are none.
    Raises ``ConfigError``.
    """
    flag = f"--api-key-file {file}"
    try:
        text = read_bounded(file, MEBIBYTE).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, UnicodeDecodeError):
            reason = "it is not written in UTF-8"
        raise ConfigError(f"{flag} cannot be read: {reason}.") from error
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    check(bool(keys), f"{flag} has no key: write one on a line of its own.")
    good = all(key.isascii() and key.isprintable() and " " not in key for key in keys)
    check(good, f"{flag} has a key with a space, or a letter beyond ASCII: no header can have it.")
    return keys
