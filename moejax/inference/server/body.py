"""The body of a request, within the limits."""

from codecs import BOM_UTF8
from typing import Any

from starlette.requests import Request

from moejax.config.json_files import parse_json
from moejax.inference.server.clock import Clock
from moejax.inference.server.errors import ApiError

LEFT_UNREAD = 16
"""So many times the limit of a body is read and thrown away, so that a client that writes it all
first sees the answer; then the connection ends."""


async def read_body(request: Request, most: int, clock: Clock) -> dict[str, Any]:
    """The object in a request's body. Raises ``ApiError``."""
    kind, _, more = request.headers.get("content-type", "").lower().partition(";")
    if kind.strip() != "application/json":  # what a page of another site may send without asking
        raise _wrong_kind(f"content-type must say so: application/json, not {kind or 'nothing'}")
    charset = more.partition("charset=")[2].strip(' "')
    if charset not in ("", "utf-8", "utf8"):
        raise _wrong_kind(f"content-type must not name another charset than utf-8: {charset}")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise _wrong_kind(f"content-encoding must be left out, as it is read as it is: {coding}")
    data = await clock.run(_read_bytes(request, most))
    try:
        value = parse_json(data.removeprefix(BOM_UTF8), finite=True)
    except ValueError as error:
        raise ApiError(f"the body is not JSON: {error}.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError("the body must be an object of JSON.", code="invalid_type")
    return value


def _wrong_kind(what: str) -> ApiError:
    return ApiError(
        f"the body must be JSON in UTF-8, and the header {what}.",
        status=415,
        code="unsupported_media_type",
    )


async def _read_bytes(request: Request, most: int) -> bytes:
    said = request.headers.get("content-length", "")
    size = int(said) if said.isdecimal() else 0
    data, count = bytearray(), 0
    if size <= most * LEFT_UNREAD:
        async for part in request.stream():
            count += len(part)
            if count <= most:
                data += part
            elif count > most * LEFT_UNREAD:
                break
    if max(size, count) > most:
        raise ApiError(
            f"the body has more than the {most:,} bytes that are taken here.",
            status=413,
            code="request_too_large",
        )
    return bytes(data)
