"""A server on a port, asked by OpenAI's own client and by curl; clients that go away."""

import json
import shutil
import socket
import subprocess
import time

import httpx
import openai
import pytest
from serving import NAME, serve

from moejax.config import ConfigError
from moejax.inference.server.limits import Limits
from moejax.inference.server.listen import Listener, explain_bind, name_hosts, open_socket

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server():
    with serve(keys=["secret"]) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="secret", max_retries=0, timeout=30
    ) as found:
        yield found


def test_openai_lists_the_model(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "moejax"
    with pytest.raises(openai.NotFoundError, match="there is no model gpt-9 here"):
        client.models.retrieve("gpt-9")


def test_openai_completes_plainly_and_by_stream(client):
    asked = {"model": NAME, "prompt": ["def ", "class "], "max_tokens": 16, "seed": 3, "n": 2}
    whole = client.completions.create(**asked, logprobs=2)
    assert [len(one.logprobs.tokens) for one in whole.choices] == [
        len(one.logprobs.token_logprobs) for one in whole.choices
    ]
    texts = [""] * 4
    for part in client.completions.create(**asked, stream=True):
        texts[part.choices[0].index] += part.choices[0].text
    assert texts == [one.text for one in whole.choices]


def test_openai_converses_plainly_and_by_stream(client):
    asked = {"model": NAME, "messages": HI, "max_completion_tokens": 16, "seed": 3}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
    (choice,) = whole.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert len(choice.logprobs.content) == whole.usage.completion_tokens
    options = {"include_usage": True}
    *parts, last = client.chat.completions.create(**asked, stream=True, stream_options=options)
    said = "".join(part.choices[0].delta.content for part in parts)
    assert said == choice.message.content
    assert parts[-1].choices[0].finish_reason == choice.finish_reason
    assert last.usage == whole.usage and not last.choices


def test_openai_gathers_a_stream_by_its_own_helper(client):
    asked = {"model": NAME, "messages": HI, "max_tokens": 16, "seed": 3}
    said = client.chat.completions.create(**asked).choices[0].message.content
    stop = next(letter for letter in said if letter.isascii())  # else it says: length
    with client.chat.completions.stream(**asked, stop=stop) as stream:
        found = stream.get_final_completion()
    assert found.choices[0].message.content == said.partition(stop)[0]


def test_openai_raises_its_own_errors(client, server):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="x", frequency_penalty=1)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "frequency_penalty")
    with pytest.raises(openai.BadRequestError, match="must lie in"):
        client.completions.create(model=NAME, prompt="x", temperature=3)
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="guessed", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="not one of the server's"), stranger:
        stranger.models.list()
    big = "x" * (Limits().max_body + 1)
    with pytest.raises(openai.APIStatusError, match="more than the 4,194,304 bytes") as caught:
        client.completions.create(model=NAME, prompt=big)
    assert caught.value.status_code == 413


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(server):
    body = {"prompt": "def ", "max_tokens": 5, "seed": 1, "ignore_eos": True}
    words = ["curl", "-sS", "--max-time", "30", "-H", "Authorization: Bearer secret"]
    words += ["-H", "Content-Type: application/json", "-d", "@-"]
    words.append(f"{server.url}/v1/completions")

    def curl(**more) -> str:
        data = json.dumps(body | more)
        return subprocess.run(words, input=data, capture_output=True, text=True, check=True).stdout

    whole = json.loads(curl())
    assert whole["usage"]["completion_tokens"] == 5
    events = [line.removeprefix("data: ") for line in curl(stream=True).splitlines() if line]
    assert events.pop() == "[DONE]"
    texts = [json.loads(event)["choices"][0]["text"] for event in events]
    assert "".join(texts) == whole["choices"][0]["text"]
    assert json.loads(curl(prompt="x" * 5_000_000))["error"]["code"] == "request_too_large"


def wait_for(true, seconds: float = 20) -> None:
    """Wait until something is so, for some seconds at most."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_goes_away_frees_its_pages_at_once(streams):
    with serve(slow=0.02) as server:
        engine, tally = server.served.engine, server.served.tally
        body = {"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 900, "stream": streams}
        body["ignore_eos"] = True  # none of them is to end by itself
        with httpx.Client(base_url=server.url) as client:
            if streams:
                with client.stream("POST", "/v1/completions", json=body) as answer:
                    parts = answer.iter_bytes()
                    next(parts)
                    assert engine.stats().running == 4 and engine.stats().waiting == 2
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/completions", json=body, timeout=0.3)
        wait_for(lambda: tally.gone == 1)
        wait_for(lambda: engine.stats().ended["cancelled"] == 6)
        stats = engine.stats()
        assert stats.ended["length"] == 0
        assert stats.running == stats.waiting == stats.pages_used == 0


def ask_beside_a_slow_reader(seconds: float) -> bool:
    """Whether a client is answered while another one reads nothing. There are seats and pages for
    both texts. An answer may take ``seconds``: then the slow reader's text is given up.
    """
    with serve(limits=Limits(max_time=seconds)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = {"prompt": "a", "max_tokens": 10**6, "stream": True, "ignore_eos": True}
        data = json.dumps(body | {"logprobs": 3}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        stats = server.served.engine.stats
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((host, int(port)))
            slow.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
            wait_for(lambda: stats().drawn_tokens > 100 or stats().ended["cancelled"] > 0)
            asked = {"prompt": "b", "seed": 1, "max_tokens": 4}
            answer = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60)
            answered = answer.status_code == 200
            beside = answered and stats().ended["cancelled"] == 0
            wait_for(lambda: not server.listener._server.server_state.tasks, seconds + 20)
            assert stats().ended["cancelled"] == 2 - answered and stats().pages_used == 0
    return beside


def test_a_slow_reader_holds_up_nobody_and_ends_with_its_time():
    # A computer that is busy with other things gets more time.
    assert any(ask_beside_a_slow_reader(seconds) for seconds in (2, 20))


def test_draining_answers_what_was_asked_and_nothing_more():
    with serve(slow=0.02) as server:
        body = {"prompt": "a", "max_tokens": 20, "stream": True, "ignore_eos": True}
        with (
            httpx.Client(base_url=server.url) as client,
            client.stream("POST", "/v1/completions", json=body) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            server.listener._server.should_exit = True
            wait_for(lambda: not can_connect(server.url))
            assert [line for line in lines if line][-1] == "data: [DONE]"
        server.listener.drain()
        assert server.served.engine.stats().ended["length"] == 1


def can_connect(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_port_that_is_taken_is_told():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} is taken by another program"):
            open_socket("127.0.0.1", port, 1)


def test_a_port_that_was_taken_meanwhile_is_told():
    sock = open_socket("127.0.0.1", 0, 1)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(sock.getsockname())
        other.listen()
        with pytest.raises(ConfigError, match="is taken by another program"), sock:
            Listener(None, sock, 1)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 300, ""])
def test_a_host_that_is_none_is_told(host, no_network):
    if host == "":
        assert name_hosts("0.0.0.0") == ()
        assert "localhost" in name_hosts("127.0.0.1")
        return
    with pytest.raises(ConfigError, match="--host"):
        open_socket(host, 0, 1)
    assert "cannot be had" in explain_bind(PermissionError(13, "Permission denied"), host, 80)
