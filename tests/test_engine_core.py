"""The engine's host side, with a model that is made up: whatever runs beside a text, wherever it
joins, with chunks, shared pages, windows and pages that run out, it is the text that it is alone.
"""

from collections import Counter

import numpy as np
import pytest
from made_up_runner import MadeUpRunner, continue_alone, make_sizes

from moejax.config.attention import AttentionConfig
from moejax.config.errors import ConfigError
from moejax.data.byte_tokenizer import ByteTokenizer
from moejax.inference.engine.core import Core
from moejax.inference.engine.requests import Request
from moejax.inference.engine.sizes import choose_page
from moejax.inference.engine.texts import TextRules
from moejax.inference.growing_text import Continuation, GrowingText
from moejax.inference.sampling import Sampling

V = 257


def make_core(window=None, ends=(), attention=None, fails_after=None, **changes):
    """A core with a runner of small sizes; settings of the core, or changes of the sizes."""
    own = {name: changes.pop(name) for name in ("share", "prompt_calls") if name in changes}
    make_drafter = changes.pop("make_drafter", None)
    rules = TextRules(
        tokenizer=ByteTokenizer(),
        ends=frozenset(ends),
        vocab_size=V,
        window=window,
        attention=attention,
    )
    runner = MadeUpRunner(make_sizes(**changes), V, window)
    runner.fails_after = fails_after
    drafter = make_drafter and make_drafter(runner)
    return Core(runner, rules, drafter=drafter, **own), rules


def make_request(prompt, tokens, **changes) -> Request:
    number = changes.pop("number", 0)
    logprobs, routes = changes.pop("logprobs", None), changes.pop("routes", False)
    return Request(
        prompt=np.asarray(prompt, np.int32),
        sampling=Sampling(tokens=tokens, **changes),
        number=number,
        logprobs=logprobs,
        routes=routes,
    )


def alone(request: Request, rules: TextRules) -> Continuation:
    """What a request is answered with by the rule alone."""
    text = GrowingText(request.prompt, request.sampling, rules.ends, rules.tokenizer)
    tokens = continue_alone(request, rules.ends, V, rules.window)
    words = ""
    for token in tokens:
        if not text.ended:
            words += text.add(token)
    return Continuation(text=words, ids=text.ids, ended=text.ended)


class Readers:
    """All pieces of all texts."""

    def __init__(self):
        self.pieces: dict[int, list] = {}
        self.ended_at: dict[int, int] = {}
        self.steps = 0

    def step(self, core: Core) -> None:
        self.steps += 1
        for number, piece in core.step():
            assert number not in self.ended_at, "a piece after the last one"
            self.pieces.setdefault(number, []).append(piece)
            if piece.ended:
                self.ended_at[number] = self.steps

    def run(self, core: Core, steps: int = 10_000) -> None:
        while core.busy:
            self.step(core)
            check_pages(core)
            assert self.steps < steps, "it does not come to an end"

    def whole(self, number: int) -> Continuation:
        pieces = self.pieces[number]
        return Continuation(
            text="".join(piece.text for piece in pieces),
            ids=[token.id for piece in pieces for token in piece.tokens],
            ended=pieces[-1].ended,
        )


def check_pages(core: Core) -> None:
    """Each page is free, kept or used by as many texts as it counts; texts have enough of them."""
    schedule, sizes = core._schedule, core.runner.sizes
    for lane, pool in enumerate(schedule.pools):
        texts = [text for text in schedule.running if text.lane == lane]
        used = Counter(page for text in texts for page in text.pages)
        assert {p: n for p, n in enumerate(pool.users) if n} == used
        assert 0 not in used
        assert sorted([*pool._free, *pool._kept, *used]) == list(range(1, sizes.pages))
        seats = [text.seat for text in texts]
        assert sorted([*seats, *schedule.seats._free[lane]]) == list(range(sizes.seats))
        assert all(
            text.written <= (text.gone + len(text.pages)) * sizes.page
            and (not text.pages or text.written > text.gone * sizes.page)
            for text in texts
        )
    assert [text.id for text in schedule.running] == sorted(text.id for text in schedule.running)


def check_all_free(core: Core) -> None:
    sizes, stats = core.runner.sizes, core.stats()
    assert stats.pages_used == stats.running == stats.waiting == 0
    assert all(pool.available == sizes.pages - 1 for pool in core._schedule.pools)
    assert stats.waste == 0.0


