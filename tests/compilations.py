"""What is compiled meanwhile."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def note_compilations() -> Iterator[list[str]]:
    """A list that gets an entry whenever a program is compiled, in any thread."""
    found: list[str] = []

    def note(event: str, *_, **__) -> None:
        found.extend([event] * event.endswith("/backend_compile_duration"))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
