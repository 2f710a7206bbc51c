"""A client of OpenAI's HTTP interface that only counts: it must not be slower than the server.

It reads streams of ``POST /v1/completions`` with nothing but sockets: a library that builds objects
of each event takes longer for a token than a small model does.
"""

import asyncio
import json
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from moejax.config.checks import check
from moejax.config.errors import ConfigError
from moejax.lab.bench.serve_drive import Seen
from moejax.lab.bench.serve_load import Ask

_LONGEST = 2**20
"""Bytes of an event, and of a line of a head."""
_SHOWN = 200
"""Characters of an error that are told."""


class AnswerError(Exception):
    """A request was not answered as it should be."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that runs."""

    host: str
    port: int
    path: str
    """Before ``/v1``."""
    tls: bool
    key: str | None = None
    model: str | None = None
    seconds: float = 600.0
    """That an answer may take."""
    temperature: float = 0.7
    seed: int = 0

    async def ask(self, number: int, ask: Ask, seen: Seen) -> None:
        """Send a request and read its stream. Raises ``AnswerError``, ``OSError``."""
        body = {
            "prompt": ask.prompt.tolist(),
            "max_tokens": ask.tokens,
            "temperature": self.temperature,
            "seed": (self.seed + number) % 2**31,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.model is not None:
            body["model"] = self.model
        await asyncio.wait_for(self._stream(json.dumps(body).encode(), seen), self.seconds)

    async def _stream(self, body: bytes, seen: Seen) -> None:
        reader, writer = await self._open()
        try:
            writer.write(self._head("POST", "/v1/completions", len(body)) + body)
            status, chunked = await _read_head(reader)
            if status != 200:
                raise AnswerError(_explain(status, await _read_rest(reader, chunked)))
            await _read_events(_Body(reader, chunked), seen)
        finally:
            writer.close()

    async def first_model(self) -> str:
        """The name of the first model that the server has. Raises ``ConfigError``."""
        try:
            reader, writer = await asyncio.wait_for(self._open(), 30)
            writer.write(self._head("GET", "/v1/models", 0))
            status, chunked = await asyncio.wait_for(_read_head(reader), 30)
            text = await asyncio.wait_for(_read_rest(reader, chunked), 30)
            writer.close()
            if status != 200:
                raise AnswerError(_explain(status, text))
            return str(json.loads(text)["data"][0]["id"])
        except (OSError, AnswerError, ValueError, LookupError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ConfigError(
                f"--url: {self.host}:{self.port} does not tell its models"
                f" ({self.path}/v1/models): {reason or type(error).__name__}."
            ) from error

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context() if self.tls else None
        return await asyncio.open_connection(
            self.host, self.port, ssl=context, limit=_LONGEST, happy_eyeballs_delay=0.25
        )

    def _head(self, method: str, path: str, length: int) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"{method} {self.path}{path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {length}",
        ]
        if self.key is not None:
            lines.append(f"Authorization: Bearer {self.key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def read_url(url: str) -> tuple[str, int, str, bool]:
    """Host, port, path and whether it is encrypted. Raises ``ConfigError``."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"--url {url} is no URL: {error}.") from error
    check(
        parts.scheme in ("http", "https") and bool(parts.hostname),
        f"--url must be as http://127.0.0.1:8000, not {url}.",
    )
    check(
        not (parts.query or parts.fragment or parts.username),
        f"--url {url}: give the server alone, as http://127.0.0.1:8000; a key goes into a file"
        f" (--api-key-file).",
    )
    tls = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/v1")
    return str(parts.hostname), port or (443 if tls else 80), path, tls


class _Body:
    """What stands behind a head, line by line, whether it comes in chunks or not."""

    def __init__(self, reader: asyncio.StreamReader, chunked: bool) -> None:
        self._reader, self._chunked = reader, chunked
        self._rest = b""

    async def lines(self) -> list[bytes]:
        """The whole lines that have come since; empty: there are no more."""
        while True:
            part = await self.part()
            if not part:
                return []
            *lines, self._rest = (self._rest + part).split(b"\n")
            if lines:
                return lines
            if len(self._rest) > _LONGEST:
                raise AnswerError("the server sent a line without an end")

    async def part(self) -> bytes:
        """The next bytes; none at the end."""
        if not self._chunked:
            return await self._reader.read(2**16)
        size = int((await self._reader.readline()).split(b";")[0] or b"0", 16)
        if size > 64 * _LONGEST:
            raise AnswerError("the server sent a chunk of a size that is none")
        data = await self._reader.readexactly(size)
        await self._reader.readline()
        return data


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether the body comes in chunks."""
    words = (await reader.readline()).split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1") or not words[1].isdigit():
        raise AnswerError(
            "the server closed the connection without an answer"
            if not words
            else "what answers there is no HTTP server"
        )
    chunked = False
    while line := (await reader.readline()).strip().lower():
        name, _, value = line.partition(b":")
        chunked |= name == b"transfer-encoding" and b"chunked" in value
    return int(words[1]), chunked


async def _read_rest(reader: asyncio.StreamReader, chunked: bool) -> bytes:
    body, found = _Body(reader, chunked), b""
    while len(found) < _LONGEST and (part := await body.part()):
        found += part
    return found


async def _read_events(body: _Body, seen: Seen) -> None:
    """Read server-sent events to their end. The last but one has the usage."""
    while lines := await body.lines():
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            if b'"usage":{' in data or b'"usage": {' in data:
                seen.tokens = int(json.loads(data)["usage"]["completion_tokens"])
            if data.startswith(b'{"error"'):
                raise AnswerError(_explain(200, data))
            if b'"choices":[]' not in data and b'"choices": []' not in data:
                seen.hear()
    raise AnswerError("the answer has no end: the connection was closed before")


def _explain(status: int, text: bytes) -> str:
    """What an answer that is an error says."""
    try:
        words = str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        words = text.decode("utf-8", "replace")
    return f"{status}: {' '.join(words.split())[:_SHOWN]}"
