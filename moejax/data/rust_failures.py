"""Failures of the library `tokenizers`, which is written in Rust, as errors with a message."""

import contextlib
import os
import threading
from collections.abc import Iterator

from moejax.config.errors import ConfigError


@contextlib.contextmanager
def explain_failure(message: str) -> Iterator[None]:
    """Raise ``ConfigError`` with the message, and what the library says after it, for a bare
    Exception of the library, or for a panic, which Python takes for no Exception.
    """
    try:
        with _no_panic_on_stderr():
            yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ConfigError(f"{message}: {error}.") from error


@contextlib.contextmanager
def _no_panic_on_stderr() -> Iterator[None]:
    """Leave out what a panic writes of itself. Other threads would lose what they write meanwhile:
    so in the main thread alone, where prompts and texts to evaluate are encoded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
