"""What must hold of every router, whatever the logits: permutations, padding, weights, ties."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from moejax.config import MoEConfig
from moejax.moe import balance
from moejax.moe.dispatch import einsum
from moejax.moe.layer import MoELayer
from moejax.routing import contract, token_choice
from moejax.routing.contract import RouterInput, TokenChoice
from moejax.routing.expert_choice import capped_assignment
from moejax.routing.routers import ROUTERS, Router
from moejax.routing.token_choice import TokenChoiceRule

G, S, E, C, D, F = 2, 8, 8, 2, 6, 4

# Without MLIR's emitters XLA:CPU compiles small programs in less than half the time.

property_test = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # a seed has no smaller example
)


def top_k_of(router: Router) -> int:
    return {None: 2, "num_experts": E}.get(router.top_k, router.top_k)


GROUPS = {"expert_groups": 4, "kept_expert_groups": 2}
VARIANTS = {
    "deepseek_v2, groups": ROUTERS["deepseek_v2"].override("deepseek_v2", GROUPS),
    "deepseek_v3, groups": ROUTERS["deepseek_v3"].override("deepseek_v3", GROUPS),
    "expert_choice, capped": ROUTERS["expert_choice"].override(
        "expert_choice", {"max_experts_per_token": 2}
    ),
    "hash_balanced, counted": ROUTERS["hash_balanced"].override(
        "hash_balanced", {"token_counts": (3, 1, 4, 1, 5)}
    ),
    "sqrt_softplus": dataclasses.replace(
        ROUTERS["top_k"], rule=TokenChoiceRule(score="sqrt_softplus", renormalise=True)
    ),
}
ALL = dict(ROUTERS) | VARIANTS
# Many presets are the same function with the same rule: each is tried once, under its first name.
DISTINCT = {(r.function, r.rule, top_k_of(r)): name for name, r in reversed(ALL.items())}
NAMES = [name for name in ALL if name in DISTINCT.values()]
TOKENS_CHOOSE = [name for name in NAMES if not ALL[name].experts_choose]
NONE = [name for name in TOKENS_CHOOSE if getattr(ALL[name].rule, "positive", False)]
FEWER = NONE + [name for name in TOKENS_CHOOSE if getattr(ALL[name].rule, "top_p", None)]
"""Where a token may take fewer experts than K, and where none."""
BY_RULE = [n for n in NAMES if ALL[n].function is token_choice.choose and n not in FEWER]
KEPT_IN_GROUPS = [name for name in NAMES if getattr(ALL[name].rule, "kept_expert_groups", None)]
OF_IDS = [name for name in NAMES if ALL[name].needs_tokens]
every_router = pytest.mark.parametrize("name", NAMES)


def test_every_router_is_tried_under_some_name():
    tried = {(ALL[n].function, ALL[n].rule, top_k_of(ALL[n])) for n in NAMES}
    assert all((r.function, r.rule, top_k_of(r)) in tried for r in ROUTERS.values())
    assert len(NAMES) > 15


@functools.partial(jax.jit, static_argnames=("router", "top_k", "capacity", "training", "seating"))
def answer(arrays, *, router, top_k, capacity, training, seating):
    """All that follows from a choice: who asked for what, got what, and the sums of it."""
    inputs = RouterInput(**arrays, top_k=top_k, capacity=capacity, training=training)
    choice, real_GS = router.choose(inputs), inputs.real_GS
    num_experts = inputs.logits_GSE.shape[-1]
    tensors = einsum.tensors(choice, real_GS, num_experts, capacity, seating)
    stats = balance.router_stats(inputs, choice, tensors[2], ~real_GS, rows=G)
    return {
        "asked_GSE": contract.asked(choice, real_GS),
        "weight_GSE": contract.weight(choice, real_GS),
        "dispatch_GSEC": tensors[0],
        "combine_GSEC": tensors[1],
        "seated_GSE": tensors[2],
        "choice": choice,
        "stats": stats,
    }


def route(name: str, arrays, **more):
    """The answer of a router with slots for all, or as many as it fills, and without randomness."""
    router = ALL[name]
    known = {
        "top_k": top_k_of(router),
        "capacity": C if router.experts_choose else S,
        "training": True,
        "seating": "position",
    }
    return jax.tree.map(np.asarray, answer(arrays, router=router, **(known | more)))


def make(seed: int, spread: float = 1.0, ties: bool = False, padding: bool = True):
    """What a layer would give a router."""
    rng = np.random.default_rng(seed)
    logits_GSEC = spread * rng.normal(size=(G, S, E, C))
    logits_GSEC = np.float32(np.round(logits_GSEC) if ties else logits_GSEC)
    real_GS = (rng.random((G, S)) > 0.25) | (not padding)
    real_GS[:, 0] = True
    return {
        "logits_GSEC": logits_GSEC,
        # Twice the same number, or the log-sum-exp: equal logits stay equal.
        "logits_GSE": logits_GSEC[..., 0] if ties else np.logaddexp.reduce(logits_GSEC, -1),
        "noise_GSE": np.float32(rng.normal(size=(G, S, E))),
        "token_GS": rng.integers(0, 2 ** rng.choice([3, 31]), (G, S), dtype=np.int32),
        "real_GS": real_GS,
        "bias_E": np.zeros(E, np.float32),
    }


seeds = st.integers(0, 2**32 - 1)
distinct = st.builds(make, seed=seeds)  # no two numbers are equal
anything = st.builds(
    make, seed=seeds, spread=st.sampled_from([0.0, 1.0, 100.0]), ties=st.booleans()
)


def per_token(arrays, change):
    """Apply ``change`` to every array that has tokens."""
    return {name: change(x) if "_GS" in name else x for name, x in arrays.items()}


# BASE is left out where only its optimum is determined, not who gets it.
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("random", "base")])
@property_test
@given(arrays=distinct, order=st.permutations(range(S)))
def test_permuting_tokens_permutes_the_answer(name, arrays, order):
    order = list(order)
    moved = route(name, per_token(arrays, lambda x: x[:, order]))
    still = route(name, arrays)
    for what in ("asked_GSE", "weight_GSE", "seated_GSE"):
        np.testing.assert_allclose(moved[what], still[what][:, order], atol=1e-5, err_msg=what)
    by_position = {  # each of the S stretches is one position, and moves with its token
        name: getattr(still["stats"], name)[:, order] for name in ("asked_BW", "seated_BW")
    }
    expected = dataclasses.replace(still["stats"], **by_position)
    chex.assert_trees_all_close(moved["stats"], expected, rtol=1e-4, atol=1e-4)


@property_test
@given(seed=seeds, order=st.permutations(range(S)))
def test_priority_seating_does_not_care_where_a_token_stands(seed, order):
    arrays = make(seed, padding=False)
    order, tight = list(order), {"capacity": 1, "seating": "priority"}
    moved = route("v_moe", per_token(arrays, lambda x: x[:, order]), **tight)
    still = route("v_moe", arrays, **tight)
    assert still["seated_GSE"].sum() < still["asked_GSE"].sum()  # some are dropped
    np.testing.assert_array_equal(moved["seated_GSE"], still["seated_GSE"][:, order])


def has_equal_shares(arrays, rule) -> bool:
    """Whether two experts have the same part of a token under the cap, as far as it settles."""
    probability_GSE = jax.nn.softmax(arrays["logits_GSE"])
    share_GSE = capped_assignment(probability_GSE, arrays["real_GS"], C, rule)
    share_GSE = np.sort(share_GSE, axis=-1)
    near_GSE = np.diff(share_GSE, axis=-1) < 1e-3
    part_GSE = (share_GSE[..., 1:] > 0.01) & (share_GSE[..., 1:] < 0.99)
    return bool((near_GSE & part_GSE).any())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in OF_IDS + ["random", "base"]])
@property_test
@given(
    arrays=distinct,
    groups=st.permutations(range(4)),
    halves=st.tuples(*[st.permutations(range(2))] * 4),
)
def test_permuting_experts_permutes_loads(name, arrays, groups, halves):
    """Groups move as a whole, and experts inside them."""
    # The lower of experts that have equal shares of a token keeps it: those are not alike.
    assume("capped" not in name or not has_equal_shares(arrays, ALL[name].rule))
    order = [2 * q + half for q in groups for half in halves[q]]
    names = ("logits_GSE", "logits_GSEC", "noise_GSE")
    moved = route(name, arrays | {n: arrays[n][:, :, order] for n in names})
    still = route(name, arrays)
    for what in ("asked_GSE", "weight_GSE"):
        np.testing.assert_allclose(moved[what], still[what][..., order], atol=1e-5, err_msg=what)
    load, moved_load = still["stats"].asked_BE, moved["stats"].asked_BE
    np.testing.assert_allclose(moved_load, load[:, order], atol=1e-5)


@every_router
@property_test
@given(arrays=anything, garbage=anything)
def test_what_padding_holds_changes_nothing(name, arrays, garbage):
    real_GS = arrays["real_GS"]
    other = {
        n: x if n in ("real_GS", "bias_E") else np.where(pad_like(x, real_GS), x, 7 * garbage[n])
        for n, x in arrays.items()
    }
    a, b = route(name, arrays), route(name, other)
    for what in ("asked_GSE", "weight_GSE", "seated_GSE", "dispatch_GSEC", "combine_GSEC"):
        np.testing.assert_array_equal(a[what], b[what], err_msg=what)
        np.testing.assert_array_equal(a[what][~real_GS], 0, err_msg=what)
    chex.assert_trees_all_equal(a["stats"], b["stats"])
    np.testing.assert_array_equal(a["stats"].tokens_B, real_GS.sum(1))


def pad_like(x, real_GS):
    return real_GS.reshape(*real_GS.shape, *[1] * (x.ndim - 2))


@pytest.mark.parametrize("name", ["top_k", "deepseek_v3, groups", "hash"])
@property_test
@given(arrays=anything)
def test_more_padding_at_the_end_changes_nothing_where_tokens_choose(name, arrays):
    longer = per_token(arrays, lambda x: np.concatenate([x, x[:, :3]], axis=1))
    longer["real_GS"][:, S:] = False
    # As many slots as before: 3, so that some are dropped.
    a, b = route(name, arrays, capacity=3), route(name, longer, capacity=3)
    for what in ("asked_GSE", "weight_GSE", "seated_GSE"):
        np.testing.assert_allclose(a[what], b[what][:, :S], atol=1e-6, err_msg=what)
        np.testing.assert_array_equal(b[what][:, S:], 0)


@pytest.mark.parametrize("name", TOKENS_CHOOSE)
@property_test
@given(arrays=anything)
def test_nothing_is_dropped_where_capacity_meets_demand(name, arrays):
    got = route(name, arrays)
    np.testing.assert_array_equal(got["seated_GSE"], got["asked_GSE"])
    asked_GS, most_GS = got["asked_GSE"].sum(-1), arrays["real_GS"] * top_k_of(ALL[name])
    least_GS = arrays["real_GS"] if name in FEWER else most_GS
    assert (asked_GS <= most_GS).all()
    assert (asked_GS >= least_GS).all() or name in NONE
    if ALL[name].rule != ROUTERS["llama4"].rule:  # its weights are on the inputs
        np.testing.assert_allclose(got["combine_GSEC"].sum(-1), got["weight_GSE"], atol=1e-6)


@pytest.mark.parametrize("seating", ["position", "priority"])
@property_test
@given(arrays=anything)
def test_an_expert_drops_nobody_before_its_slots_are_full(seating, arrays):
    got = route("top_k", arrays, capacity=3, seating=seating)
    load_GE, seated_GE = got["asked_GSE"].sum(1), got["seated_GSE"].sum(1)
    np.testing.assert_array_equal(seated_GE, np.minimum(load_GE, 3))
    assert (got["seated_GSE"] <= got["asked_GSE"]).all()
    sitting_GEC = got["dispatch_GSEC"].sum(1)
    np.testing.assert_array_equal(sitting_GEC, np.arange(3) < seated_GE[..., None])


@pytest.mark.parametrize("name", TOKENS_CHOOSE)
@property_test
@given(arrays=anything)
def test_no_expert_is_chosen_twice(name, arrays):
    expert_GSK = route(name, arrays)["choice"].expert_GSK
    least = -1 if name in FEWER else 0
    assert expert_GSK.dtype == np.int32 and expert_GSK.min() >= least and expert_GSK.max() < E
    in_order_GSK = np.sort(expert_GSK)
    assert ((np.diff(in_order_GSK, axis=-1) > 0) | (in_order_GSK[..., 1:] == -1)).all()


@every_router
@property_test
@given(arrays=anything)
def test_weights_sum_to_what_the_router_says(name, arrays):
    got, rule, real_GS = route(name, arrays), ALL[name].rule, arrays["real_GS"]
    total_GS = got["weight_GSE"].sum(-1)[real_GS]
    one = name in ("soft", "hash", "random", "dense") or getattr(rule, "renormalise", False)
    scale = getattr(rule, "weight_scale", 1.0)
    if name in OF_IDS and name != "hash":  # who was not asked for may score next to nothing
        assert ((total_GS >= 0) & (total_GS <= scale + 1e-5)).all()
    elif one and name != "sqrt_softplus" and getattr(rule, "score", "") != "sigmoid":
        np.testing.assert_allclose(total_GS, scale, rtol=1e-5)
    elif getattr(rule, "score", "") == "relu":
        assert (total_GS >= 0).all()
        assert ((total_GS > 0) == (got["asked_GSE"].sum(-1)[real_GS] > 0)).all()
    elif one:  # all chosen scores may underflow, and then so do their shares
        assert ((abs(total_GS - scale) < 1e-5) | (total_GS < 1e-5)).all()
    else:
        assert (total_GS >= 0).all()
        most = top_k_of(ALL[name]) if getattr(rule, "score", "") == "sigmoid" else 1
        assert (total_GS <= most + 1e-5).all()
    chex.assert_tree_all_finite((got["weight_GSE"], got["stats"]))


@pytest.mark.parametrize(
    ("name", "weigh"),
    [
        ("deepseek_moe", lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
        ("top_k", lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
        ("llama4", lambda x: 1 / (1 + np.exp(-x))),
        ("minimax_m2", lambda x: (s := 1 / (1 + np.exp(-x))) / s.sum(-1, keepdims=True)),
    ],
)
@property_test
@given(arrays=distinct)
def test_choosing_all_experts_is_dense_gating(name, weigh, arrays):
    got = route(name, arrays, top_k=E)
    want = np.where(arrays["real_GS"][..., None], weigh(arrays["logits_GSE"]), 0)
    np.testing.assert_allclose(got["weight_GSE"], want, rtol=1e-4, atol=1e-6)


SCORES = {
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sqrt_softplus": lambda x: np.sqrt(np.log1p(np.exp(x))),
}


@pytest.mark.parametrize("name", BY_RULE)
@property_test
@given(arrays=distinct, seed=seeds)
def test_the_bias_changes_the_choice_and_never_the_weights(name, arrays, seed):
    bias_E = np.float32(np.random.default_rng(seed).normal(size=E))
    rule, choice = ALL[name].rule, route(name, arrays | {"bias_E": bias_E})["choice"]
    score_GSE = SCORES[rule.score](np.float64(arrays["logits_GSE"]))
    if name not in KEPT_IN_GROUPS:
        best_GSK = np.argsort(-(score_GSE + bias_E), axis=-1)[..., : top_k_of(ALL[name])]
        np.testing.assert_array_equal(choice.expert_GSK, best_GSK)
    weight_GSK = np.take_along_axis(score_GSE, choice.expert_GSK, -1)
    if rule.renormalise:
        weight_GSK /= weight_GSK.sum(-1, keepdims=True)
    np.testing.assert_allclose(choice.weight_GSK, rule.weight_scale * weight_GSK, rtol=1e-4)
    plain = route(name, arrays)["choice"]
    np.testing.assert_array_equal(choice.probability_GSE, plain.probability_GSE)


@pytest.mark.parametrize("name", BY_RULE)
def test_a_large_bias_moves_every_token(name):
    """The property above would not notice a bias that nobody looks at."""
    bias_E = np.float32([0, 0, 0, 0, 0, 0, 9, 9])
    got = route(name, make(0, padding=False) | {"bias_E": bias_E})
    wanted = min(2, top_k_of(ALL[name]))
    np.testing.assert_array_equal(got["asked_GSE"][..., 6:].sum(-1), wanted)


@pytest.mark.parametrize("name", [*BY_RULE, "sinkhorn"])
@property_test
@given(seed=seeds, level=st.floats(-50, 50, width=16))
def test_constant_logits_go_to_the_lowest_experts(name, seed, level):
    arrays = make(seed)
    arrays["logits_GSE"] = np.full((G, S, E), level, np.float32)
    K = top_k_of(ALL[name])
    expert_GSK = route(name, arrays)["choice"].expert_GSK
    np.testing.assert_array_equal(expert_GSK, np.broadcast_to(np.arange(K), (G, S, K)))


@pytest.mark.parametrize("name", [n for n in BY_RULE if n not in KEPT_IN_GROUPS])
@property_test
@given(seed=seeds)
def test_ties_go_to_the_lower_index_and_the_best_comes_first(name, seed):
    arrays = make(seed, spread=2.0, ties=True)  # whole numbers up to 8 or so
    best_GSK = np.argsort(-arrays["logits_GSE"], axis=-1, kind="stable")[..., : top_k_of(ALL[name])]
    np.testing.assert_array_equal(route(name, arrays)["choice"].expert_GSK, best_GSK)


@pytest.mark.parametrize("name", KEPT_IN_GROUPS)
@property_test
@given(arrays=anything)
def test_a_token_stays_in_its_expert_groups(name, arrays):
    got = route(name, arrays)
    groups_GSQ = got["asked_GSE"].reshape(G, S, 4, 2).any(-1)
    assert groups_GSQ.sum(-1).max() <= 2


@pytest.mark.parametrize("name", [n for n in NAMES if ALL[n].experts_choose])
@property_test
@given(arrays=anything)
def test_a_slot_holds_one_token_or_a_mixture_of_weight_one(name, arrays):
    got = route(name, arrays)
    np.testing.assert_allclose(got["seated_GSE"], got["asked_GSE"], atol=1e-5)
    held_GEC = got["dispatch_GSEC"].sum(1)
    if name == "soft":
        np.testing.assert_allclose(held_GEC, 1, rtol=1e-5)
        return
    assert got["dispatch_GSEC"].dtype == bool and held_GEC.max() <= 1
    if name == "expert_choice":
        places = np.minimum(C, arrays["real_GS"].sum(1))[:, None]
        np.testing.assert_array_equal(held_GEC.sum(-1), np.broadcast_to(places, (G, E)))
    else:
        assert got["asked_GSE"].sum(-1).max() <= 2  # the cap


@property_test
@given(arrays=distinct)
def test_an_expert_takes_the_tokens_that_score_it_highest(arrays):
    real_GS1 = arrays["real_GS"][..., None]
    score_GSE = np.where(real_GS1, SCORES["softmax"](arrays["logits_GSE"]), -1)
    best_GEC = np.argsort(-score_GSE, axis=1)[:, :C].swapaxes(1, 2)
    there = np.take_along_axis(score_GSE.swapaxes(1, 2), best_GEC, -1) >= 0
    choice = route("expert_choice", arrays)["choice"]
    np.testing.assert_array_equal(choice.token_GEC, np.where(there, best_GEC, -1))


@pytest.mark.parametrize(
    ("name", "training"),
    [*((name, True) for name in NAMES), ("base", False), ("sinkhorn", False)],
)
def test_a_router_is_as_causal_as_it_says(name, training):
    """Change the later half of the tokens, and see whether the earlier half notices."""
    causal = ALL[name].causal or not training  # as ``decoding`` says of these two
    noticed = False
    for seed in range(5):
        arrays, other = make(seed, padding=False), make(seed + 100, padding=False)
        later = per_token(arrays, lambda x: x.copy())
        for n in later:
            if "_GS" in n:
                later[n][:, S // 2 :] = other[n][:, S // 2 :]
        a, b = (route(name, x, training=training) for x in (arrays, later))
        for what in ("asked_GSE", "weight_GSE"):
            noticed |= not np.allclose(a[what][:, : S // 2], b[what][:, : S // 2], atol=1e-6)
    assert noticed == (not causal)


@pytest.mark.parametrize("name", [n for n in NAMES if ALL[n].learned])
def test_gradients_reach_the_router_and_not_from_padding(name):
    arrays, router = make(3), ALL[name]
    known = {"top_k": top_k_of(router), "capacity": C if router.experts_choose else S}
    direction_GSE = np.random.default_rng(0).normal(size=(G, S, E))
    logits = "logits_GSEC" if router.slots else "logits_GSE"

    @jax.jit
    def slope(x):
        def loss(x):
            inputs = RouterInput(**(arrays | {logits: x}), **known, training=True)
            return (contract.weight(router.choose(inputs), inputs.real_GS) * direction_GSE).sum()

        return jax.grad(loss)(x)

    grad = np.asarray(slope(jnp.asarray(arrays[logits])))
    real_GS = arrays["real_GS"]
    assert np.isfinite(grad).all()
    moved = abs(grad).reshape(G, S, -1).max(-1)[real_GS] > 1e-6
    assert moved.all() or (router.experts_choose and moved.mean() > 0.5)
    np.testing.assert_array_equal(grad[~real_GS], 0)


@pytest.mark.parametrize("name", ["noisy_top_k", "v_moe", "gshard", "random"])
def test_the_key_alone_decides_what_is_drawn(name):
    arrays = make(0, padding=False)
    keys = jax.random.split(jax.random.key(0), 8)
    draws = [route(name, arrays | {"key": k})["choice"] for k in (*keys, keys[0])]
    chex.assert_trees_all_equal(draws[0], draws[-1])
    chosen = np.stack([d.expert_GSK for d in draws[:-1]])
    assert (chosen != chosen[0]).any()
    for d in draws:
        assert isinstance(d, TokenChoice)
        chex.assert_tree_all_finite(d)
        lowest = np.sort(d.expert_GSK)
        assert ((np.diff(lowest, axis=-1) > 0) | (lowest[..., 1:] == -1)).all()


def test_the_smooth_load_is_how_often_an_expert_is_chosen():
    """Over many draws for the same token: its mean is the frequency (of 4096, +- 0.008)."""
    logits = np.broadcast_to(np.float32([0.5, 0.0, -0.5, 1.0]), (2, 2048, 4))
    noise = np.broadcast_to(np.float32([0.0, 1.0, 1.0, -1.0]), (2, 2048, 4))
    arrays = {
        "logits_GSE": logits,
        "noise_GSE": noise,
        "real_GS": np.ones((2, 2048), bool),
        "key": jax.random.key(0),
    }

    @jax.jit
    def loads(arrays):
        choice = ROUTERS["noisy_top_k"].choose(RouterInput(**arrays, top_k=2, capacity=1))
        asked_GSE = contract.asked(choice, arrays["real_GS"])
        return asked_GSE.mean((0, 1)), choice.smooth_load_GSE.mean((0, 1))

    asked_E, smooth_E = loads(arrays)
    np.testing.assert_allclose(asked_E, smooth_E, atol=0.03)
    assert abs(asked_E - 0.5).max() > 0.1  # the experts are not all alike


# The layer as a whole.

LAYERS = {
    "top_k": MoEConfig(router="top_k"),
    "llama4": MoEConfig(router="llama4"),
    "noisy_top_k": MoEConfig(router="noisy_top_k"),
    "minimax_m2": MoEConfig(router="minimax_m2"),
    "deepseek_v3": MoEConfig(router="deepseek_v3", **GROUPS),
    "identity": MoEConfig(router="top_k", identity_experts=2),
    "expert_choice": MoEConfig(router="expert_choice"),
    "soft": MoEConfig(router="soft"),
    "base": MoEConfig(router="base", top_k=1),
    "hash": MoEConfig(router="hash"),
    "random": MoEConfig(router="random"),
    "dense": MoEConfig(router="dense", top_k=E),
}


def layer_of(name: str, capacity_factor: float = 1.25) -> MoELayer:
    moe = dataclasses.replace(
        LAYERS[name],
        num_experts=E,
        hidden_size=F,
        group_size=S,
        capacity_factor=capacity_factor,
    )
    return MoELayer(moe, "swiglu")


TOKENS = np.random.default_rng(0).integers(0, 2**31, (G, S), dtype=np.int32)
DIRECTION = np.float32(np.random.default_rng(1).normal(size=(G, S, D)))


@functools.cache
def parameters(layer: MoELayer):
    """A router with strong opinions, so that some experts overflow."""
    x, real = jnp.ones((G, S, D)), jnp.ones((G, S), bool)
    init = functools.partial(layer.init, training=False, token_BN=TOKENS)
    shapes = jax.eval_shape(init, jax.random.key(0), x, real)["params"]
    rng = np.random.default_rng(0)
    return {name: np.float32(rng.normal(size=w.shape)) for name, w in shapes.items()}


@functools.partial(jax.jit, static_argnums=0)
def forward(layer, params, x, real):
    return layer.apply({"params": params}, x, real, training=True, token_BN=TOKENS)


@functools.partial(jax.jit, static_argnums=0)
def both_ways(layer, params, x, real, judged):
    """Outputs, and the gradients of what the ``judged`` tokens add to a loss."""

    def loss(params, x):
        y, stats, chosen = layer.apply({"params": params}, x, real, training=True, token_BN=TOKENS)
        loss = jnp.where(judged[..., None], y * DIRECTION, 0).sum() + stats.log_z_squared_B.sum()
        return loss, (y, stats, chosen)

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)


def tokens(seed: int) -> np.ndarray:
    return np.float32(np.random.default_rng(seed).normal(size=(G, S, D)))


def spoil(x, at, value, everywhere):
    x = x.copy()
    x[at][slice(None) if everywhere else 1] = value
    return x


bad_values = st.sampled_from([np.nan, np.inf, -np.inf])
places = st.tuples(st.integers(0, G - 1), st.integers(0, S - 1))
spoilt_layers = pytest.mark.parametrize(
    "name", ["llama4", "noisy_top_k", "deepseek_v3", "identity", "expert_choice", "soft", "hash"]
)


def compare_with_padding(name, x, at, real):
    """The layer with a spoilt token at ``at``, and with padding there."""
    layer = layer_of(name)
    judged, there = real.copy(), np.zeros((G, S), bool)
    judged[at], there[at] = False, True
    spoilt = both_ways(layer, parameters(layer), x, real, judged)
    padded = both_ways(layer, parameters(layer), np.where(there[..., None], 0, x), judged, judged)
    return jax.tree.map(np.asarray, (spoilt, padded)), judged


@spoilt_layers
@settings(property_test, max_examples=6)
@given(seed=seeds, at=places, value=bad_values, everywhere=st.booleans())
def test_a_token_that_is_not_finite_is_counted_and_is_like_padding(
    name, seed, at, value, everywhere
):
    x = spoil(tokens(seed), at, value, everywhere)
    (spoilt, padded), others = compare_with_padding(name, x, at, np.ones((G, S), bool))
    ((_, slope_x), (y, stats, chosen)), ((_, want_slope_x), (want_y, want, _)) = spoilt, padded
    np.testing.assert_array_equal(stats.bad_B, np.eye(G)[at[0]])
    np.testing.assert_array_equal(y[at], 0)
    assert not chosen[at].any()
    np.testing.assert_array_equal(y[others], want_y[others])
    np.testing.assert_array_equal(slope_x[others], want_slope_x[others])
    chex.assert_trees_all_equal(dataclasses.replace(stats, bad_B=want.bad_B), want)


@spoilt_layers
@settings(property_test, max_examples=4)
@given(seed=seeds, at=places, value=bad_values)
def test_a_token_that_is_not_finite_spoils_no_gradient(name, seed, at, value):
    x = spoil(tokens(seed), at, value, everywhere=False)
    (spoilt, padded), _ = compare_with_padding(name, x, at, np.ones((G, S), bool))
    chex.assert_trees_all_close(spoilt[0][0], padded[0][0], atol=1e-6)


@pytest.mark.parametrize("name", ["llama4", "noisy_top_k", "deepseek_v3", "expert_choice"])
@settings(property_test, max_examples=4)
@given(seed=seeds, at=places)
def test_a_finite_token_whose_logits_overflow_is_like_padding_too(name, seed, at):
    x = spoil(tokens(seed), at, np.finfo(np.float32).max, everywhere=True)
    (spoilt, padded), others = compare_with_padding(name, x, at, np.ones((G, S), bool))
    ((slopes, slope_x), (y, stats, _)), ((want, want_slope_x), (want_y, *_)) = spoilt, padded
    np.testing.assert_array_equal(stats.bad_B, np.eye(G)[at[0]])
    np.testing.assert_array_equal(y, want_y)
    np.testing.assert_array_equal(slope_x[others], want_slope_x[others])
    chex.assert_trees_all_close(slopes, want, atol=1e-6)


@spoilt_layers
@settings(property_test, max_examples=4)
@given(seed=seeds, at=places, value=st.sampled_from([np.nan, np.inf, 1e30, -3.0]))
def test_padding_may_hold_anything(name, seed, at, value):
    """Not a number, infinite, or so large that an expert would overflow."""
    real = np.ones((G, S), bool)
    real[at] = False
    x = spoil(tokens(seed), at, value, everywhere=True)
    (spoilt, padded), others = compare_with_padding(name, x, at, real)
    (slopes, (y, stats, _)), (want_slopes, (want_y, want, _)) = spoilt, padded
    np.testing.assert_array_equal(y[others], want_y[others])
    chex.assert_trees_all_equal(stats, want)
    chex.assert_trees_all_close(slopes[0], want_slopes[0], atol=1e-6)
    np.testing.assert_array_equal(slopes[1][others], want_slopes[1][others])


@pytest.mark.parametrize("name", ["top_k", "deepseek_v3", "expert_choice"])
@settings(property_test, max_examples=8)
@given(seed=seeds)
def test_bfloat16_activations_choose_as_float32_does_on_the_same_numbers(name, seed):
    layer, real = layer_of(name), np.ones((G, S), bool)
    rounded = jnp.asarray(tokens(seed), jnp.bfloat16)
    y, stats, chosen = forward(layer, parameters(layer), rounded, real)
    want_y, want, wanted = forward(layer, parameters(layer), rounded.astype(jnp.float32), real)
    assert y.dtype == jnp.bfloat16 and want_y.dtype == jnp.float32
    np.testing.assert_array_equal(chosen, wanted)
    chex.assert_trees_all_equal(stats, want)
    chex.assert_trees_all_equal_dtypes(stats, want)


def swiglu(params, x, expert: int):
    """One expert on every token."""
    gate, up = (x @ params[name][expert] for name in ("w_gate_EDF", "w_up_EDF"))
    return (gate / (1 + np.exp(-gate)) * up) @ params["w_down_EFD"][expert]


WEIGHTS_SUM_TO_1 = ["top_k", "minimax_m2", "hash", "random", "dense"]


@pytest.mark.parametrize("name", WEIGHTS_SUM_TO_1)
@settings(property_test, max_examples=8)
@given(seed=seeds)
def test_among_identical_experts_it_does_not_matter_who_is_chosen(name, seed):
    layer = layer_of(name, capacity_factor=E)
    params = {
        name: np.broadcast_to(w[:1], w.shape) if name.endswith(("_EDF", "_EFD")) else w
        for name, w in parameters(layer).items()
    }
    x = tokens(seed)
    y, stats, _ = forward(layer, params, x, np.ones((G, S), bool))
    np.testing.assert_allclose(y, swiglu(params, x, expert=0), atol=1e-4)
    np.testing.assert_array_equal(stats.seated_BE, stats.asked_BE)


@property_test
@given(seed=seeds)
def test_a_dense_layer_is_the_weighted_sum_of_all_experts(seed):
    layer, x = layer_of("dense"), tokens(seed)
    params = parameters(layer)
    y, _, _ = forward(layer, params, x, np.ones((G, S), bool))
    weight_BNE = SCORES["softmax"](x @ params["w_router_DE"])
    want = sum(weight_BNE[..., e, None] * swiglu(params, x, e) for e in range(E))
    np.testing.assert_allclose(y, want, atol=1e-4)
