"""`moejax bench serve`: loads by a seed, clients that measure, and what is told of them."""

import asyncio
import json
import re
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import made_up_runner
import numpy as np
import pytest
from compilations import note_compilations
from made_up_runner import draw_token, make_sizes
from serving import make_engine, make_model, serve

from moejax.config.errors import ConfigError
from moejax.data.byte_tokenizer import ByteTokenizer
from moejax.inference.engine.drafts import PromptDrafter
from moejax.inference.engine.stats import Balance
from moejax.inference.server.limits import Limits
from moejax.lab.bench import serving
from moejax.lab.bench.lengths import read_lengths
from moejax.lab.bench.serve_alone import step_call
from moejax.lab.bench.serve_client import Server, read_url
from moejax.lab.bench.serve_drafts import WithDrafts
from moejax.lab.bench.serve_drive import drive
from moejax.lab.bench.serve_figures import describe, report
from moejax.lab.bench.serve_load import Ask, LoadSettings, Texts, draw_arrivals, make_load
from moejax.lab.bench.serve_moves import moves_words, with_moves
from moejax.lab.bench.serve_page import write_page

BENCH = serving.ServeBench(requests=12, prompt="4-12", tokens="3-9", prefix=3, topics=3)


@pytest.fixture(scope="module")
def texts():
    return Texts(ByteTokenizer(), 257, 3)


@pytest.mark.parametrize(
    ("words", "least", "most", "mean"),
    [
        ("7", 7, 7, 7),
        ("16-96", 16, 96, 56),
        ("geometric:20", 1, np.inf, 20),
        ("lognormal:50:0.5", 1, np.inf, 50 * np.exp(0.125)),
    ],
)
def test_lengths_are_as_the_flag_says(words, least, most, mean):
    drawn = read_lengths("--prompt", words).draw(np.random.default_rng(0), 20_000)
    assert drawn.min() >= least and drawn.max() <= most
    assert np.isclose(drawn.mean(), mean, rtol=0.03)


@pytest.mark.parametrize(
    "words", ["", "0", "9-3", "x", "3-", "geometric:0.5", "lognormal:50", "lognormal:50:-1", "nan"]
)
def test_lengths_that_are_none_are_refused(words):
    with pytest.raises(ConfigError, match="--tokens"):
        LoadSettings(tokens=words)


def test_the_same_seed_gives_the_same_load(texts):
    one, same, other = (make_load(BENCH, texts, seed) for seed in (4, 4, 5))
    assert [ask.prompt.tolist() for ask in one] == [ask.prompt.tolist() for ask in same]
    assert [ask.prompt.tolist() for ask in one] != [ask.prompt.tolist() for ask in other]
    beginnings = {tuple(ask.prompt[:3]) for ask in one}
    assert len(beginnings) <= 3  # one for each topic
    assert all(4 <= len(ask.prompt) <= 12 and 3 <= ask.tokens <= 9 for ask in one)


def test_the_first_topics_come_up_most(texts):
    asks = make_load(replace(BENCH, requests=600, skew=2.0), texts, 0)
    found = sorted(
        np.unique([ask.prompt[:3] for ask in asks], axis=0, return_counts=True)[1].tolist()
    )
    weight = np.array([1 / 9, 1 / 4, 1])
    assert np.allclose(np.array(found) / 600, weight / weight.sum(), atol=0.06)


def test_arrivals_are_poisson_and_of_one_pattern():
    slow, fast = (draw_arrivals(rate, 3, 5000) for rate in (2.0, 8.0))
    assert np.allclose(slow, 4 * fast) and slow[0] == 0
    gaps = np.diff(slow)
    assert np.isclose(gaps.mean(), 0.5, rtol=0.05) and np.isclose(gaps.std(), 0.5, rtol=0.1)


