"""Every router, with and without drops and padding, against the float64 oracle: outputs, weights,
who was dropped, every loss and every gradient.

Sequences have one token here, and two groups have eight: what is summed over a sequence is the
token's own.
"""

import functools
import math
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from moejax.config import BalanceConfig, MoEConfig
from moejax.moe import balance, selection_bias
from moejax.moe.layer import MoELayer
from moejax.routing import assignment, baselines, expert_choice
from moejax.routing.assignment import BaseRule
from moejax.routing.contract import RouterInput
from moejax.routing.expert_choice import ExpertChoiceRule
from moejax.routing.routers import ROUTERS
from moejax.routing.token_choice import TokenChoiceRule
from moejax.train.objective import losses, objective, scoped_loss
from moejax.train.reports import Sums

G, S, D, E, F, LENGTH = 2, 8, 5, 6, 3, 4

REAL = {
    "no padding": np.ones((G, S), bool),
    "padding": np.array([[1, 1, 0, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 0, 1, 1]], bool),
}


@dataclass(frozen=True)
class Case:
    """A router, and settings that bring out what is its own."""

    router: str
    top_k: int = 2
    biased: bool = False
    """With a selection bias that changes choices."""
    alias: bool = False
    """Its rule is that of another router here: tested in the slow grid."""
    seed: int = 4
    settings: tuple[tuple[str, int | str | tuple[int, ...]], ...] = ()


def case(router: str, top_k=2, biased=False, alias=False, seed=4, **settings) -> Case:
    return Case(router, top_k, biased, alias, seed, tuple(settings.items()))


CASES = {
    "dense": case("dense", E, alias=True, expert_groups=3),
    "top_k": case("top_k", expert_groups=3),
    "top_k, biased": case("top_k", 3, biased=True, alias=True),
    "noisy_top_k": case("noisy_top_k", expert_groups=2),
    "switch": case("switch", 1, expert_groups=3),
    "gshard": case("gshard", expert_groups=2),
    "v_moe": case("v_moe", expert_groups=3),
    "mixtral": case("mixtral", alias=True),
    "deepseek_moe": case("deepseek_moe", 3, alias=True, expert_groups=3),
    "qwen2_moe": case("qwen2_moe", alias=True),
    "qwen3_moe": case("qwen3_moe", alias=True),
    "olmoe": case("olmoe", alias=True),
    "jamba": case("jamba", alias=True),
    "granite": case("granite", alias=True),
    "gpt_oss": case("gpt_oss", 3, seed=5),
    "llama4": case("llama4", 1, expert_groups=3),
    "llama4, two experts": case("llama4", alias=True),
    "deepseek_v2": case("deepseek_v2", 3, expert_groups=3, kept_expert_groups=2),
    "deepseek_v3": case("deepseek_v3", biased=True, expert_groups=2, kept_expert_groups=1),
    "deepseek_v3, no groups": case("deepseek_v3", 3, biased=True, alias=True),
    "glm4_moe": case("glm4_moe", biased=True, alias=True, expert_groups=3, kept_expert_groups=2),
    "minimax_m2": case("minimax_m2", biased=True, alias=True),
    "minimax_m2, bias on logits": case("minimax_m2", biased=True, alias=True, bias_on="logits"),
    "flint": case("flint", alias=True),
    "ernie4_5": case("ernie4_5", biased=True),
    "identity and null experts": case("olmoe", expert_groups=3, identity_experts=2, null_experts=1),
    "dynamic_top_p": case("dynamic_top_p", 3),
    "expert_threshold": case("expert_threshold", 3, biased=True),
    "remoe": case("remoe", 3, alias=True),
    "base": case("base", 1),
    "sinkhorn": case("sinkhorn"),
    "hash": case("hash"),
    "hash_weighted": case("hash_weighted", 3, alias=True),
    "hash_balanced": case("hash_balanced", alias=True, token_counts=(1, 9, 0, 4, 3, 7, 2)),
    "random": case("random"),
    "expert_choice": case("expert_choice"),
    "expert_choice, capped": case("expert_choice", max_experts_per_token=2),
    "soft": case("soft"),
}
OF_PAPERS = [name for name, c in CASES.items() if not c.alias]
ALIASES = [name for name, c in CASES.items() if c.alias]
WEIGHTS = {
    "balance_loss": 0.7,
    "pooled_balance_loss": 0.4,
    "z_loss": 0.05,
    "importance_loss": 0.6,
    "load_loss": 0.8,
    "device_loss": 0.5,
    "communication_loss": 0.9,
    "scoped_loss": 0.3,
}
# The objective takes one kind of balance loss: each mode has another.
MODES = {
    "no drops": ({"capacity_factor": 100.0}, {"convention": "hf"}),
    "drops by position": ({"capacity_factor": 0.5}, {"scope": "sequence"}),
    "drops by priority": ({"capacity_factor": 0.5, "seating": "priority"}, {"scope": "device"}),
}
SCOPES = {"sequence": LENGTH, "device": S}
NO_TOKEN_CHOICE = {"expert_choice", "soft"}


