"""A config like another, but for some settings."""

import re

import pytest

from moejax.config import BalanceConfig, Config, ConfigError, ModelConfig, changed, differences


def test_settings_change_by_their_path_and_nothing_else_does():
    config = Config()
    other = changed(config, {"model.moe.top_k": 4, "run.steps": 200, "optim.clip_norm": None})
    assert differences(config, other) == {
        "model.moe.top_k": (2, 4),
        "run.steps": (1000, 200),
        "optim.clip_norm": (1.0, None),
    }
    assert config == Config()
    assert changed(config, {}) == changed(config, {"model.moe": {}}) == config


def test_the_paths_of_a_section_begin_inside_it():
    model = changed(ModelConfig(), {"moe.num_experts": 4, "width": 64})
    assert (model.moe.num_experts, model.width) == (4, 64)
    assert changed(model.moe, {"balance.loss_weight": 0.0}).balance == BalanceConfig(loss_weight=0)


def test_a_section_is_given_as_a_whole_or_as_a_dict_of_changes():
    config = changed(Config(), {"model.moe.hidden_size": 64})
    whole = changed(config, {"model.moe.balance": BalanceConfig(bias_update="sign")})
    parts = {"balance": {"bias_update": "sign"}, "num_experts": 16}
    both = changed(config, {"model.moe": parts, "model.moe.top_k": 3})
    assert both == changed(whole, {"model.moe.num_experts": 16, "model.moe.top_k": 3})
    assert both.model.moe.hidden_size == 64


def test_settings_that_depend_on_each_other_change_together():
    moe = changed(Config(), {"model.moe.top_k": 1, "model.moe.router": "switch"}).model.moe
    assert (moe.router, moe.top_k) == ("switch", 1)
    with pytest.raises(ConfigError, match="choose --model.moe.router switch"):
        changed(Config(), {"model.moe.top_k": 1})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.moe.topk": 1}, "no setting model.moe.topk. Did you mean model.moe.top_k?"),
        ({"model.moe.top-k": 1}, "Did you mean model.moe.top_k?"),
        ({"model.top_k": 1}, "no setting model.top_k. Did you mean model.moe.top_k?"),
        ({"seed": 1}, "Did you mean data.seed or run.seed?"),
        ({"model.moe": {"tok_k": 1}}, "no setting model.moe.tok_k. Did you mean model.moe.top_k?"),
        ({"optm.beta1": 0.5}, "Did you mean optim.beta1?"),
        ({"wings": 2}, "no setting wings. There are: model, data, optim, mesh, distributed, run."),
        ({"mesh.wings": 2}, "There are: mesh.data, mesh.context, "),
        ({"run.steps.x": 3}, "no setting run.steps.x: run.steps has no parts."),
        ({"run.steps": {"x": 3}}, "--run.steps must be int, not {'x': 3}"),
        ({"model.moe.top_k": "4"}, "--model.moe.top-k must be int, not '4'"),
        ({"model.moe": 3}, "--model.moe must be MoEConfig, not 3"),
        ({3: 3}, "no setting 3"),
        (
            {"model": ModelConfig(), "model.width": 64},
            "model is given as a whole, and settings in it beside it",
        ),
    ],
)
def test_what_cannot_be_changed_is_refused_by_its_path(changes, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        changed(Config(), changes)


def test_only_settings_can_be_changed():
    with pytest.raises(ConfigError, match="needs a config or a section of one, not"):
        changed({"model": 1}, {"model": 2})
