"""The server in this process, around a made-up model: OpenAI's answers, whole and streamed."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest
from made_up_runner import continue_alone
from prometheus_client.parser import text_string_to_metric_families
from serving import CONTEXT, END, NAME, VOCAB, ask_app, make_model, make_served

from moejax.config import ConfigError
from moejax.inference.engine.requests import Request
from moejax.inference.sampling import Sampling
from moejax.inference.server.asked import ANY_SEED
from moejax.inference.server.keys import read_keys
from moejax.inference.server.limits import Limits

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
HI_TEXT = "User: hi\nAssistant: "


@pytest.fixture(scope="module")
def served():
    made = make_served()
    yield made
    made.engine.close()


def ask(served, *calls, keys=(), hosts=()) -> list:
    """Answers to calls: a method, a path, and the arguments of httpx."""

    async def run() -> list:
        async with ask_app(served, keys, hosts) as client:
            return [await client.request(method, path, **more) for method, path, more in calls]

    return asyncio.run(run())


def post(served, path: str, **body) -> dict:
    """The whole answer to a body, of which a seed is a part."""
    (answer,) = ask(served, ("POST", path, {"json": {"seed": 5, **body}}))
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(served, path: str, **body) -> list[dict]:
    """The events of a streamed answer."""
    body = {"seed": 5, "stream": True, **body}
    (answer,) = ask(served, ("POST", path, {"json": body}))
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def expect(prompt, tokens: int, number: int = 0, **sampling) -> bytes:
    """What the rule of the made-up model gives, as bytes, the end left out."""
    ids = np.asarray([END, *prompt.encode()] if isinstance(prompt, str) else prompt, np.int32)
    settings = Sampling(tokens=tokens, **{"temperature": 1.0, "seed": 5, **sampling})
    made = Request(prompt=ids, sampling=settings, number=number)
    return bytes(i for i in continue_alone(made, {END}, VOCAB, CONTEXT) if i != END)


def show(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def test_a_completion_is_what_the_model_gives(served):
    answer = post(served, COMPLETIONS, model=NAME, prompt="def ", max_tokens=12)
    (choice,) = answer["choices"]
    text = expect("def ", 12)
    assert choice["text"] == show(text) and choice["index"] == 0 and choice["logprobs"] is None
    assert choice["finish_reason"] in ("length", "stop")
    assert (answer["object"], answer["model"]) == ("text_completion", NAME)
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": len(text),
        "total_tokens": 5 + len(text),
    }


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("one", 1),
        (["one", "two"], 2),
        ([END, 7, 8], 1),
        ([[END, 7, 8], [9], [10, 11]], 3),
    ],
)
def test_every_form_of_prompt_and_n_number_the_texts_by_their_index(served, prompt, count):
    answer = post(served, COMPLETIONS, prompt=prompt, n=2, max_tokens=5, temperature=0.5)
    prompts = prompt if count > 1 else [prompt]
    assert [one["index"] for one in answer["choices"]] == list(range(2 * count))
    for index, choice in enumerate(answer["choices"]):
        expected = expect(prompts[index // 2], 5, index, temperature=0.5)
        assert choice["text"] == show(expected)


def test_a_text_may_be_longer_than_the_context(served):
    (choice,) = post(served, COMPLETIONS, prompt="x", max_tokens=90, stop=["\x00"])["choices"]
    assert choice["text"] == show(expect("x", 90).partition(b"\0")[0])


def test_settings_of_the_draw_reach_the_engine(served):
    given = {"temperature": 0.25, "top_p": 0.5, "top_k": 7, "seed": ANY_SEED}
    answer = post(served, COMPLETIONS, prompt="x", max_tokens=9, **given)
    assert answer["choices"][0]["text"] == show(expect("x", 9, **given))
    without = post(served, COMPLETIONS, prompt="x", max_tokens=9, top_k=-1)
    assert without["choices"][0]["text"] == show(expect("x", 9))


def test_without_a_seed_texts_differ(served):
    texts = {
        post(served, COMPLETIONS, prompt="x", seed=None)["choices"][0]["text"] for _ in range(3)
    }
    assert len(texts) == 3


def test_echo_puts_the_prompt_before_each_text(served):
    answer = post(served, COMPLETIONS, prompt=["one", "two"], echo=True, max_tokens=3)
    assert [one["text"][:3] for one in answer["choices"]] == ["one", "two"]
    events = stream(served, COMPLETIONS, prompt=[111, 110, 101], echo=True, max_tokens=3)
    assert "".join(one["choices"][0]["text"] for one in events).startswith("one")


def find_stop(tokens: int = 40) -> tuple[str, str]:
    """Two letters that come one behind the other in a text, and the text before them."""
    data = expect("stop", tokens)
    at = next(i for i in range(1, len(data) - 1) if max(data[i], data[i + 1]) < 128)
    return data[at : at + 2].decode(), show(data[:at])


@pytest.mark.parametrize("several", [False, True])
def test_a_stop_string_ends_the_text_before_it(served, several):
    stop, before = find_stop()
    given = ["\x00\x00\x00", stop] if several else stop
    (choice,) = post(served, COMPLETIONS, prompt="stop", max_tokens=40, stop=given)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (before, "stop")
    events = stream(served, COMPLETIONS, prompt="stop", max_tokens=40, stop=given)
    assert "".join(one["choices"][0]["text"] for one in events) == before


def test_logprobs_of_a_completion(served):
    (choice,) = post(served, COMPLETIONS, prompt="x", max_tokens=8, logprobs=2)["choices"]
    found = choice["logprobs"]
    ids = list(expect("x", 8))
    names = [chr(i) if i < 128 else f"bytes:\\x{i:02x}" for i in ids]
    assert found["tokens"] == names
    assert found["token_logprobs"] == [-i for i in ids]
    for i, name, best in zip(ids, names, found["top_logprobs"], strict=True):
        assert len(best) == 2 and best[name] == -i
    assert found["text_offset"][0] == 0 and len(found["text_offset"]) == len(ids)
    events = stream(served, COMPLETIONS, prompt="x", max_tokens=8, logprobs=0)
    parts = [one["choices"][0]["logprobs"] for one in events]
    assert [name for part in parts for name in part["tokens"]] == names
    assert all(part["top_logprobs"] is None for part in parts)


def test_an_answer_in_a_conversation(served):
    answer = post(served, CHAT, messages=HI, max_completion_tokens=6, n=2)
    assert answer["object"] == "chat.completion"
    prompt = list(HI_TEXT.encode())
    for index, choice in enumerate(answer["choices"]):
        said = show(expect(prompt, 6, index))
        assert choice["message"] == {"role": "assistant", "content": said, "refusal": None}
    assert answer["usage"]["prompt_tokens"] == len(prompt)


def test_a_content_may_be_a_list_of_texts(served):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    one = post(served, CHAT, messages=[{"role": "user", "content": parts}], max_tokens=6)
    other = post(served, CHAT, messages=[{"role": "user", "content": "hi"}], max_tokens=6)
    assert one["choices"] == other["choices"]


def test_an_answer_without_a_number_of_tokens_may_be_as_long_as_the_context(served):
    answer = post(served, CHAT, messages=HI, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == CONTEXT
    assert answer["choices"][0]["finish_reason"] == "length"


def test_logprobs_of_a_conversation(served):
    body = {"messages": HI, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    content = post(served, CHAT, **body)["choices"][0]["logprobs"]["content"]
    ids = list(expect(list(HI_TEXT.encode()), 6))
    assert [one["bytes"] for one in content] == [[i] for i in ids]
    assert all(one["logprob"] == one["top_logprobs"][0]["logprob"] for one in content)
    bare = post(served, CHAT, messages=HI, max_tokens=6, logprobs=True)["choices"][0]["logprobs"]
    assert [one["top_logprobs"] for one in bare["content"]] == [[]] * len(ids)


@pytest.mark.parametrize("usage", [False, True])
def test_the_events_of_a_stream_put_together_are_the_answer(served, usage):
    body = {"messages": HI, "max_tokens": 20, "n": 3}
    whole = post(served, CHAT, **body)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    events = stream(served, CHAT, **body, **options)
    if usage:
        last = events.pop()
        assert last["choices"] == [] and last["usage"] == whole["usage"]
        assert all(one["usage"] is None for one in events)
    assert {one["object"] for one in events} == {"chat.completion.chunk"}
    assert len({one["id"] for one in events}) == 1
    for index, choice in enumerate(whole["choices"]):
        mine = [one["choices"][0] for one in events if one["choices"][0]["index"] == index]
        said = "".join(one["delta"]["content"] for one in mine)
        assert said == choice["message"]["content"]
        assert [one["delta"].get("role") for one in mine][:2] in (
            ["assistant", None],
            ["assistant"],
        )
        finish = [one["finish_reason"] for one in mine]
        assert finish[-1] == choice["finish_reason"] and not any(finish[:-1])


def test_a_body_may_begin_with_a_mark_of_its_bytes(served):
    more = {"headers": {"content-type": "application/json; charset=UTF-8"}}
    calls = [b'\xef\xbb\xbf{"prompt": "a"}', b'{"prompt": "a"}']
    for one in ask(served, *(("POST", COMPLETIONS, {"content": c, **more}) for c in calls)):
        assert one.status_code == 200


def test_what_asks_for_nothing_may_be_there(served):
    body = {
        "messages": HI,
        "user": "me",
        "metadata": {"a": "b"},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "max_tokens": 3,
        "max_completion_tokens": 3,
        "stop": None,
        "temperature": 1,
        "top_logprobs": None,
    }
    assert post(served, CHAT, **body)["choices"]


def test_models_health_and_wrong_paths(served):
    found = ask(
        served,
        ("GET", "/v1/models", {}),
        ("GET", f"/v1/models/{NAME}", {}),
        ("GET", "/v1/models/gpt-9", {}),
        ("GET", "/health", {}),
        ("GET", "/v2", {}),
        ("GET", COMPLETIONS, {}),
        ("POST", f"{COMPLETIONS}/", {"json": {"prompt": "a"}}),
        ("GET", "/v1/models/", {}),
        ("OPTIONS", CHAT, {}),
    )
    assert [one.status_code for one in found] == [200, 200, 404, 200, 404, 405, 404, 404, 405]
    assert "no model of that name" in found[7].json()["error"]["message"]
    assert found[0].json() == {"object": "list", "data": [found[1].json()]}
    assert found[2].json()["error"]["code"] == "model_not_found"
    assert found[4].json()["error"]["code"] == found[5].json()["error"]["code"] == "unknown_url"


def test_metrics_are_prometheus_text():
    served = make_served()
    try:
        post(served, COMPLETIONS, prompt="x", max_tokens=4, ignore_eos=True)
        (answer,) = ask(served, ("GET", "/metrics", {}))
    finally:
        served.engine.close()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation and family.name.startswith("moejax_")
        for one in family.samples:
            found[one.name, *dict(sorted(one.labels.items())).values()] = one.value
    assert found["moejax_drawn_tokens_total",] == 4
    assert found["moejax_texts_total", "length"] == 1
    assert found["moejax_answers_total", COMPLETIONS, "200"] == 1
    assert found["moejax_first_seconds_count",] == 1 and found["moejax_next_seconds_count",] == 3
    assert found["moejax_pages_used",] == found["moejax_running",] == 0
    assert found["moejax_expert_choices_total", "1", "2"] > 0
    assert found["moejax_straggler_ratio", "2"] == 1


def test_the_app_lists_its_paths_for_the_metrics(served):
    ask(served, ("GET", "/some/secret", {}))
    assert {path for path, _ in served.tally.answers} <= {
        COMPLETIONS,
        CHAT,
        "/v1/models",
        "/health",
        "/metrics",
        "other",
    }


def test_keys_are_needed_where_there_are_some(served, tmp_path):
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbf# of my friends\r\n\r\n  one-key \r\nother")  # of Windows
    keys = read_keys(file)
    assert keys == ["one-key", "other"]
    given = [None, "Bearer one-key", "bearer other", "Bearer wrong", "Basic one-key", "one-key"]
    calls = [("GET", "/v1/models", {"headers": {"authorization": g} if g else {}}) for g in given]
    found = ask(served, *calls, ("GET", "/health", {}), ("GET", "/metrics", {}), keys=keys)
    assert [one.status_code for one in found] == [401, 200, 200, 401, 401, 401, 200, 401]
    assert found[0].json()["error"]["code"] == "invalid_api_key"
    assert found[0].headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "content",
    [b"", b"# none\n\n", b"a key\n", "schlüssel\n".encode(), b"\xff", "key\n".encode("utf-16")],
)
def test_a_file_without_good_keys_is_refused(content, tmp_path):
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="--api-key-file"):
        read_keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "missing")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
def test_on_loopback_no_other_name_is_answered(served, host, status):
    call = ("GET", "/v1/models", {"headers": {"host": host}})
    (found,) = ask(served, call, hosts=("127.0.0.1", "localhost", "::1"))
    assert found.status_code == status


def test_a_model_without_a_template_says_how_to_give_one():
    served = make_served(model=make_model(chat_template=None))
    try:
        (answer,) = ask(served, ("POST", CHAT, {"json": {"messages": HI}}))
    finally:
        served.engine.close()
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "no_chat_template"
    assert "--chat-template" in error["message"]


def test_too_many_texts_wait_and_none_of_a_refused_request_goes_on():
    served = make_served(queue=1, slow=0.02)  # beside four seats
    body = {"prompt": ["a"] * 3, "max_tokens": 5, "ignore_eos": True}

    async def ask_twice() -> list:
        async with ask_app(served) as client:
            asked = [client.post(COMPLETIONS, json=body) for _ in range(2)]
            return sorted(await asyncio.gather(*asked), key=lambda one: one.status_code)

    try:
        right, wrong = asyncio.run(ask_twice())
        assert right.status_code == 200 and wrong.status_code == 429
        assert wrong.headers["retry-after"] == "1"
        assert wrong.json()["error"]["type"] == "rate_limit_error"
        assert served.engine.stats().drawn_tokens == 3 * 5
        assert post(served, COMPLETIONS, prompt=["a"] * 5, max_tokens=5)["choices"]
        (never,) = ask(served, ("POST", COMPLETIONS, {"json": body | {"prompt": ["a"] * 6}}))
        assert never.status_code == 400 and "may have 5" in never.json()["error"]["message"]
        assert served.engine.stats().running == 0
    finally:
        served.engine.close()


@pytest.mark.parametrize("name", ["größe", "\udcff of bytes", 'a"b\\'])
def test_a_model_may_have_the_name_of_any_directory(name, served):
    called = replace(served, name=name)
    bodies = [
        {"model": one, "prompt": "a", "stream": stream}
        for one, stream in ((name, False), ("other", False), (name, True))
    ]
    headers = {"content-type": "application/json"}
    calls = [{"content": json.dumps(body), "headers": headers} for body in bodies]
    posts = [("POST", COMPLETIONS, call) for call in calls]
    found = ask(called, ("GET", "/v1/models", {}), ("GET", "/live", {}), *posts)
    assert [one.status_code for one in found] == [200, 200, 200, 404, 200]
    assert found[0].json()["data"][0]["id"] == found[1].json()["model"] == name
    assert found[2].json()["model"] == name and name in found[3].json()["error"]["message"]


def test_an_engine_that_failed_is_told_to_all():
    served = make_served()
    served.engine._core.runner.fails_after = 2
    try:
        body = {"prompt": ["a", "b"], "max_tokens": 9, "ignore_eos": True}
        events = stream_until_error(served, **body)
        assert events[-1]["error"]["code"] == "stopped"
        later, health = ask(
            served, ("POST", COMPLETIONS, {"json": {"prompt": "x"}}), ("GET", "/health", {})
        )
        assert later.status_code == health.status_code == 503
        assert later.json()["error"]["type"] == "server_error"
        (metrics,) = ask(served, ("GET", "/metrics", {}))
        assert "moejax_up 0.0" in metrics.text
    finally:
        served.engine.close()


def stream_until_error(served, **body) -> list[dict]:
    """The events of a stream whose last one is an error."""
    (answer,) = ask(served, ("POST", COMPLETIONS, {"json": body | {"stream": True}}))
    events = [one for one in answer.text.split("\n\n") if one]
    assert "[DONE]" not in events[-1]
    return [json.loads(one.removeprefix("data: ")) for one in events]


def test_time_that_is_over_is_an_error_and_frees_the_pages():
    served = make_served(limits=Limits(max_time=0.2), slow=0.05)
    try:
        body = {"prompt": "x", "max_tokens": 40, "ignore_eos": True}
        (answer,) = ask(served, ("POST", COMPLETIONS, {"json": body}))
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        assert stream_until_error(served, **body)[-1]["error"]["code"] == "timeout"
        stats = served.engine.stats()
        assert stats.ended["cancelled"] == 2 and stats.pages_used == stats.running == 0
    finally:
        served.engine.close()


def test_an_own_failure_is_told_without_details(served, monkeypatch, caplog):
    monkeypatch.setattr(type(served.model), "begin", lambda *_: 1 / 0)

    async def run():
        async with ask_app(served) as client:
            client._transport.raise_app_exceptions = False
            return await client.post(COMPLETIONS, json={"prompt": "x"})

    answer = asyncio.run(run())
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
    assert "division" not in answer.text and "ZeroDivisionError" in caplog.text