def test_a_load_is_read_from_a_file(texts, tmp_path):
    file = tmp_path / "load.jsonl"
    lines = [
        {"at": 7.5, "prompt": "def f", "tokens": 4},
        {"at": 5, "prompt": [1, 2], "tokens": 2},
        {"at": 6, "prompt_tokens": 9, "tokens": 3},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    asks = make_load(LoadSettings(load=file), texts, 0)
    assert [(ask.at, len(ask.prompt), ask.tokens) for ask in asks] == [
        (0.0, 2, 2),
        (1.0, 9, 3),
        (2.5, 5, 4),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 is not an object"),
        ('{"prompt": "a"}', "`tokens` must be"),
        ('{"prompt": "a", "tokens": 0}', "`tokens` must be"),
        ('{"tokens": 2}', "give `prompt`, or"),
        ('{"prompt": "", "tokens": 2}', "the prompt is empty"),
        ('{"prompt": [1.5], "tokens": 2}', "`prompt` must be a text"),
        ('{"prompt": "a", "tokens": 2, "max": 1}', "has the fields max; known"),
        ('{"prompt": "a", "tokens": 2, "at": -1}', "`at` must be"),
        ('{"prompt": "a", "tokens": 2, "at": 1}', "1 of 2 lines have `at`"),
    ],
)
def test_a_file_that_is_no_load_is_refused(line, says, texts, tmp_path):
    file = tmp_path / "load.jsonl"
    file.write_text('{"prompt": "a", "tokens": 1}\n' + line)
    with pytest.raises(ConfigError, match=says):
        make_load(LoadSettings(load=file), texts, 0)


def test_requests_are_sent_at_their_times_or_so_many_at_once():
    asks = [Ask(prompt=np.array([1]), tokens=2)] * 6
    under_way = []
    most = [0]

    async def ask_one(number, ask, seen):
        under_way.append(number)
        most[0] = max(most[0], len(under_way))
        await asyncio.sleep(0.01)
        under_way.remove(number)
        if number == 3:
            raise ValueError("no")
        seen.hear(ask.tokens)

    driven = asyncio.run(drive(asks, ask_one, at_once=2))
    assert most == [2] and len(driven.seen) == 6
    found = describe(driven)
    assert (found["answered"], found["failed"], found["tokens"]) == (5, {"no": 1}, 10)
    at = np.array([0, 0, 0, 0, 0, 0.05])
    driven = asyncio.run(drive(asks, ask_one, at=at))
    assert most[0] >= 5
    due = [one.due - driven.seen[0].due for one in driven.seen]
    assert np.allclose(due, at) and all(one.sent >= one.due for one in driven.seen)


def test_a_client_that_is_late_says_so():
    async def ask_one(number, ask, seen):
        time.sleep(0.05)  # holds up the loop, as work of the client's own would
        seen.hear(1)

    asks = [Ask(prompt=np.array([1]), tokens=1)] * 4
    found = describe(asyncio.run(drive(asks, ask_one, at=np.zeros(4))))["client"]
    assert found["sent_late_ms"]["p99"] > 100 and found["loop_late_ms"]["p99"] > 20


def test_an_engine_is_measured_beside_its_step(texts):
    """With as many tokens as were asked for, whatever the model draws."""
    model = make_model()
    with make_engine(model) as engine:
        target = serving.Target(
            words="made up",
            ask=serving.ask_engine(engine, 0.7, 0),
            texts=texts,
            at_once=4,
            step=lambda rows, length: 0.5 * rows,
        )
        result = serving.measure(replace(BENCH, rounds=2), target)
    (point,) = result["points"]
    asked = sum(ask.tokens for seed in (0, 1) for ask in make_load(BENCH, texts, seed))
    assert (point["answered"], point["tokens"], point["failed"]) == (24, asked, {})
    assert point["step"] == {"rows": 4, "ms": 2000.0, "tokens_per_second": 2.0}
    assert np.isclose(point["of_step"], point["tokens_per_second"] / 2, rtol=0.5)
    words = report(result)
    assert "12" not in words.splitlines()[0] and "24 requests, 4 at once: 24 answered" in words


