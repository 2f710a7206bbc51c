"""Who may ask: API keys, and without them pages of this computer only."""

import hashlib
import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from moejax.inference.server.errors import ApiError

OPEN = ("/", "/health")
"""Paths that need no key; the page itself asks for one, and tells nothing without it."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
                f"this server is {min(self._hosts)} only, not {host[:100] or 'one without a name'}"
                f" (header Host): whoever starts it can say --host, or --api-key-file.",
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
