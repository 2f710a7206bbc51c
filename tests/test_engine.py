"""The engine's thread, and readers in event loops and other threads; the model is made up."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from made_up_runner import MadeUpRunner, make_sizes
from test_engine_core import V, alone, make_request

from moejax.config.errors import ConfigError
from moejax.data.byte_tokenizer import ByteTokenizer
from moejax.inference.engine.engine import Engine, FullError, StoppedError
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.readers import LoopPost
from moejax.inference.engine.texts import TextRules

ENDLESS = 10**8
"""Tokens of a text that ends when it is cancelled."""


@pytest.fixture
def make_engine():
    """Engines that are closed at the end; by default with a window, so that texts may be long."""
    engines = []

    def make(window=20, ends=(256, 9), fails_after=None, **settings):
        rules = TextRules(
            tokenizer=ByteTokenizer(), ends=frozenset(ends), vocab_size=V, window=window
        )
        runner = MadeUpRunner(make_sizes(pages=65), V, window)
        runner.fails_after = fails_after
        engines.append(Engine(runner, rules, EngineSettings(**settings)))
        return engines[-1], rules

    yield make
    for engine in engines:
        engine.close(drain=False)
        assert not engine._thread.is_alive() and not engine._readers


def make_requests(count: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [
        make_request(rng.integers(0, V, int(rng.integers(1, 20))), int(rng.integers(1, 30)))
        for _ in range(count)
    ]


async def read(stream) -> tuple[str, list[int]]:
    pieces = [piece async for piece in stream]
    ids = [token.id for piece in pieces for token in piece.tokens]
    return "".join(piece.text for piece in pieces), ids


def wait_until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it does not come")


def idle(engine: Engine) -> bool:
    stats = engine.stats()
    return stats.running == stats.waiting == stats.pages_used == 0


def test_readers_in_several_loops_and_threads_get_their_own_texts(make_engine):
    engine, rules = make_engine()

    def in_a_loop(seed: int) -> None:
        async def ask() -> None:
            requests = make_requests(15, seed)
            texts = await asyncio.gather(*(read(engine.submit(one)) for one in requests))
            for request, (text, ids) in zip(requests, texts, strict=True):
                expected = alone(request, rules)
                assert (text, ids) == (expected.text, expected.ids)

        asyncio.run(ask())

    def without_a_loop(seed: int) -> None:
        requests = make_requests(15, seed)
        pieces: list[str] = [""] * len(requests)

        def add(number, piece):
            pieces[number] += piece.text

        done = engine.run(requests, add)
        assert done == [alone(request, rules) for request in requests]
        assert pieces == [one.text for one in done]

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(in_a_loop, 1), pool.submit(without_a_loop, 2)]:
            future.result()
        for future in [pool.submit(in_a_loop, 3), pool.submit(in_a_loop, 4)]:
            future.result()
    assert idle(engine)
    assert sum(engine.stats().ended.values()) == 60


def test_a_cancelled_text_frees_its_pages_and_harms_no_other(make_engine):
    engine, rules = make_engine(ends=())
    other = make_request([5, 6], 40)

    async def ask() -> None:
        endless = [engine.submit(make_request([one], ENDLESS)) for one in range(3)]
        first = [await anext(stream) for stream in endless]
        assert all(piece.tokens for piece in first)
        waits = asyncio.create_task(read(endless[2]))
        text = asyncio.create_task(read(engine.submit(other)))
        await asyncio.sleep(0.01)
        for stream in endless:
            stream.cancel()
        assert [piece async for piece in endless[0]] == []
        await waits
        assert await text == (alone(other, rules).text, alone(other, rules).ids)

    asyncio.run(ask())
    assert engine.stats().ended["length"] == 1 and engine.stats().ended["cancelled"] == 3
    assert idle(engine)


def test_aborts_at_random_leave_nothing_behind(make_engine):
    engine, rules = make_engine()
    rng = np.random.default_rng(0)

    async def ask_once(request, patience: float | None) -> None:
        stream = engine.submit(request)
        reading = asyncio.create_task(read(stream))
        if patience is None:
            assert (await reading)[0] == alone(request, rules).text
            return
        await asyncio.sleep(patience)
        reading.cancel()
        stream.cancel()

    async def ask() -> None:
        patience = [None if rng.random() < 0.5 else rng.random() * 0.1 for _ in range(200)]
        await asyncio.gather(*map(ask_once, make_requests(200), patience))
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(ask())
    assert idle(engine) and not engine._readers and not engine._core._texts


def test_a_slow_reader_gets_all_that_came_as_one_piece_and_holds_up_nobody(make_engine):
    engine, rules = make_engine(ends=())
    slow, quick = make_request([5, 6], 50), make_request([7], 60)

    async def ask() -> None:
        stream = engine.submit(slow)
        assert await read(engine.submit(quick)) == (
            alone(quick, rules).text,
            alone(quick, rules).ids,
        )
        pieces = [piece async for piece in stream]
        assert len(pieces) == 1 and pieces[0].text == alone(slow, rules).text
        assert len(pieces[0].tokens) == 50 and pieces[0].ended == "length"

    asyncio.run(ask())


def test_more_texts_than_may_wait_are_refused_until_one_has_ended(make_engine):
    engine, _ = make_engine(ends=(), max_queue=2)

    async def ask() -> None:
        streams = [engine.submit(make_request([1], ENDLESS)) for _ in range(4 + 2)]
        with pytest.raises(FullError, match=r"2 texts wait, as many as may \(--max-queue\)"):
            engine.submit(make_request([1], 1))
        streams[0].cancel()
        text = engine.submit(make_request([1], 3))
        for stream in streams:
            stream.cancel()
        await read(text)

    asyncio.run(ask())
    assert idle(engine)
    assert len(engine.run([make_request([1], 2)] * 20)) == 20  # it waits itself


def test_what_can_never_be_answered_is_refused_where_it_is_asked(make_engine):
    engine, _ = make_engine(window=None)
    request = make_request([1] * 60, 10)

    async def ask() -> None:
        engine.submit(request)

    for act in (lambda: asyncio.run(ask()), lambda: engine.run([request])):
        with pytest.raises(ConfigError, match="the cache holds texts of at most 65 tokens"):
            act()
    assert engine.longest == 65


def test_an_error_of_the_model_is_told_to_all_who_wait(make_engine):
    engine, _ = make_engine(ends=(), fails_after=20)

    async def ask() -> None:
        streams = [engine.submit(make_request([1], ENDLESS)) for _ in range(6)]
        for answer in await asyncio.gather(*map(read, streams), return_exceptions=True):
            assert isinstance(answer, StoppedError)
            assert str(answer.__cause__) == "out of everything"
        with pytest.raises(StoppedError, match="out of everything"):
            engine.submit(make_request([1], 1))

    asyncio.run(ask())
    assert "out of everything" in engine.stats().failed
    with pytest.raises(StoppedError):
        engine.run([make_request([1], 1)])
    with pytest.raises(StoppedError):
        engine.between_steps(lambda: None)


def test_a_text_whose_tokens_cannot_be_decoded_ends_alone(make_engine, monkeypatch):
    engine, rules = make_engine(ends=())
    good, bad = make_request([1, 2], 20), make_request([255, 3], 20)
    decode = ByteTokenizer.decode

    def fail(self, ids) -> str:
        if 255 in list(ids)[:2]:
            raise ConfigError("the tokenizer fails")
        return decode(self, ids)

    async def ask() -> list:
        streams = [engine.submit(request) for request in (good, bad, good)]
        return await asyncio.gather(*map(read, streams), return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(ByteTokenizer, "decode", fail)
        first, second, third = asyncio.run(ask())
    assert first[0] == third[0] == alone(good, rules).text
    assert isinstance(second, ConfigError)
    assert engine.stats().ended["failed"] == 1 and idle(engine)


def test_an_error_ends_a_run_without_a_loop(make_engine):
    engine, _ = make_engine(ends=(), fails_after=5)
    with pytest.raises(StoppedError, match="out of everything"):
        engine.run([make_request([1], ENDLESS)])


def test_closing_brings_texts_to_their_ends(make_engine):
    engine, rules = make_engine(ends=())
    requests = [make_request([one], 200) for one in range(12)]

    async def ask() -> None:
        streams = [engine.submit(request) for request in requests]
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await asyncio.sleep(0.001)
        wait_until(lambda: engine._closing)
        assert engine.stats().failed is None
        with pytest.raises(StoppedError, match="has been closed"):
            engine.submit(requests[0])
        for request, stream in zip(requests, streams, strict=True):
            assert (await read(stream))[0] == alone(request, rules).text
        await closing

    asyncio.run(ask())
    assert idle(engine) and engine.stats().failed is None


@pytest.mark.parametrize("settings", [{"drain": False}, {"seconds": 0.01}])
def test_closing_at_once_ends_texts_with_an_error(make_engine, settings):
    engine, _ = make_engine(ends=())

    async def ask() -> None:
        streams = [engine.submit(make_request([one], ENDLESS)) for one in range(6)]
        await anext(streams[0])
        await asyncio.to_thread(engine.close, **settings)
        for answer in await asyncio.gather(*map(read, streams), return_exceptions=True):
            assert isinstance(answer, StoppedError)

    asyncio.run(ask())
    assert idle(engine)


def test_texts_whose_event_loop_is_gone_are_cancelled(make_engine):
    engine, _ = make_engine(ends=())

    async def ask() -> None:
        for one in range(3):
            engine.submit(make_request([one], ENDLESS))

    asyncio.run(ask())
    wait_until(lambda: idle(engine))
    assert engine.stats().ended["cancelled"] == 3


def test_an_event_loop_that_was_woken_and_then_closed_takes_nothing_more():
    loop = asyncio.new_event_loop()
    post = LoopPost(loop)
    post.bring([(None, None)])
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        post.bring([(None, None)])


def test_what_is_done_between_steps_is_done_in_its_thread(make_engine):
    engine, _ = make_engine()
    assert engine.between_steps(threading.get_ident).result() == engine._thread.ident
    assert isinstance(engine.between_steps(lambda: 1 // 0).exception(), ZeroDivisionError)
    assert engine.run([make_request([1], 2)])


def test_it_says_what_it_does(make_engine):
    engine, _ = make_engine(ends=(), window=None)
    engine.run([make_request([1] * 10, 5) for _ in range(3)])
    stats = engine.stats()
    assert stats.seats == 4 and stats.pages == 64
    assert stats.prompt_tokens == 30 and stats.drawn_tokens == 15
    assert sum(stats.first_seconds.counts) == 3 and sum(stats.next_seconds.counts) == 12
    assert stats.first_seconds.sum > 0
    assert stats.ended["length"] == 3
    assert stats.load_LE.tolist() == [[stats.prompt_calls + stats.decode_calls] * 2]