def test_an_engine_that_speculates_is_measured_with_drafts_and_without(texts, monkeypatch):
    def draw(*given):
        return 97 + draw_token(*given) % 2  # so that texts repeat themselves

    monkeypatch.setattr(made_up_runner, "draw_token", draw)
    model = make_model()
    with make_engine(model, drafts=3) as engine:
        assert engine.speculate(PromptDrafter(3, 2)) is None
        target = serving.Target(
            words="made up",
            ask=serving.ask_engine(engine, 0.7, 0),
            texts=texts,
            at_once=1,
            drive=WithDrafts(engine).drive,
        )
        result = serving.measure(replace(BENCH, rounds=2), target)
        stats = engine.stats()
        assert engine.speculate(None) is not None  # they are on again
    found = result["points"][0]["drafts"]
    assert 0 < found["accepted"] < 1 < found["tokens_per_call"] and found["of_plain"] > 0
    assert stats.accepted < stats.drafted
    assert re.search(r"drafts, 0\.\d\d of them right; 1\.\d\d tokens a call; ", report(result))


def test_what_moved_meanwhile_is_told(texts):
    """The load of two devices that hold experts: 3 to 1 before the second round, even after."""
    still = Balance(now_LQ=np.array([[3, 1]]))
    moved = still.moved(np.array([[3, 1]]), np.array([[2, 2]]), 4).at(np.array([[2, 2]]))
    engine: Any = SimpleNamespace(balance=still)
    told = with_moves(engine, serving.drive_once)

    def run() -> Any:
        engine.balance = moved

    (_, first), (_, second) = told(lambda: None), told(run)
    assert first["experts"] == {
        "moves": 0,
        "copied": 0,
        "balance_before": None,
        "balance_after": None,
        "balance_now": 2 / 3,
    }
    assert second["experts"]["moves"] == 1 and second["experts"]["copied"] == 4
    both = serving._middle([first, second])["experts"]
    assert (both["balance_before"], both["balance_after"]) == (2 / 3, 1.0)
    assert "0.667 -> 1.000 by the last plan, 1.000 in" in moves_words(second["experts"])
    assert "experts stayed" in moves_words(first["experts"])


def test_what_was_not_seen_in_a_round_is_told_of_the_others():
    gaps = {"p50": 3.0}
    rounds = [{"gap_ms": None, "tokens": 2}, {"gap_ms": gaps, "tokens": 3}]
    assert serving._middle(rounds) == {"gap_ms": gaps, "tokens": 5}
    assert serving._middle([{"gap_ms": None}]) == {"gap_ms": None}


def server_of(url: str, **more) -> Server:
    host, port, path, tls = read_url(url)
    return Server(**{"host": host, "port": port, "path": path, "tls": tls} | more)


def test_a_server_is_measured_over_several_rates(texts, tmp_path):
    keys = tmp_path / "keys"
    with serve(keys=["secret"]) as there:
        server = server_of(there.url + "/v1/", key="secret")
        assert asyncio.run(server.first_model()) == "tiny"
        target = serving.Target(
            words="a <server>", ask=replace(server, model="tiny").ask, texts=texts, at_once=4
        )
        result = serving.measure(replace(BENCH, sweep=True, at_once=4), target)
        wrong = replace(server, key="other")
        with pytest.raises(ConfigError, match="does not tell its models .*401: this API key"):
            asyncio.run(wrong.first_model())
        failed = asyncio.run(drive(make_load(BENCH, texts, 0)[:2], wrong.ask, at_once=2))
    assert [one["answered"] for one in result["points"]] == [12] * 7
    asked = sum(ask.tokens for ask in make_load(BENCH, texts, 0))
    assert {one["tokens"] for one in result["points"]} == {asked}
    assert all(one.error.startswith("401: this API key is not") for one in failed.seen)
    assert describe(failed)["first_ms"] is None
    page = write_page(result)
    assert "a &lt;server&gt;" in page and page.count("<svg viewBox") == 3
    assert not keys.exists()


