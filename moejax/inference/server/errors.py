"""What is wrong with a request, as OpenAI's error object.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

``param`` names the field, if it is one; ``code`` is a word for programs, OpenAI's own where it has
one for the case.
"""

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from moejax.config.errors import ConfigError
from moejax.inference.engine.engine import FullError, StoppedError
from moejax.inference.server.json_answer import JsonAnswer

log = logging.getLogger("moejax.server")
_KINDS = {429: "rate_limit_error"}
_SOON, _LATER = {"retry-after": "1"}, {"retry-after": "10"}


class ApiError(Exception):
    """A request that is not answered; the message says what to ask instead."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        """The error as an answer."""
        return JsonAnswer(self.body, self.status, self.headers)


def explain(error: BaseException) -> ApiError:
    """Any error as one that a client may see. What is not the client's mistake goes to the log, and
    to the client without details; of several errors, the first.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ApiError):
        return error
    if isinstance(error, FullError):
        return ApiError(str(error), status=429, code="rate_limit_exceeded", headers=_SOON)
    if isinstance(error, ConfigError):
        return ApiError(str(error), code="invalid_value")
    if isinstance(error, StoppedError):
        return ApiError(str(error), status=503, code="stopped", headers=_LATER)
    log.error("a request failed", exc_info=error)
    return ApiError("the server failed; its log says why.", status=500, code="internal_error")


def answer_error(_: Request, error: Exception) -> Response:
    """For Starlette: the answer to a request that ended with an error."""
    return explain(error).response()


def answer_wrong_path(_: Request, error: Exception) -> Response:
    """For Starlette: the answer where there is no such path, or it has no such method."""
    assert isinstance(error, HTTPException)
    found = "this path has no such method" if error.status_code == 405 else "there is no such path"
    return ApiError(
        f"{found}; GET /v1/models, POST /v1/completions and POST /v1/chat/completions are there.",
        status=error.status_code,
        code="unknown_url",
        headers=dict(error.headers or {}),
    ).response()