OURS = frozenset(ROUTERS)  # before any test registers its own


def test_every_router_has_a_case():
    assert {c.router for c in CASES.values()} == OURS


def modes(case: Case) -> list[str]:
    """Where experts choose, nothing is dropped; but they may take few or all."""
    if case.router == "soft" or "max_experts_per_token" in dict(case.settings):
        return ["drops by position"]  # every expert with all tokens would break the cap
    return list(MODES)[: 2 if case.router == "expert_choice" else 3]


@functools.cache
def settings_of(case: Case, mode: str, dispatch: str = "einsum") -> MoEConfig:
    layer, scope = MODES[mode]
    grouped, noisy = "expert_groups" in dict(case.settings), case.router == "noisy_top_k"
    kind = "pooled_balance_loss" if "convention" in scope else "scoped_loss"
    weights = BalanceConfig(
        loss_weight=WEIGHTS[kind],
        z_loss_weight=WEIGHTS["z_loss"],
        importance_loss_weight=WEIGHTS["importance_loss"],
        load_loss_weight=WEIGHTS["load_loss"] * noisy,
        device_loss_weight=WEIGHTS["device_loss"] * grouped,
        communication_loss_weight=WEIGHTS["communication_loss"] * grouped,
        **scope,
    )
    return MoEConfig(
        num_experts=E,
        top_k=case.top_k,
        hidden_size=F,
        router=case.router,
        group_size=S,
        shared_experts=2,
        shared_gate=True,
        dispatch=dispatch,
        balance=weights,
        **dict(case.settings),
        **layer,
    )


def slots_of(moe: MoEConfig) -> int:
    return oracle.capacity(S, moe.top_k, moe.num_choices, moe.capacity_factor)


# The same numbers for both sides.


@dataclass
class Numbers:
    """Inputs of a layer, in float64; and the random key from which it draws."""

    params: dict
    x_GSD: np.ndarray
    bias_E: np.ndarray | None
    id_GS: np.ndarray
    cotangent_GSD: np.ndarray
    key: jax.Array


def numbers(case: Case, moe: MoEConfig) -> Numbers:
    rng = np.random.default_rng(case.seed)
    return Numbers(
        params=single(parameters(moe, rng)),
        x_GSD=single(rng.normal(size=(G, S, D))),
        bias_E=single(0.3 * rng.normal(size=moe.num_choices)) if case.biased else None,
        id_GS=rng.integers(0, 10 if moe.token_counts else 2**31, (G, S)),
        cotangent_GSD=single(rng.normal(size=(G, S, D)) / math.sqrt(G * S * D)),
        key=jax.random.key(case.seed),
    )


def single(tree):
    """The nearest float32 numbers, in float64: both sides begin with the very same ones."""
    return jax.tree.map(lambda x: np.asarray(np.float32(x), np.float64), tree)


def parameters(moe: MoEConfig, rng: np.random.Generator) -> dict:
    """Random parameters; a router with strong opinions, so that experts overflow."""

    def normal(*shape):
        return rng.normal(size=shape) * shape[-2] ** -0.5

    params = {name: normal(E, D, F) for name in ("w_gate_EDF", "w_up_EDF")}
    params |= {"w_down_EFD": normal(E, F, D), "w_shared_gate_D1": normal(D, 1)}
    params["shared"] = {name: normal(D, 2 * F) for name in ("w_gate_DF", "w_up_DF")}
    params["shared"]["w_down_FD"] = normal(2 * F, D)
    router, choices = moe.built_router, moe.num_choices
    if router.slots:
        params |= {"w_router_DEC": normal(D, E, slots_of(moe)), "router_scale": np.array(2.5)}
    elif router.learned:
        params["w_router_DE"] = 2 * normal(D, choices)
    if router.linear_bias:
        params["b_router_E"] = rng.normal(size=choices)
    if getattr(router.rule, "noise", None) == "learned":
        params["w_noise_DE"] = normal(D, choices)
    return params


class Probe(nn.Module):
    """Draws the key that a layer at the same place would draw."""

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.make_rng("router")


