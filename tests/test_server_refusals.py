"""Requests that are wrong, and how each is told so: status, code, and the field."""

import asyncio
import json

import pytest
from serving import NAME, ask_app, make_served

from moejax.inference.server.limits import Limits

MOST_BODY = 20_000
HI = [{"role": "user", "content": "hi"}]
DEEP = "[" * 100_000 + "]" * 100_000
SURROGATE = "\ud83d"


@pytest.fixture(scope="module")
def ask():
    """A function: what the server answers to a path, a body and headers."""
    served = make_served(limits=Limits(max_body=MOST_BODY, max_prompt=40))

    client = ask_app(served)
    with asyncio.Runner() as runner:  # one event loop for all
        asking = runner.run(client.__aenter__())

        def ask_one(path: str, content, headers: dict):
            return runner.run(asking.post(path, content=content, headers=headers))

        yield ask_one
        runner.run(client.__aexit__(None, None, None))
    stats = served.engine.stats()
    assert stats.pages_used == stats.running == stats.waiting == stats.drawn_tokens == 0
    served.engine.close()


def check_refused(answer, status: int, code: str, param: str | None) -> str:
    """The message of an answer that must be such an error."""
    assert answer.status_code == status, answer.text
    (error,) = answer.json().values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error["message"]
    kinds = {429: "rate_limit_error", 504: "server_error"}
    assert error["type"] == kinds.get(status, "invalid_request_error")
    assert 10 < len(error["message"]) < 600
    return error["message"]


KIND = "application/json"
JSON = {"content-type": KIND}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", JSON, 400, "invalid_json"),
        (b"{", JSON, 400, "invalid_json"),
        (b"{'prompt': 'x'}", JSON, 400, "invalid_json"),
        (b"\xff\xfe{}", JSON, 400, "invalid_json"),
        (b'{"temperature": NaN}', JSON, 400, "invalid_json"),
        (b'{"temperature": -Infinity}', JSON, 400, "invalid_json"),
        (b'{"temperature": 1e999}', JSON, 400, "invalid_json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", JSON, 400, "invalid_json"),
        (b'{"prompt": ' + DEEP[:9000].encode() + b"}", JSON, 400, "invalid_json"),
        (b"[" * 80 + b"]" * 80, JSON, 400, "invalid_json"),
        (b"[]", JSON, 400, "invalid_type"),
        (b'"prompt"', JSON, 400, "invalid_type"),
        (b"null", JSON, 400, "invalid_type"),
        (b"{}", {}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (
            b"{}",
            {"content-type": f"{KIND}; charset=utf-16"},
            415,
            "unsupported_media_type",
        ),
        (b"\x1f\x8b", JSON | {"content-encoding": "gzip"}, 415, "unsupported_media_type"),
        (b"{}", JSON | {"content-encoding": "br"}, 415, "unsupported_media_type"),
        (b'{"user": "' + b"x" * MOST_BODY + b'"}', JSON, 413, "request_too_large"),
        (b" " * (20 * MOST_BODY), JSON, 413, "request_too_large"),
    ],
)
def test_a_body_that_is_none_is_refused(path, body, headers, status, code, ask):
    check_refused(ask(path, body, headers), status, code, None)


def test_a_body_may_come_in_parts_without_saying_how_long_it_is(ask):
    async def parts():
        for _ in range(50):
            yield b" " * 1000

    check_refused(ask("/v1/completions", parts(), JSON), 413, "request_too_large", None)


