"""The engine: a thread that continues texts, for readers in other threads."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, TypeVar

from moejax.config.errors import UserError
from moejax.inference.engine.calls import Runner
from moejax.inference.engine.core import Core
from moejax.inference.engine.drafts import Drafter
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.readers import (
    Item,
    LoopPost,
    Post,
    QueueReader,
    Reader,
    TextStream,
    whole,
)
from moejax.inference.engine.requests import Piece, Request
from moejax.inference.engine.stats import Balance, EngineStats
from moejax.inference.engine.texts import TextRules
from moejax.inference.growing_text import Continuation

T = TypeVar("T")


class FullError(UserError):
    """As many texts wait as may: ask again later."""


class StoppedError(RuntimeError):
    """The engine has been closed, or stopped with an error (its cause): it answers nobody."""


@dataclass(frozen=True)
class Order:
    """What is to be done between two steps."""

    act: Callable[[], Any]
    answer: Future | None = None
    """For those who wait for what it returns."""


class Engine:
    """Texts from one model, for many at once. A thread of its own calls the model.

    Each text is what ``Generator`` gives for the same prompt, number and settings, whatever runs
    beside it. An error of the model ends all texts with ``StoppedError``, and the engine is of no
    more use. ``close`` it at the end.
    """

    def __init__(
        self,
        runner: Runner,
        rules: TextRules,
        settings: EngineSettings,
        drafter: Drafter | None = None,
    ) -> None:
        self.balance: Balance | None = None
        """How devices share the load, said by what moves experts."""
        self._core = Core(
            runner,
            rules,
            share=settings.share_prefixes,
            prompt_calls=settings.prompt_calls,
            drafter=drafter,
        )
        seats = runner.sizes.lanes * runner.sizes.seats
        self._most, self._queue = seats + settings.max_queue, settings.max_queue
        self._changed = threading.Condition()
        self._orders: list[Order] = []
        self._readers: dict[int, Reader] = {}
        self._posts: dict[asyncio.AbstractEventLoop, LoopPost] = {}
        self._number = 0
        self._closing = self._over = False
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def longest(self) -> int:
        """Tokens that a text may have, prompt and all; beyond them ``submit`` refuses it."""
        return self._core.longest

    @property
    def most(self) -> int:
        """Texts that may run and wait together; beyond them ``submit`` refuses one."""
        return self._most

    @property
    def runner(self) -> Runner:
        """The model, to be called ``between_steps`` only."""
        return self._core.runner

    @property
    def failed(self) -> BaseException | None:
        """The error that stopped it, if one did."""
        return self._failed

    def check(self, request: Request) -> None:
        """Raise ``ConfigError`` for a request that cannot be answered."""
        self._core.check(request)

    def submit(self, request: Request) -> TextStream:
        """Continue a text: its pieces, in the event loop that is running here. Raises
        ``ConfigError`` for a request that cannot be answered, ``FullError`` if as many texts wait
        as may, and ``StoppedError``.
        """
        self.check(request)
        loop = asyncio.get_running_loop()
        with self._changed:
            if len(self._readers) >= self._most:
                raise FullError(
                    f"{self._queue:,} texts wait, as many as may (--max-queue): ask again later."
                )
            if loop not in self._posts:
                gone = [other for other in self._posts if other.is_closed()]
                for other in gone:
                    del self._posts[other]
                self._posts[loop] = LoopPost(loop)
            number = self._number
            stream = TextStream(self._posts[loop], lambda: self._cancel(number))
            self._take_in(request, stream)
        return stream

    def run(
        self,
        requests: Sequence[Request],
        on_piece: Callable[[int, Piece], None] = lambda number, piece: None,
    ) -> list[Continuation]:
        """Continue texts and wait for their ends, however many there are. ``on_piece`` gets each
        piece with the place of its request among them. Raises as ``submit`` does.
        """
        for request in requests:
            self.check(request)
        queue: SimpleQueue[tuple[int, Item]] = SimpleQueue()
        pieces: list[list[Piece]] = [[] for _ in requests]
        with self._changed:
            numbers = [
                self._take_in(request, QueueReader(place, queue))
                for place, request in enumerate(requests)
            ]
        try:
            left = len(requests)
            while left:
                place, item = queue.get()
                if isinstance(item, BaseException):
                    raise item
                pieces[place].append(item)
                left -= item.ended is not None
                on_piece(place, item)
        finally:
            for number in numbers:  # of those that have ended, nothing happens
                self._cancel(number)
        return [whole(one) for one in pieces]

    def stats(self) -> EngineStats:
        """What it does, and has done. It waits for the step at hand."""
        try:
            stats = self.between_steps(self._core.stats).result()
        except StoppedError:  # then nobody but us looks at it
            failed = None if self._failed is None else repr(self._failed)
            stats = self._core.stats(failed=failed)
        return replace(stats, balance=self.balance)

    def between_steps(self, act: Callable[[], T]) -> Future[T]:
        """Have ``act`` called between two steps, in the engine's thread, or ``StoppedError``."""
        answer: Future[T] = Future()
        with self._changed:
            if self._over:
                raise self._stopped()
            self._put(Order(act, answer))
        return answer

    def speculate(self, drafter: Drafter | None) -> Drafter | None:
        """As ``Core.speculate``."""
        return self.between_steps(lambda: self._core.speculate(drafter)).result()

    def close(self, drain: bool = True, seconds: float | None = None) -> None:
        """Take in no more texts; with ``drain``, continue those that there are to their ends, for
        so many ``seconds`` at most, and end others with ``StoppedError``. Waits for it.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if drain:
            self._thread.join(seconds)
        with self._changed:
            if not self._over:
                self._put(Order(self._end_all))
        self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close(drain=error[0] is None)

    def _put(self, order: Order) -> None:
        """With the lock."""
        self._orders.append(order)
        self._changed.notify()

    def _take_in(self, request: Request, reader: Reader) -> int:
        """With the lock. The number of the text."""
        if self._closing or self._over:
            raise self._stopped()
        number, now = self._number, time.monotonic()
        self._number += 1
        self._readers[number] = reader
        self._put(Order(lambda: self._core.add(number, request, now)))
        return number

    def _cancel(self, number: int) -> None:
        with self._changed:
            if self._readers.pop(number, None) and not self._over:
                self._put(Order(lambda: self._core.cancel(number)))

    def _stopped(self) -> StoppedError:
        if self._failed is None:
            return StoppedError("the engine has been closed, and takes in no more texts.")
        error = StoppedError(f"the engine has stopped: {self._failed!r}")
        error.__cause__ = self._failed
        return error

    # From here on: in the engine's thread.

    def _work(self) -> None:
        try:
            while self._follow_orders():
                self._bring(self._core.step())
        except BaseException as error:  # whatever it is, those who wait must hear of it
            with self._changed:
                self._failed, self._over = error, True
            self._end_all()
        for order in self._orders:
            if order.answer is not None:
                order.answer.set_exception(self._stopped())

    def _follow_orders(self) -> bool:
        """Do what was ordered, and wait for orders if there is nothing else to do. False: all is
        done, and no more will come.
        """
        with self._changed:
            while not self._orders and not self._core.busy:
                if self._closing:
                    self._over = True
                    return False
                self._changed.wait()
            orders, self._orders = self._orders, []
        for order in orders:
            try:
                found = order.act()
            except Exception as error:
                if order.answer is None:
                    raise
                order.answer.set_exception(error)
            else:
                if order.answer is not None:
                    order.answer.set_result(found)
        return True

    def _bring(self, pieces: Sequence[tuple[int, Item]]) -> None:
        """Bring pieces to their readers; one that hears of the end is a reader no longer."""
        bags: dict[Post, list[tuple[Reader, Item]]] = {}
        with self._changed:
            for number, item in pieces:
                reader = self._readers.get(number)
                if reader is None:
                    continue  # it has been cancelled in the meantime
                if isinstance(item, BaseException) or item.ended:
                    del self._readers[number]
                bags.setdefault(reader.post(), []).append((reader, item))
        for post, items in bags.items():
            try:
                post.bring(items)
            except RuntimeError:  # its event loop is closed: nobody reads there any more
                for number, reader in list(self._readers.items()):
                    if reader.post() is post:
                        self._cancel(number)

    def _end_all(self) -> None:
        """Tell all readers that there will be no more."""
        with self._changed:
            numbers = list(self._readers)
        stopped = self._stopped()
        self._bring([(number, stopped) for number in numbers])
        if not self._over:
            for number in numbers:
                self._core.cancel(number)
