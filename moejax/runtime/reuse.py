"""Compiled programs kept in a directory, so that what is compiled alike is compiled once."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

QUICK = 0.3
"""Seconds of compiling below which a program is not worth a file."""


@contextlib.contextmanager
def keep_compiled(directory: Path) -> Iterator[None]:
    """Compile through JAX's persistent cache in this directory; a cache that the user has chosen
    (``JAX_COMPILATION_CACHE_DIR``) stays in use instead.
    """
    settings: dict[str, str | float | None] = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": QUICK,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    if before["jax_compilation_cache_dir"] is not None:
        yield
        return
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(settings: dict[str, str | float | None]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks at the directory once, and then remembers
