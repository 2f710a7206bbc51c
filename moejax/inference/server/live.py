"""`GET /live`: what the engine does, as one object of JSON, for the page."""

import asyncio
import time
from dataclasses import fields
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from moejax.inference.engine.stats import Balance, EngineStats, Histogram
from moejax.inference.server.errors import ApiError
from moejax.inference.server.json_answer import JsonAnswer
from moejax.inference.server.served import Served

FRESH = 0.5
"""Seconds in which all who look see the same figures: each look waits for the device."""


class Glance:
    """The last look at the engine, for all who want one."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._at = -FRESH
        self._seen: dict[str, Any] = {}

    async def take(self, served: Served) -> dict[str, Any]:
        """The engine's figures, and the second at which they were taken."""
        async with self._lock:
            if time.monotonic() - self._at >= FRESH:
                stats = await asyncio.to_thread(served.engine.stats)  # it waits for the step
                self._at = time.monotonic()
                self._seen = {"seconds": self._at, **write_stats(stats)}
            return self._seen


async def tell_live(request: Request) -> Response:
    """The model, and the engine's figures."""
    served: Served = request.app.state.served
    figures = await request.app.state.glance.take(served)
    return JsonAnswer(
        {
            "model": served.name,
            "description": served.model.description,
            "length": served.length,
            "chat": can_converse(served),
            "layers": served.routed_layers,
            "figures": figures,
        },
        headers={"cache-control": "no-store"},
    )


def can_converse(served: Served) -> bool:
    """Whether the model has a chat template."""
    try:
        return served.turn_ends is not None
    except ApiError:
        return False


def write_stats(stats: EngineStats) -> dict[str, Any]:
    """All figures by their names in ``EngineStats``; of histograms, their count and sum."""
    return {field.name: _write(getattr(stats, field.name)) for field in fields(stats)}


def _write(value: Any) -> Any:
    if isinstance(value, Histogram):
        return {"count": sum(value.counts), "sum": value.sum}
    if isinstance(value, Balance):
        even = {
            when: {"all": x, "layers": x_L.tolist()} for when, (x, x_L) in value.shares().items()
        }
        return {"moves": value.moves, "copied": value.copied, **even}
    return value.tolist() if isinstance(value, np.ndarray) else value
