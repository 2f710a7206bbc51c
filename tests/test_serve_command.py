"""`moejax serve` as a process, around a made-up model, and with a real one."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import jax
import pytest
from serving import NAME, ask_app, make_engine, make_model, make_served
from test_generate import TINY, bias_of, generator, made

from moejax.commands.serve import ServeSettings, serve_engine
from moejax.config import MeshConfig
from moejax.inference.engine.engine import StoppedError
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.open_engine import open_engine
from moejax.inference.engine.requests import Request
from moejax.inference.sampling import Sampling
from moejax.inference.server.listen import open_socket
from moejax.runtime import device_mesh

ROOT = Path(__file__).parents[1]
SCRIPT = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from serving import make_engine, make_model
from moejax.commands import main, serve
serve.open_language_model = lambda settings: (make_model(), None)
serve.open_engine = lambda model, *_: make_engine(model, slow=0.02)
main.main()
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts the command: the process, and what it says when it is ready."""
    started = []

    def run(*words: str) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, "-c", SCRIPT, "serve", str(tmp_path / NAME), "--port", "0"]
        process = subprocess.Popen(
            [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, process.stdout.readline()

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


BODY = {"prompt": "x", "max_tokens": 60, "stream": True, "ignore_eos": True}


def test_it_is_ready_then_a_signal_lets_it_answer_and_end(start):
    process, said = start("--json")
    ready = json.loads(said)
    assert ready.pop("url").startswith("http://127.0.0.1:") and ready == {
        "ready": True,
        "model": NAME,
    }
    url = json.loads(said)["url"]
    with httpx.stream("POST", f"{url}/v1/completions", json=BODY) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(20) == 0
    errors = process.stderr.read()
    assert re.search(r"^SIGTERM: heard\. No more requests are taken", errors, re.M)
    assert "Traceback" not in errors and len(errors.splitlines()) == 2
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.slow
def test_ready_stands_on_a_line_and_a_second_signal_ends_at_once(start):
    process, said = start()
    assert said == "ready\n"
    url = re.search(r"http://\S+", process.stderr.readline())[0]
    with httpx.stream("POST", f"{url}/completions", json=BODY | {"max_tokens": 10**6}) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        assert "SIGINT: heard." in process.stderr.readline()
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT
        with contextlib.suppress(httpx.RemoteProtocolError):  # it may be told of the end
            assert "data: [DONE]" not in lines
    assert process.stderr.read() == "SIGINT: ends at once.\n"


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--port", "70000"], "--port must lie in 0 to 65,535, not 70000"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid is no address"),
        (["--name", " "], "--name must not be empty"),
        (["--api-key-file", "missing"], "--api-key-file missing cannot be read"),
        (["--max-time", "0"], "--max-time must be greater than 0"),
        (["--max-body", "-1"], "--max-body must be greater than 0"),
        (["--port", "0"], "there is no directory none"),
        (["--port", "0", "--seats", "0"], "--seats must be greater than 0"),
        (["--port", "0", "--group", "32"], "--group 32 has no effect without"),
        (["--rebalance", "60"], "give --mesh.expert 2 or more, or leave it out"),
        (["--rebalance", "-1"], "--rebalance must be greater than 0 and at most 1,000,000 seconds"),
        (["--rebalance", "nan"], "seconds, not nan"),
        (["--replicas", "8"], "--replicas 8 has no effect without --rebalance"),
        (["--rebalance", "60", "--replicas", "-1"], "--replicas must be greater than 0, not -1"),
        (
            ["--rebalance", "60", "--mesh.expert", "4", "--replicas", "6"],
            "--replicas 6 is not divisible by --mesh.expert 4",
        ),
        (
            ["--rebalance", "60", "--mesh.expert", "2", "--placement", "plan.json"],
            "--placement plan.json says where experts stay, and --rebalance moves them",
        ),
    ],
)
def test_a_wrong_setting_ends_before_a_model_is_read(words, wrong, run_command, no_network):
    found = run_command("serve", "none", *words)
    assert found.returncode == 2 and wrong in found.stderr and not found.stdout


@pytest.mark.parametrize("command", [["serve"], ["generate", "--prompt", "a"], ["bench", "serve"]])
@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--speculate", "draft"], "--speculate draft needs a smaller model"),
        (["--speculate", "both"], "invalid choice 'both'"),
        (["--drafts", "8"], "--drafts 8 has no effect without --speculate"),
        (["--speculate", "draft", "--draft", "x", "--match", "2"], "--match 2 has no effect"),
        (["--speculate", "mtp", "--match", "2"], "--match 2 has no effect without --speculate pr"),
        (["--speculate", "mtp", "--draft", "x"], "--draft x has no effect without --speculate dr"),
        (["--speculate", "prompt", "--draft", "x"], "--draft x has no effect without --speculate"),
        (["--speculate", "prompt", "--drafts", "0"], "--drafts must be greater than 0"),
        (["--speculate", "mtp", "--drafts", "-1"], "--drafts must be greater than 0"),
    ],
)
def test_wrong_settings_of_speculation_end_before_a_model_is_read(
    words, wrong, command, run_command, no_network
):
    found = run_command(*command, "none", *words)
    assert found.returncode == 2 and wrong in found.stderr and not found.stdout


def test_a_port_that_is_taken_ends_before_a_model_is_read(run_command):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        found = run_command("serve", "none", "--port", port)
    assert found.returncode == 2 and f"--port {port} is taken by another program" in found.stderr


def test_what_is_missing_for_it_is_named(run_command, monkeypatch):
    monkeypatch.setattr("moejax.commands.serve.find_spec", lambda name: None)
    found = run_command("serve", "none")
    assert found.returncode == 2
    assert "needs starlette, uvicorn, prometheus_client: pip install -e '.[serve]'" in found.stderr


def test_an_error_of_the_model_ends_the_server(tmp_path, capsys):
    model = make_model()
    engine = make_engine(model)
    engine._core.runner.fails_after = 0
    request = Request(prompt=model.begin("x"), sampling=Sampling())
    with pytest.raises(StoppedError):
        engine.run([request])
    sock = open_socket("127.0.0.1", 0, 1)
    with engine, pytest.raises(RuntimeError, match="out of everything"):
        serve_engine(ServeSettings(path=tmp_path), model, engine, sock, [])
    assert capsys.readouterr().out == "ready\n" and sock.fileno() == -1


@pytest.mark.slow
def test_texts_are_those_of_generate():
    params = made(TINY)
    mesh = device_mesh.make_mesh(MeshConfig(), jax.devices()[:1])
    model = make_model(config=TINY, params=params, bias_LE=bias_of(TINY))
    sizes = EngineSettings(seats=2, prompt_rows=2, chunk=16)
    prompts = ["def ", "a", "class Longer than a chunk:\n"]
    kinds = [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "seed": 7}]
    alone = generator(TINY, params, window=model.context, ends=model.ends)

    async def ask(engine) -> list[list[str]]:
        async with ask_app(make_served(model=model, engine=engine)) as client:
            bodies = [{"prompt": prompts, "max_tokens": 24, "stop": ["zz"]} | one for one in kinds]
            answers = [await client.post("/v1/completions", json=body) for body in bodies]
        return [[one["text"] for one in answer.json()["choices"]] for answer in answers]

    with open_engine(model, mesh, sizes) as engine:
        texts = asyncio.run(ask(engine))
    ids = [model.begin(one) for one in prompts]
    for kind, found in zip(kinds, texts, strict=True):
        wanted = alone.generate(ids, Sampling(tokens=24, stop=("zz",), **kind))
        assert found == [one.text for one in wanted.continuations]