def draws(moe: MoEConfig, key: jax.Array) -> oracle.Draws:
    """The random numbers that the layer will draw."""
    chooser = jax.random.split(Probe().apply({}, rngs={"router": key}), 3)[1]
    noise_key, coin_key = jax.random.split(chooser)
    shape = (G, S, moe.num_choices)
    return oracle.Draws(
        normal_GSE=np.float64(jax.random.normal(noise_key, shape)),
        coin_GSK=np.float64(jax.random.uniform(coin_key, (G, S, moe.top_k))),
        uniform_GSE=np.float64(jax.random.uniform(chooser, shape)),
    )


# The library's side.


@functools.partial(jax.jit, static_argnums=0)
def library(moes: tuple[MoEConfig, ...], params, x, real, bias, ids, cotangent, key):
    """Gradients of the objective in each mode, and of all losses together; and what came out."""

    def values(params, x):
        outcomes, rows = [], []
        for moe in moes:
            y, stats, chosen = forward(moe, params, x, real, bias, ids, key)
            outcomes.append((y, stats, chosen, all_losses(moe, stats)))
            rows.append(minimised(moe, stats, (cotangent * y).sum()))
        rows.append(sum(WEIGHTS[name] * loss.sum() for name, loss in outcomes[0][-1].items()))
        return jnp.stack(rows), outcomes

    return jax.jacrev(values, argnums=(0, 1), has_aux=True)(params, x)


def forward(moe: MoEConfig, params, x, real, bias, ids, key=None):
    y, stats, chosen = MoELayer(moe, "swiglu").apply(
        {"params": params},
        x.reshape(-1, 1, D),
        real.reshape(-1, 1),
        training=key is not None,
        bias_E=bias,
        token_BN=ids.reshape(-1, 1),
        rngs={} if key is None else {"router": key},
    )
    return y.reshape(x.shape), stats, chosen


def of_sequences(stats: balance.RouterStats) -> balance.RouterStats:
    """The sums of sequences of four tokens, from those of single tokens; one layer."""
    return jax.tree.map(lambda x: x.reshape(1, -1, LENGTH, *x.shape[1:]).sum(2), stats)


def all_losses(moe: MoEConfig, stats: balance.RouterStats) -> dict[str, jax.Array]:
    """Those of the batch, and the sums of those of sequences and of two devices."""
    moe = replace(moe, balance=replace(moe.balance, convention="hf", scope="batch"))
    found = losses(balance.sum_sequences(of_sequences(stats)), moe)
    scoped = [replace(moe, balance=BalanceConfig(scope=scope)) for scope in SCOPES]
    parts = [scoped_loss(of_sequences(stats), of, devices=2)[0] for of in scoped]
    return found | {"scoped_loss": jnp.stack(parts)}


def minimised(moe: MoEConfig, stats: balance.RouterStats, nats: jax.Array) -> jax.Array:
    """What training minimises, were ``nats`` the cross-entropy of one target."""
    scoped = None, None
    if moe.balance.scope != "batch":
        scoped = scoped_loss(of_sequences(stats), moe, devices=2)
    summed = balance.sum_sequences(of_sequences(stats))
    sums = Sums(nats, nats, nats, jnp.ones(()), jnp.ones(()), summed, *scoped)
    return objective(sums, sums, moe)


# The oracle's side.


def oracle_layer(case: Case, moe: MoEConfig) -> oracle.Layer:
    given = dict(case.settings)
    names = ["expert_groups", "kept_expert_groups", "max_experts_per_token", "bias_on"]
    names += ["token_counts"]
    return oracle.Layer(
        case.router,
        case.top_k,
        slots_of(moe),
        seating=moe.seating,
        identity_experts=moe.identity_experts,
        null_experts=moe.null_experts,
        **{name: given.get(name) for name in names},
    )


def oracle_losses(layer: oracle.Layer, groups: list[oracle.Group]) -> dict[str, float | list]:
    t, Q = oracle.tokens_of(groups), layer.expert_groups
    found = {
        "balance_loss": oracle.switch_balance(t),
        "pooled_balance_loss": oracle.hf_balance([t]),
        "z_loss": oracle.z_loss(t),
        "importance_loss": oracle.importance_loss(t),
    }
    if layer.router == "noisy_top_k":
        found["load_loss"] = oracle.load_loss(t)
    if Q is not None:
        # A second choice that lost its coin is not among the K T choices of the paper's formula.
        choices = t.asked.sum() / len(t.asked)
        sent = layer.kept_expert_groups or min(layer.top_k, Q)
        found["device_loss"] = oracle.device_loss(t, Q, choices)
        found["communication_loss"] = oracle.communication_loss(t, Q, sent)
    scoped = []
    for size in SCOPES.values():
        parts = [oracle.tokens_of(groups, i, i + size) for i in range(0, G * S, size)]
        scoped.append(sum(oracle.switch_balance(part) for part in parts))
    return found | {"scoped_loss": np.array(scoped)}


