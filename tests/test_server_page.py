"""The page at `/` and what it asks for: experts of tokens, live figures; and the page in a browser,
around a made-up model.
"""

import asyncio
import base64
import hashlib
import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import BROWSER, open_tab
from serving import NAME, ask_app, make_engine, make_model, make_served, serve
from test_server import CHAT, COMPLETIONS, HI, ask, post, stream

from moejax.config import ModelConfig, changed
from moejax.data.byte_tokenizer import ByteTokenizer
from moejax.inference.engine.requests import Token
from moejax.inference.server import page
from moejax.inference.server.live import Glance
from moejax.inference.server.token_text import write_routes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def served():
    made = make_served()
    yield made
    made.engine.close()


@pytest.mark.parametrize(
    ("path", "body"), [(COMPLETIONS, {"prompt": "def ", "n": 2}), (CHAT, {"messages": HI})]
)
def test_experts_come_with_tokens_whole_and_streamed(served, path, body):
    body |= {"max_tokens": 9}
    without = post(served, path, **body)
    whole = post(served, path, **body, moejax_routes=True)
    parts = stream(served, path, **body, moejax_routes=True)
    for plain, choice in zip(without["choices"], whole["choices"], strict=True):
        told = choice.pop("moejax_routes")
        assert choice == plain  # nothing else is another
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == 0]
        if choice["index"] == 0:
            assert [one for part in mine for one in part["moejax_routes"]] == told
        # The made-up model gives the position of which a token was drawn, and half of it.
        position = [one["experts"][0][0] for one in told]
        assert position == list(range(position[0], position[0] + len(told)))
        assert [one["weights"] for one in told] == [[[i / 2]] for i in position]
        text = bytes(byte for one in told for byte in one["bytes"]).decode("utf-8", "replace")
        assert text == choice.get("text", choice.get("message", {}).get("content"))
    assert sum(len(c["moejax_routes"]) for p in parts for c in p["choices"]) >= len(told)


def test_weights_are_written_with_four_digits(served):
    made = Token(
        id=65,
        expert_LK=np.array([[3, -1], [0, 2]], np.int32),
        weight_LK=np.array([[1 / 3, 0], [123.456, 2e-9]], np.float32),
    )
    (told,) = write_routes((made,), served.tokenizer)
    assert told == {
        "token": "A",
        "bytes": [65],
        "experts": [[3, -1], [0, 2]],
        "weights": [[0.3333, 0.0], [123.5, 2e-9]],
    }


def test_experts_are_asked_for_by_truth_and_of_routed_models_only(served):
    model = make_model(config=changed(ModelConfig(vocab_size=257), {"moe": {"every": 0}}))
    dense = make_served(model=model, engine=served.engine)
    for other, value, code in [(served, 1, "invalid_type"), (dense, True, "invalid_value")]:
        body = {"prompt": "a", "max_tokens": 1, "moejax_routes": value}
        (answer,) = ask(other, ("POST", COMPLETIONS, {"json": body}))
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert (error["param"], error["code"]) == ("moejax_routes", code)


def test_live_figures(served):
    post(served, COMPLETIONS, prompt="a", max_tokens=3, ignore_eos=True)
    (answer,) = ask(served, ("GET", "/live", {}))
    told, figures = answer.json(), answer.json()["figures"]
    assert answer.headers["cache-control"] == "no-store"
    assert (told["model"], told["chat"], told["layers"]) == (NAME, True, [2])
    assert figures["drawn_tokens"] >= 3 and figures["failed"] is None
    assert figures["next_seconds"]["count"] >= 2 and figures["next_seconds"]["sum"] > 0
    assert len(figures["load_LE"]) == 1 and len(figures["load_LE"][0]) == 2
    assert json.loads(answer.text) and figures["pages_used"] <= figures["pages"]


def test_all_who_look_at_once_see_one_look():
    class Engine:
        looks = 0

        def stats(self):
            Engine.looks += 1
            return engine.stats()

    engine = make_engine(make_model())
    served = make_served(engine=Engine())

    async def look() -> list:
        glance = Glance()
        return await asyncio.gather(*(glance.take(served) for _ in range(5)))

    found = asyncio.run(look())
    engine.close()
    assert Engine.looks == 1 and all(one is found[0] for one in found)


def test_without_a_template_the_page_continues_texts():
    served = make_served(model=make_model(chat_template=None))
    (answer,) = ask(served, ("GET", "/live", {}))
    served.engine.close()
    assert answer.json()["chat"] is False


