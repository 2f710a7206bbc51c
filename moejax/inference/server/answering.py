"""From a request that is read to its answer: whole, or as a stream of server-sent events.

A client that goes away, or whose time is over, frees the pages of its texts at once.
"""

import asyncio
import contextlib
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from moejax.inference.engine.readers import TextStream, join
from moejax.inference.engine.requests import Piece, Token
from moejax.inference.server.asked import ROUTES, Asked
from moejax.inference.server.body import read_body
from moejax.inference.server.clock import Clock
from moejax.inference.server.errors import explain
from moejax.inference.server.json_answer import JsonAnswer
from moejax.inference.server.served import Served
from moejax.inference.server.token_text import write_routes

FINISH = {"end": "stop", "stop": "stop", "length": "length"}
"""OpenAI's words for why a text ended."""
SendEvent = Callable[[dict[str, Any]], Awaitable[None]]
_LAST_WORDS = 1.0
"""Seconds in which a stream that failed may still say why."""


class Form(ABC):
    """How the answers to one kind of request are written."""

    prefix: str
    """Of the answer's id."""
    whole_object: str
    chunk_object: str

    def __init__(self, asked: Asked, served: Served) -> None:
        self.asked, self.tokenizer = asked, served.tokenizer
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": served.name,
        }

    def write(self, kind: str, choices: list[dict], **more: Any) -> dict[str, Any]:
        """An answer, or a part of one."""
        return {**self._head, "object": kind, "choices": choices, **more}

    def choice(self, index: int, text: str, tokens: tuple[Token, ...], piece: Piece) -> dict:
        """A whole text; ``piece`` is its last."""
        assert piece.ended is not None
        return {
            "index": index,
            **self.hold(text),
            "logprobs": self.logprobs(tokens, 0),
            "finish_reason": FINISH[piece.ended],
            **self.routes(tokens),
        }

    def routes(self, tokens: tuple[Token, ...]) -> dict[str, Any]:
        """The field with the experts of tokens, if it is asked for."""
        return {ROUTES: write_routes(tokens, self.tokenizer)} if self.asked.routes else {}

    @abstractmethod
    def hold(self, text: str) -> dict[str, Any]:
        """Where a whole text stands in its choice."""

    @abstractmethod
    def hold_part(self, text: str, first: bool) -> dict[str, Any]:
        """Where a part of a text stands in its choice; it may be the first part."""

    @abstractmethod
    def logprobs(self, tokens: tuple[Token, ...], offset: int) -> dict[str, Any] | None:
        """Of tokens, if they are asked for. ``offset``: characters of the tokens before them."""


async def answer(
    request: Request, make_form: type[Form], read: Callable[[dict[str, Any], Served], Asked]
) -> Response:
    """Continue the texts that a body asks for, as ``read`` finds. Raises ``ApiError``,
    ``ClientDisconnect``, and what ``Engine.submit`` raises.
    """
    served: Served = request.app.state.served
    clock = Clock(served.limits.max_time)
    body = await read_body(request, served.limits.max_body, clock)
    asked = await clock.run(served.read(lambda: read(body, served)), request.receive)
    form = make_form(asked, served)
    texts = Texts(served, form)
    if asked.stream:
        return EventStream(texts, form, clock, served)
    with contextlib.closing(texts):
        found = await clock.run(texts.gather(), request.receive)
    return JsonAnswer(found)


class Texts:
    """The texts of one request, on their way: all, or none if the engine refuses one."""

    def __init__(self, served: Served, form: Form) -> None:
        self._form, self._asked = form, form.asked
        self._streams: list[TextStream] = []
        self.drawn = 0
        """Tokens so far."""
        try:
            for one in self._asked.requests:
                self._streams.append(served.engine.submit(one))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Nothing more is wanted: of texts that have ended, nothing happens."""
        for stream in self._streams:
            stream.cancel()

    async def gather(self) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for index, stream in enumerate(self._streams):  # all go on while one is waited for
            pieces = [piece async for piece in self._count(stream)]
            whole = join(pieces)
            text = self._asked.before(index) + whole.text
            choices.append(self._form.choice(index, text, whole.tokens, whole))
        usage = self._asked.usage(self.drawn)
        return self._form.write(self._form.whole_object, choices, usage=usage)

    async def send(self, send_event: SendEvent) -> None:
        """Send the parts of all texts as they come, then the usage."""
        async with asyncio.TaskGroup() as group:
            for index, stream in enumerate(self._streams):
                group.create_task(self._send_one(index, stream, send_event))
        if self._asked.include_usage:
            usage = self._asked.usage(self.drawn)
            await send_event(self._form.write(self._form.chunk_object, [], usage=usage))

    async def _send_one(self, index: int, stream: TextStream, send_event: SendEvent) -> None:
        before, first, offset = self._asked.before(index), True, 0
        more = {"usage": None} if self._asked.include_usage else {}
        async for piece in self._count(stream):
            text = before + piece.text if first else piece.text
            asked = self._asked
            shown = (asked.logprobs is not None or asked.routes) and piece.tokens
            if not (text or shown or piece.ended):
                continue
            choice = {
                "index": index,
                **self._form.hold_part(text, first),
                "logprobs": self._form.logprobs(piece.tokens, offset),
                "finish_reason": piece.ended and FINISH[piece.ended],
                **self._form.routes(piece.tokens),
            }
            first, offset = False, offset + len(text)
            await send_event(self._form.write(self._form.chunk_object, [choice], **more))

    async def _count(self, stream: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
        async for piece in stream:
            self.drawn += len(piece.tokens)
            yield piece


class EventStream(Response):
    """An answer as server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, texts: Texts, form: Form, clock: Clock, served: Served) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._texts, self._form, self._clock, self._served = texts, form, clock, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all. What goes wrong on the way is the last event."""

        async def send_bytes(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def send_event(event: dict[str, Any]) -> None:
            await send_bytes(write_event(event))

        async def send_all() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._texts.send(send_event)
            await send_bytes(b"data: [DONE]\n\n", more=False)

        with contextlib.closing(self._texts):
            try:
                await self._clock.run(send_all(), receive)
            except ClientDisconnect:
                self._served.tally.gone += 1
            except Exception as error:
                last = write_event(explain(error).body)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(send_bytes(last, more=False), _LAST_WORDS)


def write_event(event: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
