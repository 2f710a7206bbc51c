"""Speculation on a made-up model: whatever drafts there are, each text is what it is without."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import made_up_runner
import numpy as np
import pytest
from made_up_runner import MadeUpRunner, continue_alone, draw_token
from serving import make_model
from test_engine_core import (
    Readers,
    V,
    alone,
    check_texts,
    make_core,
    make_request,
    make_schedule,
)

from moejax.config import ModelConfig
from moejax.config.attention import AttentionConfig
from moejax.config.errors import ConfigError
from moejax.data.byte_tokenizer import ByteTokenizer
from moejax.inference.engine.drafts import ModelDrafter, ModuleDrafter, PromptDrafter
from moejax.inference.engine.open_speculation import check_draft, check_goes_back
from moejax.inference.sampling import draw, make_keys

DRAFTS = 3


def hash_of(*words) -> int:
    """The same number for the same words."""
    return draw_token([], 0, {str(n): word for n, word in enumerate(words)}, 2**30)


class KnowingDrafter:
    """Knows how texts go on, and is wrong at times; of some tokens it knows nothing."""

    def __init__(self, runner: MadeUpRunner) -> None:
        self._runner = runner
        self._truth: dict = {}

    def see(self, text) -> int:
        return max(0, hash_of(text.id, text.known) % (DRAFTS + 3) - 2)

    def draft(self, seats, texts, counts):
        return [self._guess(text, count) for text, count in zip(texts, counts, strict=True)]

    def _guess(self, text, count) -> np.ndarray:
        if text.id not in self._truth:
            self._truth[text.id] = continue_alone(text.request, (), V, self._runner.window)
        begin = text.known - len(text.request.prompt)
        guess = self._truth[text.id][begin : begin + count]
        assert len(guess) == count  # no more than can be of use
        wrong = [hash_of(text.id, begin, place) % 4 == 0 for place in range(count)]
        return np.where(wrong, (np.asarray(guess) + 1) % V, guess).astype(np.int32)

    def follow(self, kind, texts, counts, call) -> None:
        """It needs no cache."""


class SmallerRunner(MadeUpRunner):
    """Draws mostly what the other model draws. It sees all the tokens that it has to."""

    def draw(self, token_N, position, settings) -> int:
        drawn = super().draw(token_N, position, settings)
        return (drawn + (hash_of(drawn, position) % 4 == 0)) % V


def make_model_drafter(runner: MadeUpRunner, kind=SmallerRunner) -> ModelDrafter:
    return ModelDrafter(kind(replace(runner.sizes, checks=False), V, runner.window), DRAFTS)


DRAFTERS = {
    "knowing": KnowingDrafter,
    "prompt": lambda runner: PromptDrafter(DRAFTS, 2),
    "model": make_model_drafter,
    "one module": lambda runner: ModuleDrafter(1),
    "modules": lambda runner: ModuleDrafter(DRAFTS),
}
SIZES = {"one module": {"drafts": 1, "ahead": 1}, "modules": {"drafts": DRAFTS, "ahead": DRAFTS}}
"""Of those who make drafts; of others: ``DRAFTS``."""


def make_drafting(rng: np.random.Generator, drafter: str):
    """A random schedule with drafts from there."""
    sizes = SIZES.get(drafter, {"drafts": DRAFTS})
    return make_schedule(rng, make_drafter=DRAFTERS[drafter], **sizes)


@pytest.fixture
def few_tokens(monkeypatch):
    """The model draws few different tokens, so that texts repeat themselves."""
    monkeypatch.setattr(made_up_runner, "draw_token", lambda *given: 97 + draw_token(*given) % 3)


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_drafts_change_no_text(drafter, seed, request):
    if drafter == "prompt":
        request.getfixturevalue("few_tokens")
    rng = np.random.default_rng(seed)
    core, rules, plan = make_drafting(rng, drafter)
    check_texts(core, rules, plan)
    stats = core.stats()
    assert stats.accepted <= stats.drafted


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_random_schedules_have_all_that_may_go_wrong(drafter, request):
    """Else the test above would say little."""
    if drafter == "prompt":
        request.getfixturevalue("few_tokens")
    seen: Counter = Counter()
    for seed in range(15):
        rng = np.random.default_rng(seed)
        core, _, plan = make_drafting(rng, drafter)
        for number, (_, _, one) in enumerate(plan):
            core.add(number, one)
        Readers().run(core)
        stats = core.stats()
        seen += Counter(put_back=stats.put_back, hits=stats.prefix_hits)
        seen += Counter(right=stats.accepted, wrong=stats.drafted - stats.accepted, **stats.ended)
    kinds = ("put_back", "hits", "right", "wrong", "length", "stop")
    assert min(seen[kind] for kind in kinds) > 5, seen


def test_a_model_that_guesses_all_right_saves_most_calls():
    """The model itself, so also: what it has in its pages is always what the text has."""
    core, rules = make_core(
        make_drafter=partial(make_model_drafter, kind=MadeUpRunner), drafts=DRAFTS, pages=65
    )
    requests = [make_request([*range(9), one], 41) for one in range(3)]
    for number, request in enumerate(requests):
        core.add(number, request)
    readers = Readers()
    readers.run(core)
    assert all(readers.whole(n) == alone(one, rules) for n, one in enumerate(requests))
    stats = core.stats()
    assert stats.drafted == stats.accepted == 3 * 30
    assert stats.decode_calls <= 11 and stats.drawn_tokens == stats.rows == 3 * 41
    assert sum(stats.next_seconds.counts) == 3 * 40


def test_texts_without_drafts_wait_for_one_call_at_most():
    class OfOne(KnowingDrafter):
        def see(self, text) -> int:
            return DRAFTS * (text.id == 0)

    core, _ = make_core(make_drafter=OfOne, drafts=DRAFTS)
    for number in range(3):
        core.add(number, make_request([number], 50))
    readers = Readers()
    for _ in range(6):
        readers.step(core)
    before = {n: len(readers.pieces[n]) for n in range(3)}
    for _ in range(20):
        readers.step(core)
    for number in (1, 2):
        assert len(readers.pieces[number]) - before[number] >= 9
    assert len(readers.pieces[0]) - before[0] >= 6


def test_scores_and_routes_of_tokens_that_were_drafts():
    core, _ = make_core(make_drafter=KnowingDrafter, drafts=DRAFTS)
    core.add(0, make_request([1] * 11, 30, logprobs=2, routes=True))
    readers = Readers()
    readers.run(core)
    tokens = [token for piece in readers.pieces[0] for token in piece.tokens]
    assert core.stats().accepted >= 5 and len(tokens) == 30
    for position, token in enumerate(tokens, 10):
        assert token.logprob == -token.id and token.best[1] == (token.id + 1, -token.id - 1)
        assert token.expert_LK.item() == position and token.weight_LK.item() == position / 2


def test_look_up_copies_what_came_after_the_same_tokens_last():
    core, _ = make_core(make_drafter=lambda runner: PromptDrafter(4, 2), drafts=4)
    drafter = core._drafter
    for prompt, expected in [
        ([1, 2, 3, 9, 1, 2, 4, 5, 6, 1, 2], [4, 5, 6, 1]),
        ([1, 2, 3, 1, 2], [3, 1, 2, 3]),  # a repetition goes on
        ([7, 7, 7], [7, 7, 7, 7]),
    ]:
        core.add(expected[1] * 100 + len(prompt), make_request(prompt, 9))
        text = core._schedule.waiting[-1]
        assert drafter.see(text) == 4
        assert drafter.draft(None, [text], [4])[0].tolist() == expected
        assert drafter.draft(None, [text], [2])[0].tolist() == expected[:2]
    core.add(9999, make_request([1, 2, 3], 9))
    assert drafter.see(core._schedule.waiting[-1]) == 0


VOCAB, LENGTH, TEXTS = 3, 4, 1500


class ChainRunner(MadeUpRunner):
    """Draws by a table of tokens for each seed, position and token before."""

    def __init__(self, *given, table=None) -> None:
        super().__init__(*given)
        self.table = table

    def draw(self, token_N, position, settings) -> int:
        return int(self.table[settings["seed_B"], position, token_N[-1]])


def draw_table(logits_VV, sampling: dict) -> np.ndarray:
    """What the engine's own draws give for each seed, position and token before it."""
    seed, position, last = (
        x.reshape(-1)
        for x in np.meshgrid(
            np.arange(TEXTS), np.arange(1 + LENGTH), np.arange(VOCAB), indexing="ij"
        )
    )
    given = {"temperature": 1.0, "top_k": VOCAB, "top_p": 1.0} | sampling
    draws = {f"{name}_B": np.full(len(seed), value) for name, value in given.items()}
    draws |= {"seed_B": seed.astype(np.int32), "row_B": np.zeros(len(seed), np.int32)}
    keys = make_keys(draws, jnp.asarray(position))
    drawn = draw(jnp.asarray(logits_VV)[last], keys, jax.tree.map(jnp.asarray, draws))
    return np.asarray(drawn).reshape(TEXTS, 1 + LENGTH, VOCAB)


