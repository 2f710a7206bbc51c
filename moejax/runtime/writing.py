"""What a command says when it cannot write: which file, why, and what to do."""

import contextlib
import errno
from collections.abc import Iterator

from moejax.config.errors import RunError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def writing_to(elsewhere: str) -> Iterator[None]:
    """An ``OSError`` in the ``with`` becomes a ``RunError`` that names the file; ``elsewhere``:
    what names another place, such as `--output FILE`.
    """
    try:
        yield
    except OSError as error:
        raise RunError(explain(error, f", or name another place ({elsewhere})")) from error


def explain(error: OSError, otherwise: str = "") -> str:
    """Which file cannot be written, why, and what to do; ``otherwise`` ends the last sentence."""
    reason = error.strerror or str(error)
    if error.filename is None and _output_fails():
        return f"cannot write to the standard output: {reason}."
    file = error.filename2 or error.filename  # a copy that fails names its source first
    what = "a file" if file is None else file
    if error.errno in FULL:
        return f"cannot write {what}: {reason}. Make room on that disk{otherwise}."
    if error.errno == errno.EROFS:
        return f"cannot write {what}: {reason}. Allow writing there{otherwise}."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"cannot read or write {what}: {reason}. Allow it{otherwise}."
    return f"cannot read or write {what}: {reason}."


def _output_fails() -> bool:
    """Whether the standard output takes nothing. What it did not take it has forgotten, so an empty
    line is tried.
    """
    try:
        print(flush=True)
    except (OSError, ValueError):
        return True
    return False
