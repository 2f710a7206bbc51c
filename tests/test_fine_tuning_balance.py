"""Fine-tuning goes on with the balance of the model's authors: by family, and what it counts."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_cases import ALIASES

from moejax.config import BalanceConfig, Config, MoEConfig, changed
from moejax.config.describe_balance import compare_balance, describe_balance
from moejax.config.errors import UserError
from moejax.hf.configs import read_config, write_config
from moejax.hf.families import FAMILIES
from moejax.moe import balance
from moejax.routing.contract import RouterInput, asked
from moejax.routing.routers import ROUTERS
from moejax.train.balance_memory import NOTHING, move_balance
from moejax.train.objective import scoped_loss

GUIDE = Path(__file__).parent.parent / "docs/guides/fine_tuning.md"
COEFFICIENT = {
    "mixtral": 0.001,
    "qwen2_moe": 0.001,
    "qwen3_moe": 0.001,
    "qwen3_next": 0.001,
    "qwen3_5_moe_text": 0.001,
    "olmoe": 0.01,
    "flex_olmo": 0.01,
    "gpt_oss": 0.001,
    "granitemoe": 0.001,
    "granitemoeshared": 0.001,
    "mellum": 0.001,
    "ernie4_5_moe": 0.001,
}
"""Of Hugging Face's loss, if ``config.json`` does not say it."""
BY_BIAS = ["deepseek_v3", "kimi_k2", "deepseek_v32", "glm_moe_dsa", "axk1", "glm4_moe"]
BY_BIAS += ["glm4_moe_lite", "dots1", "hy_v3", "solar_open", "exaone_moe", "afmoe"]
NONE = ["minimax_m2", "flint", "hunyuan_v1_moe", "mistral4"]
DENSE = ["llama", "mistral", "qwen3"]


def read(family: str, **fields):
    """A small model of a family."""
    like = ALIASES.get(family, family).removesuffix("_text")
    case = next(name for name in hf_models.CASES if name.startswith(like))
    return read_config(hf_models.CASES[case] | {"model_type": family} | fields)


def test_every_family_is_here():
    assert {*COEFFICIENT, *BY_BIAS, *NONE, *DENSE, "deepseek_v2"} == set(FAMILIES)


@pytest.mark.parametrize("family", COEFFICIENT)
def test_the_coefficient_is_that_of_the_file_by_hugging_face_s_convention(family):
    for fields, want in (
        ({}, COEFFICIENT[family]),
        ({"router_aux_loss_coef": 0.9}, 0.9),
        ({"router_aux_loss_coef": 0}, 0.0),
    ):
        config = read(family, **fields)
        got = config.moe.balance
        assert (got.loss_weight, got.convention, got.z_loss_weight) == (want, "hf", 0)
        words = describe_balance(config)
        k = config.moe.top_k
        assert ("no balance loss" in words) == (want == 0)
        assert want == 0 or f"{want:g} x the balance loss of transformers ({k} at" in words


@pytest.mark.parametrize("family", [*BY_BIAS, *NONE])
def test_without_a_field_there_is_no_loss_and_a_bias_stays(family):
    config = read(family)
    got = config.moe.balance
    assert (got.loss_weight, got.z_loss_weight, got.bias_update) == (0, 0, "none")
    words = describe_balance(config)
    assert words.startswith("no balance loss, no z loss")
    assert ("bias frozen" in words) == config.moe.has_selection_bias
    if family in BY_BIAS:  # with a coefficient, the loss that goes with such a bias
        with_loss = changed(config, {"moe.balance.loss_weight": 1e-4})
        assert "0.0001 x the balance loss over each sequence (1 at" in describe_balance(with_loss)