def test_answers_that_fail_are_counted(texts):
    asks = [Ask(prompt=np.arange(200, dtype=np.int32), tokens=2)]
    with serve(limits=Limits(max_time=0.3), slow=0.05) as there:
        server = server_of(there.url)
        too_long = asyncio.run(drive(asks, server.ask)).seen[0].error
        asks = [Ask(prompt=np.arange(4, dtype=np.int32), tokens=40)]
        too_slow = asyncio.run(drive(asks, server.ask)).seen[0].error
        impatient = replace(server, seconds=0.1)
        given_up = asyncio.run(drive(asks, impatient.ask)).seen[0].error
    nobody = asyncio.run(drive(asks, server.ask)).seen[0].error
    assert too_long.startswith("400: `prompt` has 200 tokens")
    assert "not finished within the 0.3 seconds" in too_slow
    assert given_up == "TimeoutError" and "Connect" in nobody


def test_what_is_no_server_of_ours_does_not_stop_the_client():
    """Whatever bytes come: an error, and no wait for ever."""
    answers = [
        b"",
        b"SSH-2.0\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno\n",
    ]

    async def ask_all():
        found = []
        for text in answers:

            async def answer(reader, writer, text=text):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(text)
                writer.close()

            async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
                port = listening.sockets[0].getsockname()[1]
                server = Server(host="127.0.0.1", port=port, path="", tls=False, seconds=5)
                asks = [Ask(prompt=np.array([1]), tokens=2)]
                found.append((await drive(asks, server.ask)).seen[0].error)
        return found

    found = asyncio.run(ask_all())
    assert all(found) and "TimeoutError" not in found and found[-1] == "502: no"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:8000", "must be as http://"),
        ("ftp://a", "must be as http://"),
        ("http://", "must be as http://"),
        ("http://a:99999", "no URL"),
        ("http://a?key=b", "give the server alone"),
        ("http://me:secret@a", "give the server alone"),
    ],
)
def test_a_url_that_is_none_is_refused(url, says):
    with pytest.raises(ConfigError, match=says):
        read_url(url)


def test_urls():
    assert read_url("http://127.0.0.1:8000/v1") == ("127.0.0.1", 8000, "", False)
    assert read_url("https://[::1]/proxy/") == ("::1", 443, "/proxy", True)


@pytest.mark.parametrize(("at_once", "there"), [(1, 1), (4, 4), (5, 5), (8, 8)])
def test_the_step_alone_writes_to_nobodys_page(at_once, there):
    """In one of the shapes that are compiled."""
    sizes = make_sizes(lanes=2)
    call = step_call(sizes, at_once, 20, 0.7)
    assert call.table_BQ.shape == (2 * (1 if at_once < 3 else 4), 16)
    assert call.count_B.sum() == there
    page = (call.at_B - call.begin_B) // sizes.page
    assert not call.table_BQ[np.arange(len(page)), page].any()


@pytest.mark.slow
def test_a_model_is_measured_beside_step_and_generate(texts):
    import jax
    from test_generate import TINY, V, bias_of, made

    from moejax.config import MeshConfig
    from moejax.inference.engine.engine_settings import EngineSettings
    from moejax.inference.engine.open_engine import open_engine
    from moejax.lab.bench.serve_alone import OneByOne, step_seconds
    from moejax.runtime import device_mesh

    mesh = device_mesh.make_mesh(MeshConfig(), jax.devices()[:1])
    made_up = {"config": TINY, "vocab_size": V, "params": made(TINY), "bias_LE": bias_of(TINY)}
    model = make_model(**made_up, context=24)
    one_by_one = OneByOne(model, mesh, 24, 0.7, 0)
    with open_engine(model, mesh, EngineSettings(seats=2, chunk=8, prompt_rows=1)) as engine:
        target = serving.Target(
            words="tiny",
            ask=serving.ask_engine(engine, 0.7, 0),
            texts=Texts(model.tokenizer, V, 3),
            at_once=2,
            step=lambda rows, length: step_seconds(engine, rows, length, 0.7),
            one_by_one=one_by_one,
        )
        (point,) = serving.measure(replace(BENCH, compare=2), target)["points"]
        with note_compilations() as compiled:
            step_seconds(engine, 2, 24, 0.7)
        assert not compiled  # the step alone is one of the engine's calls
    assert point["answered"] == 12 and point["step"]["ms"] > 0 and point["of_generate"] > 0