class Truth:
    """The oracle on one case: its first run makes the plan that the later ones keep."""

    def __init__(self, case: Case, mode: str, real: np.ndarray):
        self.moe = settings_of(case, mode)
        self.layer, self.data = oracle_layer(case, self.moe), numbers(case, self.moe)
        self.real, self.draws = real, draws(self.moe, self.data.key)
        # What comes out at padding is nobody's business.
        self.cotangent_GSD = np.where(real[..., None], self.data.cotangent_GSD, 0)
        self.groups = self.run(self.data.params, self.data.x_GSD)
        self.losses = oracle_losses(self.layer, self.groups)

    def run(self, params, x_GSD, plan=None) -> list[oracle.Group]:
        numbers = self.draws, self.data.bias_E, self.data.id_GS
        return oracle.run(self.layer, params, x_GSD, self.real, *numbers, plan)

    def without(self, what: str) -> np.ndarray:
        """Who is asked if the router has no ``draws``, ``bias_E`` or setting of its layer."""
        settings = {what: False if what == "training" else None}
        layer = replace(self.layer, **settings) if hasattr(self.layer, what) else self.layer
        numbers = (
            None if what == "draws" else self.draws,
            None if what == "bias_E" else self.data.bias_E,
            self.data.id_GS,
        )
        groups = oracle.run(layer, self.data.params, self.data.x_GSD, self.real, *numbers)
        return np.concatenate([g.asked_SE for g in groups])

    def all(self, name: str) -> np.ndarray:
        """An array of all tokens [T, E], zero at padding."""
        return np.concatenate([getattr(g, name) for g in self.groups])

    def again(self, inputs: dict) -> tuple[np.ndarray, dict]:
        """Outputs and losses of other numbers, under the same plan."""
        params = {name: value for name, value in inputs.items() if name != "x"}
        groups = self.run(params, inputs["x"], [g.plan for g in self.groups])
        return np.stack([g.y_SD for g in groups]), oracle_losses(self.layer, groups)

    def minimised(self, inputs: dict) -> float:
        """<cotangent, y> and the losses that the settings of this mode weigh."""
        y, found = self.again(inputs)
        names = found.keys() - {"balance_loss", "pooled_balance_loss", "scoped_loss"}
        value = (self.cotangent_GSD * y).sum() + sum(WEIGHTS[n] * found[n] for n in names)
        if self.moe.balance.convention == "hf":
            return value + WEIGHTS["pooled_balance_loss"] * found["pooled_balance_loss"]
        place = list(SCOPES).index(self.moe.balance.scope)
        scopes = G * S / SCOPES[self.moe.balance.scope]
        return value + WEIGHTS["scoped_loss"] * found["scoped_loss"][place] / scopes

    def all_losses(self, inputs: dict) -> float:
        return sum(WEIGHTS[name] * np.sum(v) for name, v in self.again(inputs)[1].items())


# The grid.


def compare(name: str, subtests, dispatch: str = "einsum") -> None:
    case = CASES[name]
    moes = tuple(settings_of(case, mode, dispatch) for mode in modes(case))
    data = numbers(case, moes[0])
    for padding, real in REAL.items():
        truths = [Truth(case, mode, real) for mode in modes(case)]
        inputs = f32((data.params, data.x_GSD, real, data.bias_E))
        ids, cotangent = np.int32(data.id_GS), np.float32(truths[0].cotangent_GSD)
        gradients, outcomes = library(moes, *inputs, ids, cotangent, data.key)
        for i, truth in enumerate(truths):
            with subtests.test(mode=modes(case)[i], padding=padding):
                compare_outcome(truth, *outcomes[i])
                own = jax.tree.map(lambda row, i=i: row[i], gradients)
                compare_gradients(truth, truth.minimised, own)
        with subtests.test(all_losses=True, padding=padding):
            own = jax.tree.map(lambda row: row[-1], gradients)
            compare_gradients(truths[0], truths[0].all_losses, own)
        if padding == "no padding":
            something_was_dropped(case, truths)


