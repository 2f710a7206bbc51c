"""The server's socket, and the thread that answers on it."""

import contextlib
import errno
import logging
import socket
import threading
import time

import uvicorn
from starlette.applications import Starlette

from moejax.config.errors import ConfigError
from moejax.inference.server.guard import LOOPBACK

BACKLOG = 1024
_KEEP_IDLE, _KEEP_EVERY, _KEEP_TIMES = 60, 15, 4
"""Seconds, seconds and times: a client whose computer is gone is found out after two minutes."""
_AFTER_TIME = 5
"""Seconds that answers have to end after their own time is over, while the server drains."""


def open_socket(host: str, port: int, seconds: float) -> socket.socket:
    """A socket with an address, to which nobody can connect yet; with ``port`` 0, a free port. A
    client that takes nothing of its answer for ``seconds`` loses its connection. Raises
    ``ConfigError``.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} is no address of this computer: {reason}.") from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _let_go_of_silent_clients(sock, seconds)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ConfigError(explain_bind(error, host, port)) from error
    return sock


def explain_bind(error: OSError, host: str, port: int) -> str:
    """What to say where a port cannot be had."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"--port {port} is taken by another program on {host}: give another one, or 0 for one"
            f" that is free."
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this computer."
    return f"--host {host} --port {port} cannot be had: {error.strerror}."


def _let_go_of_silent_clients(sock: socket.socket, seconds: float) -> None:
    """Connections take these settings over from the socket."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": _KEEP_IDLE,
        "TCP_KEEPINTVL": _KEEP_EVERY,
        "TCP_KEEPCNT": _KEEP_TIMES,
        "TCP_USER_TIMEOUT": int(min(seconds, 10**6) * 1000),
    }
    for name, value in options.items():
        with contextlib.suppress(AttributeError, OSError):  # not every system has them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def name_hosts(host: str) -> tuple[str, ...]:
    """The names that a server without keys may be called by: on loopback those of loopback, so that
    no page of the web reaches it by a name of its own; elsewhere any (none are listed).
    """
    return LOOPBACK if host in LOOPBACK or host.startswith("127.") else ()


class Listener:
    """A thread that answers on a socket until it is told to drain."""

    def __init__(self, app: Starlette, sock: socket.socket, seconds: float) -> None:
        """``seconds``: how long an answer may take. Raises ``ConfigError`` if another program has
        taken the port meanwhile.
        """
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # the app tells its own errors
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=int(seconds) + _AFTER_TIME,
        )
        host, port = sock.getsockname()[:2]
        try:
            sock.listen(BACKLOG)  # late: a connection that waits while a model is read helps nobody
        except OSError as error:
            raise ConfigError(explain_bind(error, host, port)) from error
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._server, self._sock = uvicorn.Server(config), sock
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._error: BaseException | None = None
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        self.check()

    def check(self) -> None:
        """Raise what ended the thread, if something did."""
        if self._error is not None:
            raise RuntimeError("the server has ended") from self._error

    def drain(self) -> None:
        """Take no more requests, and wait until those that there are have been answered."""
        self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._sock])
        except BaseException as error:
            self._error = error
