"""Requests that are sent at their times, or so many at once, and when their tokens come."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

import numpy as np

from moejax.lab.bench.serve_load import Ask

TICK = 0.02
"""Seconds between two looks at whether the client itself is late."""


@dataclass
class Seen:
    """What the client saw of one request. Times are seconds by ``time.perf_counter``."""

    due: float
    """When it was to be sent."""
    sent: float
    came: list[float] = field(default_factory=list)
    """When parts of its text came."""
    tokens: int = 0
    """How many there were, as the other side says."""
    error: str | None = None
    """Why it failed."""

    def hear(self, tokens: int = 0) -> None:
        """A part has come."""
        self.came.append(time.perf_counter())
        self.tokens += tokens


@dataclass(frozen=True, kw_only=True)
class Driven:
    """A load that was sent."""

    seen: list[Seen]
    seconds: float
    """From the first request to the end of the last answer."""
    loop_late: np.ndarray
    """By how many seconds the client's own loop was late, each time that it looked."""
    client_seconds: float
    """Processor time of the client's thread."""


AskOne = Callable[[int, Ask, Seen], Coroutine[None, None, None]]
"""Send a request of this number, and tell what comes; raises what goes wrong."""


async def drive(
    asks: Sequence[Ask], ask_one: AskOne, *, at: np.ndarray | None = None, at_once: int = 1
) -> Driven:
    """Send requests ``at`` their times, in seconds from now; without these, the next one as soon as
    fewer than ``at_once`` are under way.
    """
    seen: list[Seen] = []
    late: list[float] = []
    begin, begin_cpu = time.perf_counter(), time.thread_time()
    ticker = asyncio.ensure_future(_tick(late))
    try:
        if at is None:
            left = iter(enumerate(asks))
            await asyncio.gather(*(_work(left, ask_one, seen) for _ in range(at_once)))
        else:
            await _send_at(asks, begin + at, ask_one, seen)
    finally:
        ticker.cancel()
        await asyncio.wait([ticker])
    end = max((one.came[-1] for one in seen if one.came), default=time.perf_counter())
    return Driven(
        seen=seen,
        seconds=end - min(one.due for one in seen),
        loop_late=np.array(late or [0.0]),
        client_seconds=time.thread_time() - begin_cpu,
    )


async def _work(left: "enumerate[Ask]", ask_one: AskOne, seen: list[Seen]) -> None:
    for number, ask in left:
        await _send(number, ask, time.perf_counter(), ask_one, seen)


async def _send_at(asks: Sequence[Ask], due: np.ndarray, ask_one: AskOne, seen: list[Seen]) -> None:
    async with asyncio.TaskGroup() as group:
        for number, (ask, when) in enumerate(zip(asks, due.tolist(), strict=True)):
            if (wait := when - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            group.create_task(_send(number, ask, when, ask_one, seen))


async def _send(number: int, ask: Ask, due: float, ask_one: AskOne, seen: list[Seen]) -> None:
    one = Seen(due, time.perf_counter())
    seen.append(one)
    try:
        await ask_one(number, ask, one)
    except Exception as error:  # a failure is a figure, too
        one.error = str(error) or type(error).__name__


async def _tick(late: list[float]) -> None:
    while True:
        due = time.perf_counter() + TICK
        try:
            await asyncio.sleep(TICK)
        finally:  # at the end, too: it may be late already
            late.append(max(0.0, time.perf_counter() - due))
