"""The paths of the server, and the app that answers on them."""

import asyncio
from collections.abc import Collection

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moejax.config.errors import UserError
from moejax.inference.engine.engine import StoppedError
from moejax.inference.server.chat import converse
from moejax.inference.server.completions import complete
from moejax.inference.server.errors import ApiError, answer_error, answer_wrong_path
from moejax.inference.server.guard import Guard
from moejax.inference.server.json_answer import JsonAnswer
from moejax.inference.server.live import Glance, tell_live
from moejax.inference.server.metrics import CONTENT_TYPE, write_metrics
from moejax.inference.server.page import show_page
from moejax.inference.server.served import Served


async def tell_health(request: Request) -> Response:
    """200 while the engine works, else 503."""
    served: Served = request.app.state.served
    failed = served.engine.failed
    return JsonAnswer({"status": "failed" if failed else "ok"}, 503 if failed else 200)


async def tell_metrics(request: Request) -> Response:
    """What the engine and the server do, for Prometheus."""
    served: Served = request.app.state.served
    stats = await asyncio.to_thread(served.engine.stats)  # it waits for the step at hand
    lines = write_metrics(stats, served.tally, served.routed_layers)
    return Response(lines, media_type=CONTENT_TYPE)


async def list_models(request: Request) -> Response:
    """The one model that is there."""
    return JsonAnswer({"object": "list", "data": [describe_model(request.app.state.served)]})


async def tell_model(request: Request) -> Response:
    """The model of this name. Raises ``ApiError`` if it is another one."""
    served: Served = request.app.state.served
    served.check_name(request.path_params["name"])
    return JsonAnswer(describe_model(served))


def describe_model(served: Served) -> dict[str, object]:
    """The model as OpenAI describes one, and the tokens of its texts (by vLLM's name)."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "moejax",
        "max_model_len": served.length,
    }


ROUTES = [
    Route("/", show_page),
    Route("/live", tell_live),
    Route("/health", tell_health),
    Route("/metrics", tell_metrics),
    Route("/v1/models", list_models),
    Route("/v1/models/{name:path}", tell_model),
    Route("/v1/completions", complete, methods=["POST"]),
    Route("/v1/chat/completions", converse, methods=["POST"]),
]
_PATHS = {route.path for route in ROUTES}


def make_app(served: Served, keys: Collection[str] = (), hosts: Collection[str] = ()) -> Starlette:
    """The app that serves a model. ``keys`` are the API keys, if some are needed; ``hosts`` the
    names that the server may be called by, if not any.
    """
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Counted, served=served), Middleware(Guard, keys=keys, hosts=hosts)],
        exception_handlers={
            ClientDisconnect: _count_gone,
            HTTPException: answer_wrong_path,
            **dict.fromkeys((ApiError, UserError, StoppedError, Exception), answer_error),
        },
    )
    app.router.redirect_slashes = False  # a redirected POST is an empty answer to most clients
    app.state.served, app.state.glance = served, Glance()
    return app


class Counted:
    """Counts answers by path and status; paths that are none of the server's are one."""

    def __init__(self, app: ASGIApp, served: Served) -> None:
        self._app, self._answers = app, served.tally.answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass all on."""
        path = scope.get("path", "")
        path = path if path in _PATHS else "other"

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answers[path, message["status"]] += 1
            await send(message)

        await self._app(scope, receive, send_on)


def _count_gone(request: Request, _: Exception) -> Response:
    request.app.state.served.tally.gone += 1
    return Response(status_code=499)  # nobody reads it; nginx has this number for it
