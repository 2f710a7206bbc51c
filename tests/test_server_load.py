"""Two thousand requests of all kinds at once: good ones are answered, and nothing stays behind."""

import asyncio
import ctypes
import gc
import json
import random
from pathlib import Path

import httpx
import numpy as np
import pytest
from serving import serve

from moejax.inference.server.limits import Limits

COMPLETIONS = "/v1/completions"
AT_ONCE = 24
GOOD, WRONG, HUGE, LEAVES, SLOW = "good", "wrong", "huge", "leaves", "slow"
KINDS = [GOOD] * 5 + [WRONG] * 2 + [HUGE, LEAVES, LEAVES, SLOW]
WRONG_BODIES = [b"{", b"[]", b'{"prompt": NaN}', b'{"prompt": 5}', b'{"prompt": "a", "n": 0}', b""]


def make_body(rng: random.Random, **more) -> dict:
    """A good request, with every kind of setting."""
    prompt = "abcdefgh"[: rng.randint(1, 8)] * rng.randint(1, 3)
    body = {"prompt": prompt, "seed": rng.randrange(1000), "n": rng.randint(1, 3)}
    body |= {"max_tokens": rng.randint(1, 60), "stream": rng.random() < 0.5}
    body |= {"temperature": rng.choice([0, 1.0]), "logprobs": rng.choice([None, 1])}
    return body | more


async def ask_well(client, rng) -> None:
    body = make_body(rng)
    answer = await client.post(COMPLETIONS, json=body)
    assert answer.status_code == 200, answer.text
    if body["stream"]:
        events = [one for one in answer.text.split("\n\n") if one]
        assert events.pop() == "data: [DONE]"
        ends = [json.loads(one[6:])["choices"][0]["finish_reason"] for one in events]
        assert sum(end is not None for end in ends) == body["n"]
    else:
        choices = answer.json()["choices"]
        assert all(one["finish_reason"] for one in choices) and len(choices) == body["n"]


async def ask_wrongly(client, rng) -> None:
    content = rng.choice(WRONG_BODIES)
    answer = await client.post(
        COMPLETIONS, content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400 and "error" in answer.json()


async def ask_too_much(client, rng) -> None:
    """A prompt beyond the context, or a body beyond the limit."""
    size = rng.choice([500, 5_000, 300_000])
    answer = await client.post(COMPLETIONS, json=make_body(rng, prompt="x" * size))
    assert answer.status_code == (413 if size > 100_000 else 400)


async def ask_and_leave(client, rng) -> None:
    """Go away after a moment, in the middle of a stream or of waiting."""
    body = make_body(rng, max_tokens=100_000, ignore_eos=True)
    if body["stream"]:
        async with client.stream("POST", COMPLETIONS, json=body) as answer:
            async for _ in answer.aiter_raw():
                if rng.random() < 0.3:
                    break
    else:
        patience = httpx.Timeout(120, read=rng.uniform(0.01, 0.2))
        with pytest.raises(httpx.ReadTimeout):
            await client.post(COMPLETIONS, json=body, timeout=patience)


async def read_slowly(client, rng) -> None:
    body = make_body(rng, stream=True, logprobs=1)
    async with client.stream("POST", COMPLETIONS, json=body) as answer:
        last = b""
        async for part in answer.aiter_raw():
            last = part
            await asyncio.sleep(rng.uniform(0, 0.02))
    assert last.endswith(b"data: [DONE]\n\n")


ASK = {
    GOOD: ask_well,
    WRONG: ask_wrongly,
    HUGE: ask_too_much,
    LEAVES: ask_and_leave,
    SLOW: read_slowly,
}


async def ask_all(url: str, count: int, seed: int) -> None:
    """So many requests, ``AT_ONCE`` at a time."""
    rng = random.Random(seed)
    left = [(rng.choice(KINDS), rng.randrange(2**32)) for _ in range(count)]
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=8)

    async def work(client) -> None:
        while left:
            kind, own = left.pop()
            await ASK[kind](client, random.Random(own))

    async with (
        httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(AT_ONCE):
            group.create_task(work(client))


@pytest.mark.slow
def test_nothing_stays_behind_two_thousand_requests():
    with serve(queue=500, limits=Limits(max_body=100_000, max_time=100)) as server:
        engine, state = server.served.engine, server.listener._server.server_state

        def settle() -> tuple[float, int]:
            """Nothing goes on any more: the megabytes of this process, and the objects in it."""

            async def wait() -> None:
                while state.tasks or state.connections or engine.stats().running:
                    await asyncio.sleep(0.05)

            asyncio.run(asyncio.wait_for(wait(), 30))
            engine._core.runner.log.clear()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, of other tests' too
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * 4096 / 1e6, len(gc.get_objects())

        counts = []  # after the first 500, what is made once is there
        for seed, requests in enumerate((500, 750, 750)):
            asyncio.run(ask_all(server.url, requests, seed))
            counts.append(settle())
        stats = engine.stats()
        megabytes, objects = np.diff(counts, axis=0).T
        print(megabytes, objects, stats)
        assert stats.running == stats.waiting == stats.pages_used == 0
        assert not engine._readers and not engine._orders and not engine._core._texts
        assert sum(server.served.tally.answers.values()) > 1700
        assert server.served.tally.gone > 200
        assert objects.sum() < 500
        assert megabytes.min() < 10  # a leak would show in both halves