def test_sampled_texts_keep_their_distribution():
    """Of a chain of three tokens, against its own probabilities: chi-squared of all texts, with
    drafts of another chain that draws with the same keys.
    """
    rng = np.random.default_rng(0)
    logits_VV = rng.normal(0, 1, (VOCAB, VOCAB)).astype(np.float32)
    table = draw_table(logits_VV, {})
    other = draw_table(logits_VV + rng.normal(0, 0.7, logits_VV.shape).astype(np.float32), {})

    def make_drafter(runner: MadeUpRunner) -> ModelDrafter:
        smaller = ChainRunner(replace(runner.sizes, checks=False), V, table=other)
        return ModelDrafter(smaller, DRAFTS)

    core, _ = make_core(make_drafter=make_drafter, drafts=DRAFTS, seats=8, rows=(8,))
    core.runner.__class__, core.runner.table = ChainRunner, table
    for seed in range(TEXTS):
        core.add(seed, make_request([0], LENGTH, seed=seed, temperature=1.0))
    found = np.zeros((VOCAB,) * LENGTH)
    tokens: dict[int, list] = {seed: [] for seed in range(TEXTS)}
    while core.busy:
        for number, piece in core.step():
            tokens[number] += [token.id for token in piece.tokens]
    for ids in tokens.values():
        found[tuple(ids)] += 1
    p_VV = np.exp(logits_VV) / np.exp(logits_VV).sum(1, keepdims=True)
    expected = TEXTS * np.einsum("a,ab,bc,cd->abcd", p_VV[0], p_VV, p_VV, p_VV)
    few = expected < 5  # these are taken as one
    both = [np.append(x[~few], x[few].sum()) for x in (found, expected)]
    chi = ((both[0] - both[1]) ** 2 / both[1]).sum()
    free = len(both[0]) - 1
    assert chi < free + 4 * np.sqrt(2 * free)
    stats = core.stats()
    by_chance = (p_VV**2).sum(1).max()
    assert stats.accepted / stats.drafted > by_chance  # of the same random numbers


def test_models_that_cannot_be_speculated_with_are_refused():
    model = make_model()
    memory = ModelConfig(
        vocab_size=257, num_layers=2, attention=AttentionConfig(kinds=("delta", "full"))
    )
    with pytest.raises(ConfigError, match="this model has memory layers .* leave --speculate out"):
        check_goes_back(memory, "--speculate prompt: this model")
    with pytest.raises(ConfigError, match="--draft small: it has memory layers"):
        check_draft(Path("small"), make_model(config=memory), model)
    other = ByteTokenizer()
    other.fingerprint = "other bytes"
    for wrong in (make_model(tokenizer=other), make_model(vocab_size=300)):
        with pytest.raises(ConfigError, match=r"--draft small has another tokenizer \(.*bytes"):
            check_draft(Path("small"), wrong, model)
    check_draft(Path("small"), make_model(), model)