def compare_outcome(truth: Truth, y, stats: balance.RouterStats, chosen, found) -> None:
    """Token by token: who asked for whom, who got a seat, with which weight."""
    np.testing.assert_array_equal(chosen[:, 0], truth.all("asked_SE") > 0)
    for name in ("asked", "seated", "weight", "probability"):
        want = truth.all(f"{name}_SE")
        np.testing.assert_allclose(getattr(stats, f"{name}_BE"), want, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(stats.tokens_B, truth.real.reshape(-1))
    assert stats.bad_B.sum() == 0
    same_outputs(y, truth.groups)
    assert found.keys() == truth.losses.keys()
    for name, value in found.items():
        want = np.atleast_1d(truth.losses[name]).reshape(value.shape)
        np.testing.assert_allclose(value, want, atol=1e-5, err_msg=name)


def same_outputs(y_GSD: jax.Array, groups: list[oracle.Group]) -> None:
    for y_SD, group in zip(np.array(y_GSD), groups, strict=True):
        np.testing.assert_allclose(y_SD[group.real], group.y_SD[group.real], atol=1e-5)


def compare_gradients(truth: Truth, function, gradients) -> None:
    """Along random directions in every array: parameters, and the tokens ``x``."""
    rng = np.random.default_rng(6)
    inputs = truth.data.params | {"x": truth.data.x_GSD}
    got = oracle.flat(gradients[0] | {"x": gradients[1]})
    for name, array in oracle.flat(inputs).items():
        for _ in range(2):
            direction = rng.normal(size=array.shape)
            direction /= np.sqrt((direction**2).sum())
            want = oracle.slope(function, inputs, name, direction)
            derivative = (np.float64(got[name]) * direction).sum()
            np.testing.assert_allclose(derivative, want, atol=1e-5, err_msg=name)
            assert "router" not in name or abs(want) > 1e-4  # the router learns


def something_was_dropped(case: Case, truths: list[Truth]) -> None:
    """A mode that drops does drop; by priority, others than by position."""
    if len(truths) < 3:
        return
    asked = truths[0].all("asked_SE").sum()
    seated = [truth.all("seated_SE") for truth in truths]
    assert asked == seated[0].sum() > seated[1].sum()
    alike = case.router in ("hash", "random")  # all weights are the same
    assert (seated[1] == seated[2]).all() == alike


def f32(tree):
    return jax.tree.map(lambda x: x if x.dtype == bool else np.float32(x), tree)


@pytest.mark.parametrize("name", OF_PAPERS)
def test_the_layer_equals_the_oracle(name, subtests):
    compare(name, subtests)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIASES)
def test_the_layer_equals_the_oracle_where_routers_share_a_rule(name, subtests):
    compare(name, subtests)


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["gather", "grouped"])
@pytest.mark.parametrize("name", [n for n in OF_PAPERS if n != "soft"] + ["hash_balanced"])
def test_every_form_of_dispatch_equals_the_oracle(name, dispatch, subtests):
    if dispatch == "grouped" and CASES[name].router in NO_TOKEN_CHOICE:
        return  # its rows are the tokens' choices; the config refuses it
    compare(name, subtests, dispatch)


WHAT_COUNTS = {
    "noisy_top_k": "draws",
    "v_moe": "draws",
    "gshard": "draws",
    "top_k, biased": "bias_E",
    "deepseek_v2": "kept_expert_groups",
    "deepseek_v3": "kept_expert_groups",
    "deepseek_v3, no groups": "bias_E",
    "glm4_moe": "kept_expert_groups",
    "minimax_m2": "bias_E",
    "minimax_m2, bias on logits": "bias_on",
    "ernie4_5": "bias_E",
    "expert_threshold": "bias_E",
    "hash_balanced": "token_counts",
    "base": "training",
    "sinkhorn": "training",
    "expert_choice, capped": "max_experts_per_token",
}


@pytest.mark.parametrize(("name", "what"), WHAT_COUNTS.items())
def test_what_is_special_about_a_router_changes_choices_here(name, what):
    """Else the grid would not see it."""
    truth = Truth(CASES[name], "drops by position", REAL["no padding"])
    assert (truth.all("asked_SE") != truth.without(what)).any()


# Evaluation.


