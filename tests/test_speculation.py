"""Speculation with a real model: its texts are those of ``Generator``, token for token."""

from dataclasses import replace

import numpy as np
import pytest
from compilations import note_compilations
from test_generate import TINY, made
from test_page_runner import make_runner, run_core, wanted

from moejax.inference.engine.drafts import ModelDrafter, PromptDrafter

DRAFTS = 3


@pytest.mark.slow
def test_drafts_change_no_text_of_a_real_model_and_nothing_is_compiled_but_at_the_start():
    """Greedy and sampled in all ways beside each other, one beyond the window. Drafts come from the
    text, from the model itself, which is right nearly always, and from another one.
    """
    params, small = made(TINY), replace(TINY, num_layers=1, moe=replace(TINY.moe, every=0))
    runner = make_runner(TINY, params, drafts=DRAFTS, tables=(13,))
    alone, _ = run_core(runner)
    assert [[token.id for token in text] for text in alone] == wanted()
    runner.warm()
    accepted = {}
    for name, drafter in [
        ("prompt", PromptDrafter(DRAFTS, 1)),
        ("itself", ModelDrafter(smaller(TINY, params), DRAFTS)),
        ("other", ModelDrafter(smaller(small, made(small)), DRAFTS)),
    ]:
        with note_compilations() as compiled:
            tokens, core = run_core(runner, drafter)
        assert not compiled
        assert [[token.id for token in text] for text in tokens] == wanted(), name
        stats = core.stats()
        assert stats.drafted > 0 and stats.pages_used == 0
        accepted[name] = stats.accepted / stats.drafted
        for one, other in zip(alone[1] + alone[3], tokens[1] + tokens[3], strict=True):
            assert abs(one.logprob - other.logprob) < 1e-4
        for one, other in zip(alone[2], tokens[2], strict=True):
            assert (one.expert_LK == other.expert_LK).all()
            np.testing.assert_allclose(one.weight_LK, other.weight_LK, atol=1e-5)
    assert accepted["itself"] > 0.99 > accepted["other"]
    assert runner._run._cache_size() == 3


def smaller(config, params):
    """What calls a model that makes drafts."""
    runner = make_runner(config, params, drafts=DRAFTS, tables=(13,), checks=False)
    runner.warm()
    return runner
