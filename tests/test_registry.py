"""The table of routers, and the settings of routers and balance that are refused."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import BalanceConfig, Config, ConfigError, ModelConfig, MoEConfig, RunConfig
from moejax.routing.contract import RouterInput, TokenChoice
from moejax.routing.routers import ROUTERS, Router, register, router
from moejax.train.announce import warn_of_constant_weights


@pytest.fixture
def table():
    """The table as it was before the test."""
    before = dict(ROUTERS)
    yield ROUTERS
    ROUTERS.clear()
    ROUTERS.update(before)


def first_expert(inputs: RouterInput) -> TokenChoice:
    shape = (*inputs.logits_GSE.shape[:2], inputs.top_k)
    return TokenChoice(jnp.zeros(shape, jnp.int32), jnp.ones(shape), inputs.logits_GSE)


REFUSED = {
    "more choices than experts": (
        {"top_k": 9},
        "--model.moe.top-k 9 asks for more experts than there are: it can be at most"
        " --model.moe.num-experts, 8.",
    ),
    "more choices than experts of all kinds": (
        {"top_k": 12, "identity_experts": 2, "null_experts": 1},
        "at most --model.moe.num-experts, 8, and 3 without computation.",
    ),
    "no experts": ({"num_experts": 0}, "--model.moe.num-experts must be greater than 0, not 0."),
    "no capacity": ({"capacity_factor": 0.0}, "--model.moe.capacity-factor must be greater than 0"),
    "a capacity that is no number": (
        {"eval_capacity_factor": float("nan")},
        "--model.moe.eval-capacity-factor must be greater than 0, not nan",
    ),
    "a misspelt router": (
        {"router": "deepseek_v4"},
        "--model.moe.router deepseek_v4 is not known. Did you mean deepseek_v3?",
    ),
    "a router like no other": (
        {"router": "xyz"},
        "xyz is not known. There are: base, deepseek_moe",
    ),
    "two experts for switch": (
        {"router": "switch", "top_k": 2},
        "--model.moe.router switch gives a token 1 expert, but --model.moe.top-k is 2: set it to 1,"
        " or choose another router, such as top_k.",
    ),
    "one expert for gshard": (
        {"router": "gshard", "top_k": 1},
        "gives a token 2 experts, but --model.moe.top-k is 1: set it to 2",
    ),
    "two experts for base": ({"router": "base"}, "gives a token 1 expert, but"),
    "not all experts for dense": (
        {"router": "dense", "top_k": 8, "null_experts": 1},
        "gives a token 9 experts, but --model.moe.top-k is 8: set it to 9",
    ),
    "renormalised soft slots": (
        {"router": "soft", "renormalise": True},
        "--model.moe.renormalise means nothing to --model.moe.router soft: leave it out, or choose"
        " another router.",
    ),
    "a scale for hash": (
        {"router": "hash", "weight_scale": 2.0},
        "--model.moe.weight-scale means nothing to --model.moe.router hash",
    ),
    "groups for base": (
        {"router": "base", "top_k": 1, "expert_groups": 2},
        "--model.moe.expert-groups means nothing to --model.moe.router base",
    ),
    "a cap where tokens choose": (
        {"max_experts_per_token": 2},
        "--model.moe.max-experts-per-token means nothing to --model.moe.router top_k",
    ),
    "a cap of nothing": (
        {"router": "expert_choice", "max_experts_per_token": 0},
        "--model.moe.max-experts-per-token must be greater than 0",
    ),
    "a scale of nothing": (
        {"weight_scale": 0.0},
        "--model.moe.weight-scale must be greater than 0, not 0.0.",
    ),
    "identity experts that choose": (
        {"router": "expert_choice", "identity_experts": 1},
        "expert_choice has no use for experts without computation: --model.moe.identity-experts and"
        " --model.moe.null-experts must be 0.",
    ),
    "null experts with soft slots": (
        {"router": "soft", "null_experts": 1},
        "soft has no use for experts without computation",
    ),
    "fewer experts than none": (
        {"null_experts": -1},
        "--model.moe.null-experts must be at least 0, not -1.",
    ),
    "a queue where experts choose": (
        {"router": "expert_choice", "seating": "priority"},
        "tokens do not choose: leave it at position.",
    ),
    "slots without number where experts choose": (
        {"router": "expert_choice", "capacity_factor": None},
        "expert_choice fills all slots of every expert, so it needs a number of them:"
        " --model.moe.capacity-factor 1, say, not None.",
    ),
    "soft slots by index": (
        {"router": "soft", "dispatch": "gather"},
        "of every token: leave it at einsum.",
    ),
    "rows sorted by expert where experts choose": (
        {"router": "expert_choice", "dispatch": "grouped"},
        "with --model.moe.router expert_choice experts choose: take gather or einsum.",
    ),
    "dropout in sorted rows": (
        {"dispatch": "grouped", "expert_dropout": 0.1},
        "--model.moe.expert-dropout has no place in --model.moe.dispatch grouped: take gather.",
    ),
    "kept groups of none": (
        {"kept_expert_groups": 2},
        "--model.moe.kept-expert-groups needs --model.moe.expert-groups.",
    ),
    "groups that do not divide": (
        {"expert_groups": 3},
        "--model.moe.expert-groups 3 does not divide the 8 experts",
    ),
    "groups that do not divide with null experts": (
        {"expert_groups": 4, "null_experts": 1},
        "--model.moe.expert-groups 4 does not divide the 9 experts (--model.moe.num-experts, with"
        " those without computation).",
    ),
    "more kept groups than groups": (
        {"expert_groups": 2, "kept_expert_groups": 4},
        "--model.moe.kept-expert-groups 4 is more than --model.moe.expert-groups 2.",
    ),
    "too little room in the kept groups": (
        {"expert_groups": 8, "kept_expert_groups": 1},
        "--model.moe.kept-expert-groups 1 leaves a token 1 expert to choose from, fewer than"
        " --model.moe.top-k 2.",
    ),
    "a load loss without noise": (
        {"balance": {"load_loss_weight": 0.1}},
        "--model.moe.balance.load-loss-weight needs the noise of --model.moe.router noisy_top_k",
    ),
    "a device loss without devices": (
        {"balance": {"device_loss_weight": 0.1}},
        "--model.moe.balance.device-loss-weight needs --model.moe.expert-groups.",
    ),
    "a communication loss without groups": (
        {"balance": {"communication_loss_weight": 0.1}},
        "--model.moe.balance.communication-loss-weight needs --model.moe.expert-groups.",
    ),
    "a bias where experts choose": (
        {"router": "expert_choice", "balance": {"bias_update": "sign"}},
        "--model.moe.balance.bias-update sign: --model.moe.router expert_choice has no selection"
        " bias; leave it at none.",
    ),
    "quantiles with kept groups": (
        {
            "router": "deepseek_v3",
            "expert_groups": 4,
            "kept_expert_groups": 2,
            "balance": {"bias_update": "quantile"},
        },
        "no --model.moe.kept-expert-groups: take sign.",
    ),
    "quantiles where all are chosen": (
        {"top_k": 8, "balance": {"bias_update": "quantile"}},
        "fewer choices than experts",
    ),
    "pooled layers of one sequence": (
        {"balance": {"convention": "hf", "scope": "sequence"}},
        "--model.moe.balance.convention hf pools the layers of a batch: it goes with"
        " --model.moe.balance.scope batch, not sequence.",
    ),
    "a negative loss": (
        {"balance": {"z_loss_weight": -1.0}},
        "--model.moe.balance.z-loss-weight must be at least 0, not -1.0.",
    ),
    "a bias that stands still": (
        {"balance": {"bias_rate": 0.0}},
        "--model.moe.balance.bias-rate must be greater than 0, not 0.0.",
    ),
    "quantiles of logits": (
        {"router": "glm4_moe", "bias_on": "logits", "balance": {"bias_update": "quantile"}},
        "needs scores in [0, 1] (softmax or sigmoid) to add the bias to",
    ),
    "more computing experts than choices": (
        {"null_experts": 2, "balance": {"bias_update": "sign", "experts_per_token": 3.0}},
        "--model.moe.balance.experts-per-token 3.0 is more than a token chooses,"
        " --model.moe.top-k 2.",
    ),
    "a bias on nothing known": (
        {"bias_on": "weights"},
        "--model.moe.bias-on must be one of scores, logits, None, not 'weights'.",
    ),
    "coupling of a router without vectors": (
        {"router": "soft", "balance": {"coupling_loss_weight": 1.0}},
        "--model.moe.balance.coupling-loss-weight needs a router with one vector for each expert,"
        " which --model.moe.router soft has not: take top_k, say.",
    ),
    "more probability than there is": (
        {"router": "dynamic_top_p", "top_p": 1.5},
        "--model.moe.top-p must lie in (0, 1], not 1.5.",
    ),
    "quantiles of a varying number": (
        {"router": "dynamic_top_p", "balance": {"bias_update": "quantile"}},
        "as many for each token",
    ),
    "closed ReLUs of a softmax": (
        {"balance": {"sparsity_loss_weight": 0.1}},
        "--model.moe.balance.sparsity-loss-weight closes ReLUs, which --model.moe.router top_k has"
        " not: take remoe.",
    ),
    "a load that is even by count where counts vary": (
        {"router": "expert_threshold", "balance": {"bias_update": "sign"}},
        "take threshold with expert_threshold, none with others.",
    ),
    "thresholds of a router without": (
        {"router": "deepseek_v3", "balance": {"bias_update": "threshold"}},
        "it needs --model.moe.router expert_threshold.",
    ),
    "a bias where a table chooses everywhere": (
        {"router": "hash_balanced", "balance": {"bias_update": "sign"}},
        "a table chooses in all layers: give --model.moe.hash-layers 1, say,",
    ),
    "a table in layers of another router": (
        {"hash_layers": 1},
        "--model.moe.hash-layers means nothing to --model.moe.router top_k",
    ),
    "counts of another router": (
        {"router": "hash_weighted", "token_counts": (1, 2)},
        "--model.moe.token-counts means nothing to --model.moe.router hash_weighted",
    ),
    "counts of nothing": (
        {"router": "hash_balanced", "token_counts": (0, 0)},
        "--model.moe.token-counts must be at most 65,536 whole numbers, not all 0.",
    ),
    "counts below 0": (
        {"router": "hash_balanced", "token_counts": (5, -1)},
        "--model.moe.token-counts must be",
    ),
    "a table in no layer": (
        {"router": "hash_balanced", "hash_layers": 0},
        "--model.moe.hash-layers must be greater than 0, not 0.",
    ),
    "a coefficient that runs away": (
        {"router": "remoe", "balance": {"sparsity_loss_weight": 1.0, "sparsity_factor": 0.8}},
        "--model.moe.balance.sparsity-factor must be at least 1, not 0.8.",
    ),
    "a sum of nothing": (
        {"balance": {"bias_update": "pid", "pid_limit": 0.0}},
        "--model.moe.balance.pid-limit must be greater than 0, not 0.0.",
    ),
    "control of what varies": (
        {"router": "remoe", "balance": {"bias_update": "pid"}},
        "gives no token a fixed number of experts",
    ),
    "fewer candidates than choices": (
        {"eval_candidates": 1},
        "--model.moe.eval-candidates 1 must be at least --model.moe.top-k, 2, and at most"
        " --model.moe.num-experts, 8",
    ),
    "an unknown update": (
        {"balance": {"bias_update": "signed"}},
        "--model.moe.balance.bias-update must be one of none, sign, proportional, pid, quantile,"
        " threshold, not 'signed'.",
    ),
    "jitter of everything": (
        {"router_jitter": 1.0},
        "--model.moe.router-jitter must lie in [0, 1), not 1.0.",
    ),
    "dropout of everything": (
        {"expert_dropout": 1.0},
        "--model.moe.expert-dropout must lie in [0, 1), not 1.0.",
    ),
    "a router with a number for a name": (
        {"router": 3},
        "--model.moe.router must be str, not 3.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_settings_are_refused_with_the_way_out(case):
    given, words = REFUSED[case]
    with pytest.raises(ConfigError, match=re.escape(words)):
        MoEConfig(**given | {"balance": BalanceConfig(**given.get("balance", {}))})


ALLOWED = {
    "one expert, weighted by its probability": {
        "router": "top_k",
        "top_k": 1,
        "renormalise": False,
    },
    "one expert in all": {"num_experts": 1, "top_k": 1},
    "sigmoids of one expert": {"router": "llama4", "top_k": 1},
    "groups to keep as many as there are": {"expert_groups": 4, "kept_expert_groups": 4},
    "groups for losses alone": {
        "expert_groups": 4,
        "balance": {"device_loss_weight": 0.1, "communication_loss_weight": 0.1},
    },
    "a noisy load": {"router": "noisy_top_k", "balance": {"load_loss_weight": 0.1}},
    "quantiles": {"router": "glm4_moe", "balance": {"bias_update": "quantile"}},
    "a bias for any that tokens choose by": {
        "router": "ernie4_5",
        "balance": {"bias_update": "sign"},
    },
    "room for all": {"capacity_factor": None, "eval_capacity_factor": None},
    "experts that choose, by index": {"router": "expert_choice", "dispatch": "gather"},
    "dense over null experts, too": {"router": "dense", "top_k": 9, "null_experts": 1},
    "a queue for hashed tokens": {"router": "hash", "seating": "priority"},
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_is_possible_is_not_refused(case):
    given = ALLOWED[case]
    MoEConfig(**given | {"balance": BalanceConfig(**given.get("balance", {}))})


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_of_the_table_can_be_chosen_and_says_where_it_is_from(name):
    there = ROUTERS[name]
    top_k = {None: 2, "num_experts": 8}.get(there.top_k, there.top_k)
    moe = MoEConfig(router=name, top_k=top_k)
    assert moe.built_router == there
    assert there.paper != "unpublished"
    assert there.causal or there.decoding  # who is not causal says what generation does


def test_settings_override_the_router_s_own():
    moe = MoEConfig(
        router="deepseek_v3",
        expert_groups=4,
        kept_expert_groups=2,
        weight_scale=1.5,
        renormalise=False,
    )
    rule = moe.built_router.rule
    assert (rule.expert_groups, rule.kept_expert_groups) == (4, 2)
    assert (rule.weight_scale, rule.renormalise, rule.score) == (1.5, False, "sigmoid")
    assert ROUTERS["deepseek_v3"].rule.weight_scale == 2.5  # the table is as it was


def test_a_router_of_one_s_own_is_one_decorator_away(table):
    decorated = router("first", paper="mine", learned=False)(first_expert)
    assert decorated is first_expert
    assert table["first"] == Router(function=first_expert, paper="mine", learned=False)
    assert MoEConfig(router="first").built_router.function is first_expert
    with pytest.raises(ConfigError, match="Did you mean first?"):
        MoEConfig(router="firts")
    with pytest.raises(ConfigError, match="weight-scale means nothing to --model.moe.router first"):
        MoEConfig(router="first", weight_scale=2.0)


def test_a_name_is_taken_once_but_a_file_may_run_twice(table):
    register("first", Router(function=first_expert))
    register("first", Router(function=first_expert, paper="again"))
    assert table["first"].paper == "again"
    with pytest.raises(ConfigError, match="there is a router named 'first' already"):
        register("first", Router(function=lambda inputs: first_expert(inputs)))
    with pytest.raises(ConfigError, match="there is a router named 'hash' already"):
        register("hash", Router(function=first_expert))


def test_a_router_with_a_rule_gets_it():
    inputs = RouterInput(
        logits_GSE=jnp.zeros((1, 1, 2)), real_GS=np.ones((1, 1), bool), top_k=1, capacity=1
    )
    with_rule = Router(function=lambda inputs, rule: (inputs, rule), rule="a rule")
    assert with_rule.choose(inputs) == (inputs, "a rule")
    assert Router(function=lambda inputs: inputs).choose(inputs) is inputs


@pytest.mark.parametrize(
    "moe",
    [{"router": "mixtral"}, {"router": "olmoe", "renormalise": True}, {"router": "deepseek_v3"}],
)
def test_constant_weights_are_refused_but_in_a_model_that_came_so(moe):
    """From which the router learns nothing: one expert, of weight one."""
    model = ModelConfig(moe=MoEConfig(top_k=1, **moe))
    with pytest.raises(ConfigError) as caught:
        Config(model=model)
    assert "same weight, from which the router learns nothing" in str(caught.value)
    assert "choose --model.moe.router switch, or --model.moe.renorm" in str(caught.value)
    with pytest.warns(UserWarning, match="gives every chosen expert the same weight"):
        warn_of_constant_weights(Config(model=model, run=RunConfig(init_from="mine")))
    Config(model=ModelConfig(moe=MoEConfig(top_k=1, every=0, **moe)))  # no router at all