@pytest.mark.parametrize("name", ["noisy_top_k", "gshard", "v_moe", "base", "sinkhorn", "random"])
def test_in_evaluation_nothing_is_drawn_and_nothing_balanced(name):
    case = CASES[name]
    moe = replace(settings_of(case, "no drops"), eval_capacity_factor=0.75)
    data, real = numbers(case, moe), REAL["padding"]
    run = jax.jit(forward, static_argnums=0)
    y, stats, _ = run(moe, *f32((data.params, data.x_GSD, real)), None, np.int32(data.id_GS))
    slots = oracle.capacity(S, moe.top_k, E, 0.75)
    layer = replace(oracle_layer(case, moe), training=False, slots=slots)
    uniform = np.float64(jax.random.uniform(jax.random.key(0), (S, E)))
    draws = oracle.Draws(uniform_GSE=np.broadcast_to(uniform, (G, S, E)))
    groups = oracle.run(layer, data.params, data.x_GSD, real, draws)
    asked, seated = (np.concatenate([getattr(g, n) for g in groups]) for n in SEATS)
    np.testing.assert_array_equal(stats.asked_BE, asked)
    np.testing.assert_array_equal(stats.seated_BE, seated)
    assert seated.sum() < asked.sum() == moe.top_k * real.sum()
    same_outputs(y, groups)
    assert stats.smooth_load_BE is None


SEATS = ("asked_SE", "seated_SE")


def test_jitter_and_dropout_disturb_what_the_router_sees_alone():
    case = CASES["switch"]
    moe = settings_of(case, "no drops")
    calm = Truth(case, "no drops", REAL["padding"])
    moe = replace(moe, router_jitter=0.5, router_dropout=0.3)
    data, key = calm.data, jax.random.split(Probe().apply({}, rngs={"router": calm.data.key}), 3)[0]
    jitter_key, dropout_key = jax.random.split(key)
    jitter = jax.random.uniform(jitter_key, (G, S, D), minval=0.5, maxval=1.5)
    kept = jax.random.bernoulli(dropout_key, 0.7, (G, S, D))
    calm.draws.disturbance_GSD = np.float64(jitter) * np.float64(kept) / 0.7
    groups = calm.run(data.params, data.x_GSD)
    run = jax.jit(forward, static_argnums=0)
    inputs = f32((data.params, data.x_GSD, calm.real))
    y, stats, _ = run(moe, *inputs, None, np.int32(data.id_GS), data.key)
    asked = np.concatenate([g.asked_SE for g in groups])
    np.testing.assert_array_equal(stats.asked_BE, asked)
    assert (asked != calm.all("asked_SE")).any()
    same_outputs(y, groups)


# Losses and bias updates beyond one layer and one step.


def group_of(stats: oracle.Tokens) -> balance.RouterStats:
    """The sums of one layer, with what the pooled loss looks at."""
    zero = jnp.zeros(())
    asked, probability, weight = (stats.asked, stats.probability, stats.weight)
    return balance.RouterStats(
        tokens_B=jnp.float32(len(asked)),
        bad_B=zero,
        asked_BE=jnp.float32(asked.sum(0)),
        seated_BE=zero,
        probability_BE=jnp.float32(probability.sum(0)),
        weight_BE=jnp.float32(weight.sum(0)),
        log_z_squared_B=zero,
        entropy_B=zero,
        unbiased_BE=jnp.float32(stats.counted.sum(0)),
    )


def test_layers_are_pooled_as_in_the_code_of_released_models():
    """Two layers with other loads: the product of the means is not the mean of the products."""
    layers = []
    for name, real in (("qwen3_moe", "padding"), ("gshard", "no padding")):
        layers.append(oracle.tokens_of(Truth(CASES[name], "no drops", REAL[real]).groups))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(group_of, layers))
    pooled = balance.pooled_balance_loss(stacked)
    np.testing.assert_allclose(pooled, [oracle.hf_balance(layers)], rtol=1e-6)
    apart = [oracle.hf_balance([layer]) for layer in layers]
    assert abs(pooled[0] - np.mean(apart)) > 0.01


@pytest.mark.parametrize("name", ["deepseek_moe", "deepseek_v2", "deepseek_v3, no groups"])
def test_the_balance_of_a_sequence_is_that_of_the_deepseek_papers(name):
    """Their f_i = N / (K T) * count is our share of choices, times N: the very same constant."""
    truth = Truth(CASES[name], "no drops", REAL["padding"])
    for first in range(0, G * S, LENGTH):
        sequence = oracle.tokens_of(truth.groups, first, first + LENGTH)
        want = oracle.deepseek_expert_balance(sequence, truth.layer.top_k)
        np.testing.assert_allclose(balance.balance_loss(group_of(sequence)), want, rtol=1e-5)


