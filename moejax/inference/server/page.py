"""`GET /`: a page to talk to the model, and to look at its experts meanwhile.

It is one document, made of the files in ``web/``, that needs nothing else. Its content security
policy allows its own style and script (by their hashes), and requests to this server: so it asks
nobody else, and nothing that a model says can run or load anything.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from moejax.runs.pages.heatmaps import COLD, EMPTY, WARM
from moejax.runs.pages.page_style import COLOURS

SCRIPTS = ("ask.js", "experts.js", "answers.js", "talk.js", "live.js")
"""One behind another they are the page's script; each uses what stands before it."""


async def show_page(_: Request) -> Response:
    """The page, which is the same for all models."""
    document, policy = make_page()
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return HTMLResponse(document, headers=headers)


@cache
def make_page() -> tuple[str, str]:
    """The document, and its content security policy."""
    style = f"\n{COLOURS}{_maps_colours()}{_read('page.css')}"
    script = "\n" + "".join(map(_read, SCRIPTS))
    document = _read("page.html").replace("/*style*/", style).replace("/*script*/", script)
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        f"style-src '{_hash(style)}'",
        f"script-src '{_hash(script)}'",
        "require-trusted-types-for 'script'",  # no text becomes HTML
        "img-src data:",  # the icon, which is empty
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return document, "; ".join(policy)


def _read(name: str) -> str:
    return (files("moejax.inference.server") / "web" / name).read_text(encoding="utf-8")


def _maps_colours() -> str:
    """The colours of the reports' maps of load."""
    named = {"warm": WARM, "cold": COLD, "empty-rgb": EMPTY}
    words = ";".join(f"--{name}:{r},{g},{b}" for name, (r, g, b) in named.items())
    return f":root{{{words}}}\n"


def _hash(text: str) -> str:
    code = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"sha256-{code}"
