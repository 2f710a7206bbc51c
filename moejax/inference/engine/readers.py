"""Pieces of texts on their way from the engine's thread to those who asked for them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from queue import SimpleQueue
from threading import Lock
from typing import Protocol

from moejax.inference.engine.requests import Piece
from moejax.inference.growing_text import Continuation

Item = Piece | BaseException
"""A piece of a text, or why there will be no more."""


class Reader(Protocol):
    """Whoever wants the pieces of a text."""

    def post(self) -> "Post":
        """Where they are brought."""
        ...

    def put(self, item: Item) -> None:
        """Take a piece; called in the reader's own thread."""
        ...


class Post(Protocol):
    """The way to a thread that has readers."""

    def bring(self, items: list[tuple[Reader, Item]]) -> None:
        """Bring items to readers; called in the engine's thread, and never waits."""
        ...


class LoopPost:
    """To an event loop, which is woken once, however many pieces there are until it looks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._items: list[tuple[Reader, Item]] = []
        self._lock = Lock()

    def bring(self, items: list[tuple[Reader, Item]]) -> None:
        """Raises ``RuntimeError`` if the loop is closed."""
        if self.loop.is_closed():  # it may have been woken, and never have looked
            raise RuntimeError("the event loop is closed.")
        with self._lock:
            asleep = not self._items
            self._items += items
        if asleep:
            self.loop.call_soon_threadsafe(self._give_out)

    def _give_out(self) -> None:
        with self._lock:
            items, self._items = self._items, []
        for reader, item in items:
            reader.put(item)


class TextStream(AsyncIterator[Piece]):
    """The pieces of one text. Those that came since the last one was read come as one, so that a
    slow reader holds up nobody. One task reads it, in the event loop in which it was made.
    """

    def __init__(self, post: LoopPost, cancel: Callable[[], None]) -> None:
        self._post, self._cancel = post, cancel
        self._items: deque[Item] = deque()
        self._news: asyncio.Future[None] | None = None
        """What the reader waits for, if it waits."""
        self._over = False

    def post(self) -> LoopPost:
        """Where its pieces are brought."""
        return self._post

    def put(self, item: Item) -> None:
        """A piece has come."""
        self._items.append(item)
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def cancel(self) -> None:
        """No more is wanted: the text's pages are free for the next step."""
        self._over = True
        self._items.clear()
        self._wake()
        self._cancel()

    async def __anext__(self) -> Piece:
        """All that has come since the last piece; it waits for some. Raises what stopped the
        engine, if it did.
        """
        while not self._items and not self._over:
            self._news = self._post.loop.create_future()
            await self._news
        if not self._items:
            raise StopAsyncIteration
        item = self._items.popleft()
        if isinstance(item, BaseException):
            self._over = True
            raise item
        pieces = [item]
        while self._items and isinstance(item := self._items[0], Piece):  # errors come alone
            pieces.append(item)
            self._items.popleft()
        piece = join(pieces)
        self._over = piece.ended is not None
        return piece


class QueueReader:
    """Puts the pieces of a text into a queue, with its number: for those who have no event loop."""

    def __init__(self, number: int, queue: SimpleQueue) -> None:
        self._number, self._queue = number, queue

    def post(self) -> "QueueReader":
        """It needs no way: a queue is open to all threads."""
        return self

    def bring(self, items: list[tuple[Reader, Item]]) -> None:
        """Bring items to readers."""
        for reader, item in items:
            reader.put(item)

    def put(self, item: Item) -> None:
        """A piece has come."""
        self._queue.put((self._number, item))


def join(pieces: list[Piece]) -> Piece:
    """Several pieces of a text, one behind another, as one."""
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        text="".join(piece.text for piece in pieces),
        tokens=tuple(token for piece in pieces for token in piece.tokens),
        ended=pieces[-1].ended,
    )


def whole(pieces: list[Piece]) -> Continuation:
    """All pieces of a text that has ended, as one."""
    piece = join(pieces)
    assert piece.ended is not None
    return Continuation(
        text=piece.text, ids=[token.id for token in piece.tokens], ended=piece.ended
    )