def make_schedule(rng: np.random.Generator, **changes):
    """A core of random sizes and random requests, each with the step at which it is asked for and,
    of some, the one at which it is cancelled.
    """
    page = int(rng.choice([1, 2, 4, 8]))
    chunk = page * int(rng.integers(1, 5))
    seats = int(rng.integers(1, 7))
    longest = 72
    window = int(rng.choice([5, 12, 30])) if rng.random() < 0.4 else None
    most = -(-longest // page) + chunk // page + 1
    core, rules = make_core(
        window,
        ends=(256, *range(int(rng.integers(0, 6)))),
        lanes=int(rng.integers(1, 4)),
        seats=seats,
        page=page,
        pages=1 + int(most * rng.uniform(1, 1.6)),
        rows=tuple(sorted({1, (seats + 1) // 2, seats})),
        prompt_rows=tuple(sorted({1, int(rng.integers(1, seats + 1))})),
        prompt_tables=tuple(sorted({-(-most // 2), most})),
        chunk=chunk,
        short=page * (seats % 2),
        tables=tuple(sorted({-(-most // 3), most})),
        share=bool(rng.random() < 0.8),
        prompt_calls=int(rng.integers(1, 4)),
        **changes,
    )
    beginnings = [rng.integers(0, V, 30) for _ in range(2)]
    plan = []
    for _ in range(int(rng.integers(10, 26))):
        prompt = np.concatenate(
            [
                beginnings[rng.integers(2)][: rng.integers(0, 31)],
                rng.integers(0, V, rng.integers(1, 12)),
            ]
        )
        stop = tuple("etaoinshrdlu ") if rng.random() < 0.3 else ()
        request = make_request(
            prompt[:window],
            int(rng.integers(1, 30)),
            number=int(rng.integers(0, 3)),
            seed=int(rng.integers(0, 3)),
            temperature=float(rng.choice([0, 0.7])),
            top_k=rng.choice([None, 3]),
            stop=stop,
        )
        asked = int(rng.integers(0, 60))
        cancelled = asked + int(rng.integers(0, 30)) if rng.random() < 0.2 else None
        plan.append((asked, cancelled, request))
    return core, rules, sorted(plan, key=lambda one: one[0])


@pytest.mark.parametrize("seed", range(60))
def test_each_text_is_what_it_is_alone_whatever_runs_beside_it(seed):
    check_texts(*make_schedule(np.random.default_rng(seed)))


def check_texts(core: Core, rules: TextRules, plan: list) -> None:
    """Each text of a schedule is what it is alone, and leaves nothing behind."""
    readers = Readers()
    cancelled = set()
    while core.busy or readers.steps < 100:
        for number, (asked, cancel, request) in enumerate(plan):
            if asked == readers.steps:
                core.check(request)
                core.add(number, request)
            if cancel == readers.steps and number not in readers.ended_at:
                core.cancel(number)
                cancelled.add(number)
        check_pages(core)
        readers.step(core)
        check_pages(core)
        assert readers.steps < 5000
    for number, (_, _, request) in enumerate(plan):
        expected = alone(request, rules)
        if number in cancelled:
            assert number not in readers.ended_at
            got = "".join(piece.text for piece in readers.pieces.get(number, []))
            assert expected.text.startswith(got)
        else:
            assert readers.whole(number) == expected
    check_all_free(core)
    stats = core.stats()
    assert stats.ended["cancelled"] == len(cancelled)
    early = [one for one in range(len(plan)) if one not in cancelled]
    early = [one for one in early if readers.whole(one).ended != "length"]
    assert stats.lost_rows <= len(early) + len(cancelled)  # at most one each
    got = sum(len(piece.tokens) for pieces in readers.pieces.values() for piece in pieces)
    assert stats.drawn_tokens == got


def test_the_random_schedules_have_all_that_may_go_wrong():
    """Else the test above would say little."""
    seen = Counter()
    for seed in range(20):
        core, _, plan = make_schedule(np.random.default_rng(seed))
        for number, (_, _, request) in enumerate(plan):
            core.add(number, request)
        Readers().run(core)
        stats = core.stats()
        seen += Counter(put_back=stats.put_back, hits=stats.prefix_hits, lost=stats.lost_rows)
        seen += Counter(stats.ended)
    kinds = ("put_back", "hits", "lost", "end", "stop", "length")
    assert min(seen[kind] for kind in kinds) > 20, seen


def test_the_next_call_is_given_before_the_tokens_of_the_last_are_read():
    core, _ = make_core()
    for number in range(4):
        core.add(number, make_request([number] * 5, 9))
    Readers().run(core)
    log = core.runner.log
    last = core.runner.calls
    for place, (what, call) in enumerate(log):
        if what == "read" and call < last:
            assert log[place - 1] == ("call", call + 1)
    assert [call for what, call in log if what == "read"] == list(range(1, last + 1))


def test_a_prompt_whose_chunks_go_on_is_not_waited_for():
    core, _ = make_core()
    core.add(0, make_request(range(20), 1))  # chunks of 8, 8 and 4
    Readers().run(core)
    assert core.runner.log == [("call", 1), ("call", 2), ("call", 3), ("read", 3)]


@pytest.mark.parametrize(
    ("lengths", "read"),
    [
        ([4], [(1, 4)]),
        ([5], [(1, 8)]),
        ([11], [(1, 8), (1, 4)]),
        ([3, 4], [(2, 8)]),  # one that is short is not for two
    ],
)
def test_a_prompt_is_read_by_the_smallest_call_that_holds_it(lengths, read):
    core, _ = make_core(short=4)
    shapes = []
    extend = core.runner.extend

    def note(call):
        shapes.append(call.token_BN.shape)
        return extend(call)

    core.runner.extend = note
    for number, length in enumerate(lengths):
        core.add(number, make_request([number] * length, 1))
    Readers().run(core)
    assert shapes == read


def test_a_text_with_a_given_length_costs_no_row_too_many():
    core, _ = make_core()
    for number in range(3):
        core.add(number, make_request([1, 2], 2 + 5 * number))
    Readers().run(core)
    assert core.stats().lost_rows == 0 and core.stats().rows == 2 + 7 + 12


@pytest.mark.parametrize("prompt_calls", [1, 2])
def test_prompts_are_read_beside_running_texts(prompt_calls):
    """Neither stops the other."""
    core, _ = make_core(prompt_calls=prompt_calls, pages=200, tables=(64,), prompt_tables=(64,))
    core.add(0, make_request([1], 60))
    readers = Readers()
    for _ in range(3):
        readers.step(core)
    core.add(1, make_request(np.arange(160) % 250, 1))
    steps = readers.steps
    while 1 not in readers.ended_at:
        readers.step(core)
    chunks, between = 20, 20 // prompt_calls
    assert abs(readers.ended_at[1] - steps - chunks - between) <= 3
    assert abs(len(readers.pieces[0]) - between) <= 4


def test_none_waits_for_ever_while_others_come():
    """A text that needs most of the pages waits until those before it have ended, no longer."""
    core, rules = make_core(pages=17)
    readers = Readers()
    big = make_request(np.arange(50) % 250, 10)
    requests = {}
    for number in range(150):
        requests[number] = big if number == 10 else make_request([number], 12)
        core.add(number, requests[number])
        readers.step(core)
        check_pages(core)
    assert len(core._schedule.waiting) > 4  # more come than can be answered
    ends = sorted(readers.ended_at, key=lambda number: readers.ended_at[number])
    assert ends.index(10) <= 14
    readers.run(core)
    assert readers.whole(10) == alone(big, rules)


def test_of_the_texts_the_last_one_is_put_back_and_the_first_one_never():
    core, _ = make_core(pages=17, share=False)
    for number in range(8):
        core.add(number, make_request([number] * 4, 50))
    readers = Readers()
    readers.run(core)
    assert core.stats().put_back > 0
    ends = [readers.ended_at[number] for number in range(8)]
    assert ends == sorted(ends) and ends[0] < 60  # as if it were alone


def test_beginnings_are_read_once():
    core, rules = make_core(pages=65)
    beginning = list(range(20))
    requests = [make_request([*beginning, 100 + number], 6) for number in range(6)]
    for number, request in enumerate(requests):
        core.add(number, request)
        readers = Readers()
        readers.run(core)
        assert readers.whole(number) == alone(request, rules)
    stats = core.stats()
    assert stats.prefix_hits == 5 and stats.prefix_tokens == 5 * 20
    assert stats.prompt_tokens == 6 * 21
    assert stats.pages_kept >= 5


def test_a_conversation_goes_on_from_its_own_pages():
    """What a text has been answered with is a beginning, too."""
    core, rules = make_core(pages=65)
    first = make_request(range(6), 15)
    core.add(0, first)
    readers = Readers()
    readers.run(core)
    second = make_request([*range(6), *readers.whole(0).ids, 5, 6], 5)
    core.add(1, second)
    readers.run(core)
    assert readers.whole(1) == alone(second, rules)
    assert core.stats().prefix_tokens == 20  # of 6 + 15 tokens, the last of which was not read


def test_texts_share_pages_at_the_same_time_also_when_they_came_together():
    core, _ = make_core(pages=65, prompt_rows=(1,))
    for number in range(4):
        core.add(number, make_request([*range(24), number], 8))
    readers = Readers()
    most = 0
    while core.busy:
        readers.step(core)
        most = max(most, core.stats().pages_shared)
    assert most == 6 and core.stats().pages_used == 0


def test_with_a_window_a_long_text_has_few_pages():
    core, rules = make_core(window=10, pages=9, tables=(4,), prompt_tables=(5,))
    request = make_request(range(10), 300)
    core.check(request)
    core.add(0, request)
    readers = Readers()
    most = 0
    while core.busy:
        readers.step(core)
        most = max(most, core.stats().pages_used)
    assert readers.whole(0) == alone(request, rules)
    assert most <= 4  # 10 positions, and those of a page


def test_cancelled_texts_free_their_pages_for_the_next_step():
    core, _ = make_core(pages=17, share=False)
    for number in range(3):
        core.add(number, make_request([number] * 20, 44))
    readers = Readers()
    for _ in range(5):
        readers.step(core)
    assert core.stats().waiting == 1
    core.cancel(0)
    core.cancel(0)  # is nothing any more
    core.cancel(99)
    readers.step(core)
    assert core.stats().waiting == 0 and core.stats().ended["cancelled"] == 1
    before = len(readers.pieces.get(0, []))
    readers.run(core)
    assert len(readers.pieces.get(0, [])) == before and 0 not in readers.ended_at


@pytest.mark.parametrize("window", [128, 256, 512])
def test_little_of_the_cache_is_wasted_at_mixed_lengths(window, monkeypatch):
    """With the page that is chosen for texts of this length, also where the window moves on."""
    page, chunk = choose_page(window), 64
    most = -(-(window - 1) // page) + chunk // page
    core, _ = make_core(
        window,
        seats=32,
        page=page,
        pages=32 * most,
        rows=(32,),
        tables=(most,),
        prompt_rows=(4,),
        prompt_tables=(most,),
        chunk=chunk,
    )
    monkeypatch.setattr(MadeUpRunner, "_extend_row", lambda *call: [1])  # the texts do not matter
    rng = np.random.default_rng(0)
    for number in range(64):
        prompt = rng.integers(0, 256, int(rng.integers(8, window)))
        core.add(number, make_request(prompt, int(rng.integers(16, window))))
    waste = []
    while core.busy and len(waste) < 200:
        core.step()
        running = core._schedule.running
        if len(running) == 32 and all(text.pages for text in running):
            waste.append(core.stats().waste)
    assert len(waste) > 50 and max(waste) < 0.04


def test_scores_and_routes_come_with_the_tokens_that_asked_for_them():
    core, _ = make_core()
    core.add(0, make_request([1] * 11, 3, logprobs=2, routes=True))
    core.add(1, make_request([2] * 5, 3))
    readers = Readers()
    readers.run(core)
    tokens = [token for piece in readers.pieces[0] for token in piece.tokens]
    for position, token in enumerate(tokens, 10):
        assert token.logprob == -token.id
        assert token.best == ((token.id, -token.id), (token.id + 1, -token.id - 1))
        assert token.expert_LK.item() == position and token.weight_LK.item() == position / 2
    assert len(tokens) == 3
    others = [token for piece in readers.pieces[1] for token in piece.tokens]
    assert all(token.logprob is None and token.expert_LK is None for token in others)


REFUSED = [
    ({}, [], 1, "prompt 1 is empty"),
    ({}, [5] * 100, 30, "a prompt of 100 tokens and 30 to be generated: .* at most 65 tokens"),
    ({"tables": (4,)}, [5] * 10, 30, "at most 17 tokens"),
    ({"pages": 5}, [5] * 10, 8, "at most 17 tokens"),
    ({"window": 20}, [5] * 21, 1, "21 tokens, more than the 20 positions"),
    ({"window": 20, "tables": (4,)}, [5] * 10, 30, "at most 17 tokens"),
    ({"attention": AttentionConfig(longest=12)}, [5] * 10, 3, "at most 12 tokens"),
    ({}, [5, V], 3, "a token 257: those of this model are 0 to 256"),
    ({}, [5, -1], 3, "a token -1: "),
]


@pytest.mark.parametrize(("settings", "prompt", "tokens", "message"), REFUSED)
def test_what_can_never_be_answered_is_refused_at_once(settings, prompt, tokens, message):
    core, _ = make_core(**settings)
    with pytest.raises(ConfigError, match=message):
        core.check(make_request(prompt, tokens))


@pytest.mark.parametrize("settings", [{}, {"pages": 5}, {"window": 9}, {"window": 9, "pages": 5}])
@pytest.mark.parametrize("prompt", [1, 9])
def test_the_longest_text_that_is_not_refused_has_room(settings, prompt):
    core, rules = make_core(**settings)
    request = make_request(range(prompt), min(core.longest, 200) - prompt)
    core.check(request)
    core.add(0, request)
    readers = Readers()
    readers.run(core)
    assert readers.whole(0) == alone(request, rules) and core.stats().put_back == 0
