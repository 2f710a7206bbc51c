"""Objects as answers in JSON."""

import json
from typing import Any

from starlette.responses import JSONResponse


class JsonAnswer(JSONResponse):
    """An answer in JSON. Half of a pair of surrogates, which a request or the name of a directory
    may have, is written by its number, as no bytes of UTF-8 stand for it.
    """

    def render(self, content: Any) -> bytes:
        """The bytes."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")