BOTH = [
    ({"model": "gpt-9"}, "model_not_found", "model"),
    ({"model": 7}, "model_not_found", "model"),
    ({"model": ""}, "model_not_found", "model"),
    ({"model": SURROGATE}, "model_not_found", "model"),
    ({SURROGATE: 1}, "unknown_parameter", SURROGATE),
    (
        {"stream": True, "stream_options": {SURROGATE: 1}},
        "unknown_parameter",
        f"stream_options.{SURROGATE}",
    ),
    ({"temperature": SURROGATE}, "invalid_type", "temperature"),
    ({"temperature": "1"}, "invalid_type", "temperature"),
    ({"temperature": True}, "invalid_type", "temperature"),
    ({"temperature": -0.1}, "invalid_value", "temperature"),
    ({"temperature": 2.5}, "invalid_value", "temperature"),
    ({"temperature": 1e-40}, "invalid_value", "temperature"),
    ({"temperature": [1]}, "invalid_type", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"top_p": 1.1}, "invalid_value", "top_p"),
    ({"top_k": 1.5}, "invalid_type", "top_k"),
    ({"top_k": -2}, "invalid_value", "top_k"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": -5}, "invalid_value", "max_tokens"),
    ({"max_tokens": "5"}, "invalid_type", "max_tokens"),
    ({"max_tokens": 2**31 - 1}, "context_length_exceeded", "max_tokens"),
    ({"max_tokens": 10**39}, "invalid_value", "max_tokens"),
    ({"n": 0}, "invalid_value", "n"),
    ({"n": 129}, "invalid_value", "n"),
    ({"n": None, "best_of_all": 1}, "unknown_parameter", "best_of_all"),
    ({"seed": -1}, "invalid_value", "seed"),
    ({"seed": 2**31}, "invalid_value", "seed"),
    ({"seed": 0.5}, "invalid_type", "seed"),
    ({"stop": 3}, "invalid_type", "stop"),
    ({"stop": ["a", 3]}, "invalid_type", "stop"),
    ({"stop": {"a": 1}}, "invalid_type", "stop"),
    ({"stop": ""}, "invalid_value", "stop"),
    ({"stop": ["a"] * 17}, "invalid_value", "stop"),
    ({"stop": "a" * 257}, "invalid_value", "stop"),
    ({"stop": SURROGATE}, "invalid_value", "stop"),
    ({"stream": "yes"}, "invalid_type", "stream"),
    ({"stream": 1}, "invalid_type", "stream"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"stream": True, "stream_options": []}, "invalid_type", "stream_options"),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        "invalid_type",
        "stream_options.include_usage",
    ),
    (
        {"stream": True, "stream_options": {"usage": True}},
        "unknown_parameter",
        "stream_options.usage",
    ),
    ({"frequency_penalty": 0.5}, "unsupported_parameter", "frequency_penalty"),
    ({"presence_penalty": False}, "unsupported_parameter", "presence_penalty"),
    ({"repetition_penalty": 1.1}, "unsupported_parameter", "repetition_penalty"),
    ({"min_p": 0.1}, "unsupported_parameter", "min_p"),
    ({"logit_bias": {"50256": -100}}, "unsupported_parameter", "logit_bias"),
    ({"service_tier": "flex"}, "unsupported_parameter", "service_tier"),
    ({"ignore_eos": "no"}, "invalid_type", "ignore_eos"),
    ({"temprature": 1}, "unknown_parameter", "temprature"),
]
COMPLETIONS = [
    ({"prompt": None}, "missing_required_parameter", "prompt"),
    ({"prompt": 5}, "invalid_type", "prompt"),
    ({"prompt": []}, "invalid_type", "prompt"),
    ({"prompt": [[]]}, "invalid_type", "prompt"),
    ({"prompt": ["a", 1]}, "invalid_type", "prompt"),
    ({"prompt": [1, True]}, "invalid_type", "prompt"),
    ({"prompt": [1, 2.5]}, "invalid_type", "prompt"),
    ({"prompt": [[1], "a"]}, "invalid_type", "prompt"),
    ({"prompt": [257]}, "invalid_value", "prompt"),
    ({"prompt": [-1]}, "invalid_value", "prompt"),
    ({"prompt": [10**30]}, "invalid_value", "prompt"),
    ({"prompt": "a" + SURROGATE}, "invalid_value", "prompt"),
    ({"prompt": ["a"] * 129}, "invalid_value", "prompt"),
    ({"prompt": ["a"] * 65, "n": 2}, "invalid_value", "n"),
    ({"prompt": "a" * 41}, "context_length_exceeded", "prompt"),
    ({"prompt": "a" * 15_000}, "context_length_exceeded", "prompt"),
    ({"prompt": "a" * 35, "max_tokens": 2**31 - 9}, "context_length_exceeded", "max_tokens"),
    ({"logprobs": True}, "invalid_type", "logprobs"),
    ({"logprobs": 21}, "invalid_value", "logprobs"),
    ({"logprobs": -1}, "invalid_value", "logprobs"),
    ({"top_logprobs": 2}, "unknown_parameter", "top_logprobs"),
    ({"echo": True, "logprobs": 1}, "invalid_value", "echo"),
    ({"echo": "a"}, "invalid_type", "echo"),
    ({"best_of": 3}, "invalid_value", "best_of"),
    ({"suffix": "end"}, "unsupported_parameter", "suffix"),
    ({"messages": HI}, "unknown_parameter", "messages"),
]
ODD_PART = [{"type": SURROGATE}]
IMAGE = [{"type": "image_url", "image_url": {"url": "data:,"}}]
CHAT = [
    ({"messages": None}, "missing_required_parameter", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": "hi"}, "invalid_type", "messages"),
    ({"messages": {"role": "user", "content": "hi"}}, "invalid_type", "messages"),
    ({"messages": ["hi"]}, "invalid_value", "messages"),
    ({"messages": [{"role": "user"}]}, "invalid_value", "messages"),
    ({"messages": [{"content": "hi"}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "invalid_value", "messages"),
    ({"messages": [{"role": ["user"], "content": "hi"}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "user", "content": [5]}]}, "unsupported_value", "messages"),
    ({"messages": [{"role": SURROGATE, "content": "hi"}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "user", "content": ODD_PART}]}, "unsupported_value", "messages"),
    ({"messages": [{"role": "user", "content": IMAGE}]}, "unsupported_value", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "user", "content": SURROGATE}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "user", "content": "<|endoftext|>"}]}, "invalid_value", "messages"),
    ({"messages": HI * 9}, "context_length_exceeded", "messages"),
    ({"prompt": "hi"}, "unknown_parameter", "prompt"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "invalid_value", "max_tokens"),
    ({"max_completion_tokens": 0}, "invalid_value", "max_completion_tokens"),
    ({"logprobs": 2}, "invalid_type", "logprobs"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
    ({"tool_choice": "required"}, "unsupported_parameter", "tool_choice"),
    ({"functions": [{}]}, "unsupported_parameter", "functions"),
    ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
    ({"reasoning_effort": "low"}, "unsupported_parameter", "reasoning_effort"),
    ({"modalities": ["audio"]}, "unsupported_parameter", "modalities"),
    ({"store": True}, "unsupported_parameter", "store"),
]


def list_cases():
    """Each wrong field beside what is right."""
    bodies = {"completions": {"prompt": "hi"}, "chat/completions": {"messages": HI}}
    tables = {"completions": COMPLETIONS, "chat/completions": CHAT}
    for path, right in bodies.items():
        for wrong, code, param in [*BOTH, *tables[path]]:
            body = {"model": NAME, "max_tokens": 4, **right, **wrong}
            yield pytest.param(f"/v1/{path}", body, code, param, id=f"{path}-{str(wrong)[:60]}")


@pytest.mark.parametrize(("path", "body", "code", "param"), [*list_cases()])
def test_a_wrong_field_is_refused_by_name(path, body, code, param, ask):
    status = 404 if code == "model_not_found" else 400
    check_refused(ask(path, json.dumps(body).encode(), JSON), status, code, param)