@pytest.mark.parametrize("update", ["sign", "proportional"])
def test_the_bias_moves_as_in_the_paper(update):
    rng = np.random.default_rng(0)
    bias = single(0.1 * rng.normal(size=(2, E)))
    asked = rng.integers(0, 40, (2, E)).astype(float)
    asked[0, 0] = asked[0, 1:].mean()  # exactly the mean: the sign is 0
    exact = {"sign": oracle.sign_update, "proportional": oracle.proportional_update}[update]
    want = [exact(b, a, 0.01) for b, a in zip(bias, asked, strict=True)]
    got = selection_bias.step(jnp.float32(bias), jnp.float32(asked), update, 0.01)
    np.testing.assert_allclose(got, want, atol=1e-7)
    centred = selection_bias.centre(got)
    np.testing.assert_allclose(centred, [oracle.centred(b) for b in want], atol=1e-7)
    np.testing.assert_allclose(centred.sum(-1), 0, atol=1e-6)


def test_the_bias_moves_towards_the_experts_that_a_token_should_have_as_in_longcat():
    """Four experts and two without computation: of K = 3 choices, 2 should compute."""
    rng = np.random.default_rng(0)
    bias, asked = single(0.1 * rng.normal(size=(2, E))), rng.integers(5, 40, (2, E)).astype(float)
    share_E = selection_bias.target_shares(experts=4, others=2, top_k=3, per_token=2.0)
    mu, lists = 0.05, zip(bias, asked, strict=True)
    want = [oracle.longcat_update(b, a, mu, experts=4, top_k=3, per_token=2.0) for b, a in lists]
    arrays = jnp.float32(bias), jnp.float32(asked)
    got = selection_bias.step(*arrays, "proportional", mu * 2 / 3 / 4, share_E)
    np.testing.assert_allclose(got, want, atol=1e-7)
    signs = selection_bias.step(*arrays, "sign", 0.01, share_E)
    np.testing.assert_allclose(signs - bias, 0.01 * np.sign(got - bias), atol=1e-7)
    np.testing.assert_array_equal(np.asarray(got)[:, 4:], np.float32(bias)[:, 4:])


def test_a_controlled_bias_is_that_of_the_books_step_by_step():
    """Some begin with a bias beyond the limit, and one sum is wound up as far as it goes."""
    rng = np.random.default_rng(0)
    asked_TLE = rng.integers(0, 40, (12, 2, E)).astype(float)
    asked_TLE[:6, 0, 1] = 0
    begin = single(0.3 * rng.normal(size=(2, E)))
    gains = {"rate": 0.1, "proportional": 3.0, "difference": 2.0, "limit": 0.25}
    sum_LE, last_LE, got, sums = jnp.float32(begin), jnp.zeros((2, E)), [], []
    for asked_LE in jnp.float32(asked_TLE):
        lack_LE = selection_bias.relative_lack(asked_LE)
        bias_LE, sum_LE = selection_bias.control(
            sum_LE, last_LE, lack_LE, selection_bias.Gains(**gains)
        )
        last_LE = lack_LE
        got.append(bias_LE)
        sums.append(sum_LE)
    for layer, expert in np.ndindex(2, E):
        counts = asked_TLE[:, layer, expert]
        want = oracle.pid_updates(
            *(begin[layer, expert], counts, asked_TLE[:, layer].mean(-1)),
            *(gains["rate"], gains["proportional"], gains["difference"], gains["limit"]),
        )
        np.testing.assert_allclose(np.array(got)[:, layer, expert], want, atol=2e-6)
    assert np.abs(begin).max() > 0.25 and np.array(sums)[5, 0, 1] == np.float32(0.25)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_the_histogram_finds_the_quantile_to_a_bin(score):
    """All groups of a batch, padding left out: what wants an expert is a share K / E of tokens."""
    rng = np.random.default_rng(1)
    logits = single(rng.normal(size=(4, 64, E)) + np.linspace(-1, 1, E))
    bias, real, K = single(0.1 * rng.normal(size=E)), rng.random((4, 64)) < 0.8, 2
    inputs = RouterInput(
        logits_GSE=jnp.float32(logits),
        real_GS=jnp.array(real),
        top_k=K,
        capacity=1,
        bias_E=jnp.float32(bias),
    )
    margin = selection_bias.margin_histogram(inputs, TokenChoiceRule(score=score))
    got = selection_bias.quantile(jnp.float32(bias)[None], margin[None], K)[0]
    exact = {"sigmoid": oracle.sigmoid, "softmax": oracle.softmax}[score]
    scores = np.array([exact(row) for row in logits[real]])
    low, high = oracle.quantile_update(scores, bias, K)
    width = (np.ptp(bias) + 2) / selection_bias.BINS
    # Centring has moved all by the same.
    assert (low - width - got).max() <= (high + width - got).min()
    assert margin.sum() == real.sum() * E
    # The load evens out at once.
    before, after = (violation(scores, b, K) for b in (bias, np.float64(got)))
    assert after < 0.3 * before