def test_the_guide_says_it_for_every_family():
    rows = [line for line in GUIDE.read_text().splitlines() if line.startswith("| `")]
    told = {name: row for row in rows for name in re.findall("`([a-z0-9_]+)`", row.split("|")[1])}
    assert not {*FAMILIES} - {*told} - {*DENSE}
    for family in (*COEFFICIENT, *BY_BIAS, "deepseek_v2"):
        field = "aux_loss_alpha" if family == "deepseek_v2" else "router_aux_loss_coef"
        assert (f"`{field}`" in told[family]) == (family not in BY_BIAS), family
    for family in FAMILIES:
        if family not in DENSE:
            assert ("frozen" in told[family]) == read(family).moe.has_selection_bias, family


# DeepSeek-V2 was released with the code of its loss.


def test_deepseek_v2_goes_on_with_the_loss_of_its_own_code():
    for fields, weight, scope in (
        ({}, 0, "sequence"),
        ({"aux_loss_alpha": 0.003, "seq_aux": True}, 0.003, "sequence"),
        ({"aux_loss_alpha": 0.001, "seq_aux": False}, 0.001, "batch"),
    ):
        got = read("deepseek_v2", **fields).moe.balance
        assert (got.loss_weight, got.scope, got.convention) == (weight, scope, "switch")


@pytest.mark.parametrize(
    ("family", "field"),
    [("deepseek_v2", "aux_loss_alpha"), ("mixtral", "router_aux_loss_coef")],
)
@pytest.mark.parametrize("value", ["much", -1, [1]])
def test_a_coefficient_that_is_none_is_refused(family, field, value):
    with pytest.raises(UserError, match="not of its type|must not be negative|at least 0"):
        read(family, **{field: value})


def test_the_loss_of_its_code_and_padding_is_left_out():
    """Their formula (``MoEGate``) has no mask: it is that of each sequence without its padding."""
    rng, (B, S, E, K) = np.random.default_rng(0), (3, 8, 6, 2)
    logits_GSE = rng.normal(size=(B, S, E)).astype(np.float32)
    length_B = np.array([8, 5, 3])
    real_GS = np.arange(S) < length_B[:, None]
    moe = MoEConfig(balance=BalanceConfig(scope="sequence"))

    @jax.jit
    def ours(logits_GSE, real_GS):
        inputs = RouterInput(logits_GSE=logits_GSE, real_GS=real_GS, top_k=K, capacity=1)
        choice = ROUTERS["deepseek_v2"].choose(inputs)
        stats = balance.router_stats(inputs, choice, asked(choice, real_GS), ~real_GS, rows=B)
        total_L, scopes = scoped_loss(jax.tree.map(lambda x: x[None], stats), moe, devices=1)
        return total_L[0] / scopes, balance.balance_loss(jax.tree.map(lambda x: x.sum(0), stats))

    def theirs(logits_SE):
        power_SE = np.exp(logits_SE)
        scores_SE = power_SE / power_SE.sum(-1, keepdims=True)
        taken_SK = np.argsort(-scores_SE, axis=-1)[:, :K]
        ce_E = np.bincount(taken_SK.ravel(), minlength=E) / (len(logits_SE) * K / E)
        return (ce_E * scores_SE.mean(0)).sum()

    cut = [logits_GSE[b, :n] for b, n in enumerate(length_B)]
    by_sequence, whole = ours(logits_GSE, real_GS)
    np.testing.assert_allclose(by_sequence, np.mean([*map(theirs, cut)]), rtol=1e-6)
    np.testing.assert_allclose(whole, theirs(np.concatenate(cut)), rtol=1e-6)  # seq_aux false


# What a coefficient is worth by the other convention.


