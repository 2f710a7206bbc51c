"""Small JSON values that the processes of a run share, by key.

They lie in the store of JAX's coordination service, in process 0. Unlike the collectives of
``multihost_utils``, the store needs no devices, takes values of any length from any thread, and
stops waiting when it is told to (``tests/test_jax_processes.py`` shows what JAX does instead).
"""

import json
import socket
import time
from typing import Any

import jax
from jax._src import distributed  # the store has no public name; Orbax does the same

TURN = 2.0
"""Seconds that one call waits at most, so that signals are heard in between."""
CONNECTING = 10.0
"""Seconds within which process 0 must accept a connection."""


class Store:
    """The values under ``prefix``. The processes have met: ``jax.distributed`` is initialised.

    All methods raise ``JaxRuntimeError`` when process 0 does not answer.
    """

    def __init__(self, prefix: str) -> None:
        state: Any = distributed.global_state
        self._client, self._address = state.client, state.coordinator_address
        self._prefix = prefix

    def put(self, key: str, value: Any, *, replace: bool = False) -> None:
        """Set a value. Raises ``JaxRuntimeError`` if there is one, unless it may be replaced."""
        self._client.key_value_set(
            f"{self._prefix}/{key}", json.dumps(value), allow_overwrite=replace
        )

    def wait_for(self, key: str, seconds: float) -> Any:
        """A value, as soon as it is set. Raises ``TimeoutError`` after so many seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            turn = max(1, int(1000 * min(left, TURN)))
            try:
                found = self._client.blocking_key_value_get(f"{self._prefix}/{key}", turn)
            except jax.errors.JaxRuntimeError as error:
                if not str(error).startswith("DEADLINE_EXCEEDED"):
                    raise
            else:
                return json.loads(found)
        raise TimeoutError(f"no answer in {seconds:.0f} s")

    def read_all(self, folder: str) -> dict[str, Any]:
        """All values whose keys are ``folder/NAME``, by name."""
        found = self._client.key_value_dir_get(f"{self._prefix}/{folder}/")
        return {key.rsplit("/", 1)[1]: json.loads(value) for key, value in found}

    def delete(self, key: str) -> None:
        """Remove a value."""
        self._client.key_value_delete(f"{self._prefix}/{key}")

    def is_reachable(self) -> bool:
        """Whether process 0 still accepts connections. It asks in its own way, as the thread that
        finds the store gone may be the one that would bring the store's answers.
        """
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECTING).close()
        except OSError:
            return False
        return True