class Names(HTMLParser):
    """Elements of the page: what would be asked for, and the names of attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.names, self.ids, self.fors = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.names |= given.keys()
        self.ids += [given["id"]] if "id" in given else []
        self.fors += [value for name, value in attrs if name in ("for", "aria-labelledby")]
        self.asked += [v for name, v in attrs if name in ("src", "href", "action", "srcset")]


def test_the_page_asks_nobody_else_and_runs_its_own_script_only(served):
    (answer,) = ask(served, ("GET", "/", {}))
    assert answer.headers["content-type"].startswith("text/html")
    found = Names()
    found.feed(answer.text)
    assert set(found.asked) == {"data:,"}
    assert not [name for name in found.names if name.startswith("on") or name == "style"]
    assert len(set(found.ids)) == len(found.ids) and set(found.fors) <= set(found.ids)
    assert "://" not in answer.text and "@import" not in answer.text and "url(" not in answer.text
    parts = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert (parts["default-src"], parts["connect-src"]) == ("'none'", "'self'")
    assert parts["require-trusted-types-for"] == "'script'"
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, flags=re.S)
        code = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert parts[f"{tag}-src"] == f"'sha256-{code}'"
    # What could make HTML of a text of the model.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", answer.text)


def test_the_page_needs_no_key_and_its_figures_do(served):
    async def statuses() -> list[int]:
        async with ask_app(served, keys=["sesame"]) as client:
            right = {"authorization": "Bearer sesame"}
            found = [await client.get("/"), await client.get("/live")]
            found.append(await client.get("/live", headers=right))
            return [one.status_code for one in found]

    assert asyncio.run(statuses()) == [200, 401, 200]


def test_a_wheel_has_all_parts_of_the_page():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folder = ROOT / "moejax/inference/server"
    patterns = settings["tool"]["setuptools"]["package-data"]["moejax.inference.server"]
    packed = {file for pattern in patterns for file in folder.glob(pattern)}
    parts = {file for file in (folder / "web").iterdir() if not file.name.startswith(".")}
    assert packed == parts
    assert {file.name for file in parts} == {"page.html", "page.css", *page.SCRIPTS}


CAUGHT = "document.title=1"
HTML = (
    f"<script>{CAUGHT}</script>",
    f'<img src=x onerror="{CAUGHT}">',
    "</div>",
    "&lt;",
    " ",
    "\n",
)
SEND = "byId('prompt').value = {!r}; byId('form').requestSubmit()"


class HtmlTokenizer(ByteTokenizer):
    """All that it says is HTML."""

    def spell(self, token):
        return HTML[token % len(HTML)].encode()

    def decode(self, ids):
        return "".join(HTML[token % len(HTML)] for token in ids)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome here")
def test_the_page_in_a_browser(tmp_path):
    with (
        serve(keys=["sesame"], model=make_model(tokenizer=HtmlTokenizer()), slow=0.01) as server,
        open_tab(tmp_path) as tab,
    ):
        own = server.url + "/"
        tab.size(360, 640)
        tab.visit(own)
        tab.wait("!byId('key-form').hidden")  # it asks for a key
        refused = [line for line in tab.console if "401" not in line]
        tab.console.clear()
        tab.run("byId('key').value = 'sesame'; byId('key-form').requestSubmit()")
        tab.wait("live.known && byId('key-form').hidden")
        assert tab.run("byId('name').textContent") == NAME
        tab.run("byId('seed').value = 1; byId('tokens').value = 30")
        tab.run(SEND.format("hi"))
        tab.wait("!talk.stopping && spans().length > 20")
        shown = tab.run("[...spans()].map(span => span.textContent)")
        assert set(shown) == set(HTML) and tab.run("document.title") == NAME
        assert tab.run("document.querySelectorAll('#log script, #log img').length") == 0
        # A token has the colour of its expert, and its experts are told, also by keyboard.
        colours = tab.run(
            "[...spans()].slice(0, 9).map(span => getComputedStyle(span).backgroundColor)"
        )
        assert len(set(colours)) == 9 and "rgba(0, 0, 0, 0)" not in colours
        expert = tab.run("spans()[1].token.experts[0][0]")
        tab.run("document.querySelector('.model .said').focus()")
        for _ in range(2):
            for kind in ("rawKeyDown", "keyUp"):
                code = {"key": "ArrowRight", "windowsVirtualKeyCode": 39}
                tab.call("Input.dispatchKeyEvent", type=kind, **code)
        assert f"expert {expert} × {expert / 2:g}" in tab.run("byId('detail').textContent")
        # Live figures come without being asked for, and nothing is wider than a phone.
        tab.wait("byId('ratio').textContent === '1.00×' && live.looks.at(-1).drawn_tokens > 20")
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        # What only some servers have.
        assert tab.run("byId('balance-tile').hidden && byId('drafts-tile').hidden")
        moved = {"moves": 2, "now": {"all": 0.75}, "before": {"all": 0.5}, "after": {"all": 0.875}}
        tab.run(f"drawMoreTiles({{balance: {json.dumps(moved)}, drafted: 40, accepted: 10}})")
        assert tab.run("byId('balance').textContent + byId('drafts').textContent") == "75%25%"
        assert "50% became 87.5%" in tab.run("byId('balance-words').textContent")
        # Stop frees the pages of an answer; a text goes on from where it ended.
        tab.run("byId('clear').click(); byId('tokens').value = 90")
        tab.run(SEND.format("more"))
        tab.wait("document.querySelectorAll('.coming .t').length > 2")
        tab.run("byId('stop').click()")
        tab.wait("!talk.stopping && live.looks.at(-1).ended.cancelled === 1")
        tab.run("document.querySelector('[value=text]').click()")
        tab.run("byId('tokens').value = 1")
        tab.run(SEND.format("once"))
        tab.wait("!talk.stopping && !byId('more').hidden")
        before = tab.run("talk.whole")
        tab.run("byId('more').click()")
        tab.wait(f"!talk.stopping && talk.whole.length > {len(before)}")
        assert tab.run("talk.whole").startswith(before) and before.startswith("once")
        assert tab.run("document.querySelector('.said').textContent === talk.whole")
        assert [refused, tab.console] == [[], []] and set(tab.asked) == {
            own,
            own + "live",
            own + "v1/chat/completions",
            own + "v1/completions",
        }
        server.listener.drain()  # the server goes away
        tab.wait("byId('state-words').textContent.includes('does not answer')")
        tab.run(SEND.format("are you there?"))
        tab.wait("byId('trouble').textContent.includes('does not answer')")
