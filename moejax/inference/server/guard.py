"""Who may ask: API keys, and without them pages of this computer only."""

import hashlib
import hmac
from collections.abc import Collection
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.config.json_files import MEBIBYTE, read_bounded
from moejax.inference.server.errors import ApiError

OPEN = ("/", "/health")
"""Paths that need no key; the page itself asks for one, and tells nothing without it."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def read_keys(file: Path) -> list[str]:
    """The keys in a file, one on each line; empty lines and those that begin with # are none.
    Raises ``ConfigError``.
    """
    flag = f"--api-key-file {file}"
    try:
        text = read_bounded(file, MEBIBYTE).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{flag} cannot be read: {reason}.") from error
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    check(bool(keys), f"{flag} has no key: write one on a line of its own.")
    good = all(key.isascii() and key.isprintable() and " " not in key for key in keys)
    check(good, f"{flag} has a key with a space, or a letter beyond ASCII: no header can have it.")
    return keys


class Guard:
    """In front of an app: answers 401 to requests without a key, if there are keys; and with
    ``hosts``, 403 to those that give the server another name: a page of the web that has made its
    own name mean this computer (DNS rebinding).
    """

    def __init__(
        self, app: ASGIApp, keys: Collection[str] = (), hosts: Collection[str] = ()
    ) -> None:
        self._app, self._hosts = app, {host.lower() for host in hosts}
        self._keys = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        error = self._check(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await error.response()(scope, receive, send)

    def _check(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._keys:
            return None if scope["path"] in OPEN else self._check_key(headers)
        host = _strip_port(headers.get("host", ""))
        if self._hosts and host not in self._hosts:
            return ApiError(
                f"this server is {min(self._hosts)} only, not {host[:100]}: whoever starts it can"
                f" say --host, or --api-key-file.",
                status=403,
                code="wrong_host",
            )
        return None

    def _check_key(self, headers: Headers) -> ApiError | None:
        kind, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("latin-1"))
        # All are compared, each in the same time, so that the time tells nothing.
        right = [hmac.compare_digest(given, one) for one in self._keys]
        if kind.lower() == "bearer" and any(right):
            return None
        said = "this API key is not one of the server's" if key else "an API key is missing"
        return ApiError(
            f"{said}: send the header `Authorization: Bearer KEY`.",
            status=401,
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _strip_port(host: str) -> str:
    """``localhost`` of ``localhost:8000``, ``::1`` of ``[::1]:8000``."""
    name, _, rest = host.rpartition(":")
    name = name if name and rest.isdecimal() else host
    return name.removeprefix("[").removesuffix("]").lower()