def test_an_export_gives_the_coefficient_by_the_convention_of_its_family():
    """Where layers are alike, the loss is the same number: it is 1 in each, or K over all."""
    layers, K = 2, 3
    mine = read("qwen3_moe", router_aux_loss_coef=0.06)
    assert (sum(mine.routed_layers), mine.moe.top_k) == (layers, K)
    own = changed(mine, {"moe.balance": {"convention": "switch", "loss_weight": 0.06}})
    for config, want in ((mine, 0.06), (own, 0.06 * layers / K)):
        written = write_config(config, None, "qwen3_moe")
        assert written["router_aux_loss_coef"] == pytest.approx(want)
    v2 = read("deepseek_v2", aux_loss_alpha=0.03, seq_aux=False)
    written = write_config(v2, None, "deepseek_v2")
    assert (written["aux_loss_alpha"], written["seq_aux"]) == (0.03, False)
    pooled = changed(v2, {"moe.balance": {"convention": "hf", "loss_weight": 0.03}})
    routed = sum(v2.routed_layers)
    written = write_config(pooled, None, "deepseek_v2")
    assert written["aux_loss_alpha"] == pytest.approx(0.03 * v2.moe.top_k / routed)


@pytest.mark.parametrize("convention", ["switch", "hf"])
def test_both_conventions_are_alike_where_layers_are(convention):
    """The factor of the export, in losses."""
    rng, L, K = np.random.default_rng(1), 3, 2
    asked_E, probability_E = rng.integers(1, 9, 4).astype(np.float32), rng.random(4)
    tokens = asked_E.sum() / K
    probability_E = (probability_E / probability_E.sum() * tokens).astype(np.float32)
    alike = {"tokens_B": tokens, "asked_BE": asked_E, "probability_BE": probability_E}
    names = [field.name for field in dataclasses.fields(balance.RouterStats)]
    known = {n: jnp.stack([jnp.asarray(alike[n])] * L) if n in alike else None for n in names}
    stats = balance.RouterStats(**known)
    pooled, layers = balance.pooled_balance_loss(stats).sum(), balance.balance_loss(stats).sum()
    weight = {"switch": (L / K * pooled, layers), "hf": (pooled, K / L * layers)}[convention]
    np.testing.assert_allclose(*weight, rtol=1e-6)


# The bias that a model came with.


@pytest.mark.parametrize(
    ("update", "want"), [("none", [0.5, 0.1, -0.2, 0]), ("sign", [0.499, 0.101, -0.199, 0])]
)
def test_the_bias_of_a_model_is_frozen_or_goes_on(update, want):
    config = changed(read("dots1"), {"moe.balance.bias_update": update})
    names = [field.name for field in dataclasses.fields(balance.RouterStats)]
    known = dict.fromkeys(names) | {"asked_BE": jnp.float32([[9, 1, 2, 4]])}
    sums = SimpleNamespace(router=balance.RouterStats(**known))
    got, _ = move_balance(jnp.float32([[0.5, 0.1, -0.2, 0]]), NOTHING, sums, config.moe)
    np.testing.assert_allclose(got, [want], atol=1e-7)


# The line at the start.


def test_the_line_says_what_is_kept_and_what_is_changed():
    before = read("ernie4_5_moe")

    def line(**changes):
        begun = changed(Config(), {"model": before, "run.init_from": "models/ernie"})
        return compare_balance(changed(begun, changes), before)

    kept = line()
    assert kept.endswith("selection bias frozen; as models/ernie has it")
    assert kept.startswith("0.001 x the balance loss of transformers (3 at balance")
    moves = line(**{"model.moe.balance.bias_update": "sign"})
    assert "selection bias moved by 0.001 a step (sign); models/ernie has: 0.001 x" in moves
    beside = {"run.lora.rank": 2, "model.moe.balance.bias_update": "sign"}
    assert "selection bias frozen; as" in line(**beside)
    assert "moved" in line(**beside, **{"run.lora.routers": True})
    other = line(**{"model.moe.balance": {"loss_weight": 0.1, "z_loss_weight": 0.01}})
    assert "0.1 x the balance loss" in other and "0.01 x the z loss" in other
    assert other.endswith("; models/ernie has: " + kept.partition(";")[0])
    assert compare_balance(changed(Config(), {"model.moe.every": 0}), None) == ""