def test_thresholds_lie_where_the_wanted_share_of_scores_is_above_them():
    """The first step goes there at once; the second, of other tokens, a tenth of the way."""
    rng = np.random.default_rng(1)
    wanted, width = 1.5, 2 / selection_bias.BINS
    bias, rule = jnp.zeros((1, E)), TokenChoiceRule(score="sigmoid", positive=True)

    @jax.jit
    def move(bias, logits, real):
        inputs = RouterInput(logits_GSE=logits, real_GS=real, top_k=3, capacity=1, bias_E=bias[0])
        margin_EM = selection_bias.score_histogram(inputs, rule)
        return selection_bias.threshold(bias, margin_EM[None], wanted, 0.1)

    for step in range(2):
        logits = single(rng.normal(size=(4, 64, E)) + np.linspace(-1, 1, E) + step)
        real, before = rng.random((4, 64)) < 0.8, np.float64(bias[0])
        bias = move(bias, jnp.float32(logits), jnp.array(real))
        scores = np.array([oracle.sigmoid(row) for row in logits[real]])
        low, high = oracle.threshold_of(scores, wanted)
        moved = -np.float64(bias[0])
        if step:
            low, high = (before * -0.9 + 0.1 * at for at in (low, high))
        assert (moved > low - 2 * width).all() and (moved < high + 2 * width).all()
        if not step:
            share_E = (scores > moved).mean(0)
            np.testing.assert_allclose(share_E, wanted / E, atol=0.02)
    stays = move(bias, jnp.float32(logits), jnp.zeros((4, 64), bool))
    np.testing.assert_allclose(stays, bias, atol=1e-7)


def violation(scores: np.ndarray, bias: np.ndarray, top_k: int) -> float:
    """The largest load over the mean, less 1."""
    load = np.zeros(E)
    for row in scores:
        load[oracle.best(row + bias, top_k)] += 1
    return load.max() / load.mean() - 1


# Assignments, where the grid is too small to try them.


def test_base_finds_the_best_assignment_to_the_precision_that_it_promises():
    rng = np.random.default_rng(2)
    G, S, E = 6, 50, 8
    scores = single(rng.normal(size=(G, S, E)) + np.linspace(-1, 1, E))
    real = np.arange(S) < np.array([50, 50, 49, 30, 7, 0])[:, None]
    run = jax.jit(assignment.balanced_assignment, static_argnums=2)
    expert_GS = np.array(run(jnp.float32(scores), jnp.array(real), BaseRule()))
    for g in range(G):
        tokens = np.flatnonzero(real[g])
        best = oracle.base_assignment(None, scores[g], list(tokens))
        most = sum(scores[g, s, e] for s, (e,) in best.items())
        found = scores[g, tokens, expert_GS[g, tokens]].sum()
        lost = BaseRule().precision * np.ptp(np.where(real[g][:, None], scores[g], 0)) * S
        assert most - lost - 1e-4 <= found <= most + 1e-4
        assert np.bincount(expert_GS[g], minlength=E).max() <= math.ceil(S / E)


def test_the_capped_assignment_solves_its_equation():
    rng = np.random.default_rng(3)
    score = np.array([oracle.softmax(2 * rng.normal(size=E)) for _ in range(48)])
    score = single(score.reshape(2, 24, E))
    real, slots = np.arange(24) < np.array([[24], [22]]), 7
    rule = ExpertChoiceRule(max_experts_per_token=2, temperature=0.05, iterations=1000)
    run = jax.jit(expert_choice.capped_assignment, static_argnums=(2, 3))
    found = run(jnp.float32(score), jnp.array(real), slots, rule)
    for g in range(2):
        want = oracle.capped_assignment(score[g][real[g]], slots, 2, 0.05)
        np.testing.assert_allclose(np.array(found[g])[real[g]], want, atol=2e-3)
        np.testing.assert_allclose(want.sum(0), slots, atol=1e-5)
        assert want.sum(1).max() < 2 + 1e-5 and np.abs(want - 0.5).min() < 0.4


def test_the_hash_is_murmurs():
    numbers = [0, 1, 2, 123456789, 2**31, 2**32 - 1]
    want = [oracle.murmur_finaliser(n) for n in numbers]
    assert want[:2] == [0, 0x514E28B7]  # as everywhere
    np.testing.assert_array_equal(baselines.mix(jnp.array(numbers, jnp.uint32)), want)
