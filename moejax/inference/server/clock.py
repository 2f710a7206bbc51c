"""The time that a request has, and whether its client is still there."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from moejax.inference.server.errors import ApiError

T = TypeVar("T")


class OutOfTimeError(ApiError):
    """--max-time is over."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the answer was not finished within the {seconds:g} seconds that a request may take"
            f" here: ask for fewer tokens, or try again when less is going on.",
            status=504,
            code="timeout",
        )


class Clock:
    """The time that one request has left."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = asyncio.get_running_loop().time() + seconds

    async def run(
        self, work: Coroutine[Any, Any, T], receive: Callable[[], Awaitable[Any]] | None = None
    ) -> T:
        """What ``work`` gives. With ``receive``, which must have given the whole body already, it
        is cancelled when the client goes away (``ClientDisconnect``); and when the time is over
        (``OutOfTimeError``).
        """
        tasks: list[asyncio.Task] = [asyncio.ensure_future(work)]
        if receive is not None:
            tasks.append(asyncio.ensure_future(_wait_until_gone(receive)))
        left = self._end - asyncio.get_running_loop().time()
        try:
            done, _ = await asyncio.wait(
                tasks, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
            )
            if tasks[0] in done:
                return tasks[0].result()
            raise ClientDisconnect if done else OutOfTimeError(self._seconds)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_until_gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
