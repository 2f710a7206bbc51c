"""Experts across devices: every mesh and every form equals one device and the float64 oracle."""

import dataclasses
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from layer_loss import Truth, layer_loss, run_oracle

from moejax.config import MeshConfig, MoEConfig
from moejax.moe import balance, selection_bias
from moejax.moe.dispatch import grouped
from moejax.moe.layer import ROUTES, MoELayer
from moejax.moe.travel import Travel
from moejax.routing import contract
from moejax.runtime import device_mesh, partition

B, N, D, F, E, S = 16, 4, 8, 4, 8, 4
MESHES = {"1x1": (1, 1, 1), "8x1": (8, 1, 1), "1x8": (1, 8, 1), "2x4": (2, 4, 1), "4x2": (4, 2, 1)}
MESHES["2x2x2"] = (2, 2, 2)
FORMS = ("auto", "all_to_all", "ragged", "all_gather")


def moe(**settings) -> MoEConfig:
    shape = {"num_experts": E, "hidden_size": F, "group_size": S, "eval_capacity_factor": None}
    return MoEConfig(**shape | settings)


CASES = {
    "top-1, drops": moe(router="switch", top_k=1, capacity_factor=1.5),
    "top-2, drops": moe(capacity_factor=0.8, expert_groups=8),
    "deepseek_v3": moe(
        router="deepseek_v3",
        top_k=3,
        expert_groups=4,
        kept_expert_groups=2,
        shared_experts=1,
        capacity_factor=1.0,
    ),
    "dropless": moe(top_k=3, capacity_factor=None),
}
# What else the forms must carry; as routers, these are held to the oracle elsewhere.
OTHERS = {
    "weights on inputs": moe(router="llama4", top_k=1, capacity_factor=1.0),
    "experts without computation": moe(
        top_k=3, identity_experts=1, null_experts=1, capacity_factor=0.8
    ),
    "the weightiest first": moe(seating="priority", capacity_factor=0.6),
    "a gate on shared experts": moe(shared_experts=2, shared_gate=True),
}
NOT_BY_TOKENS = {
    "experts choose": moe(router="expert_choice", capacity_factor=1.0),
    "slots mix": moe(router="soft", capacity_factor=1.0),
}
ALL = CASES | OTHERS | NOT_BY_TOKENS


def mesh_of(name: str, **settings) -> tuple[MeshConfig, jax.sharding.Mesh]:
    data, expert, model = MESHES[name]
    config = MeshConfig(data=data, expert=expert, model=model, **settings)
    return config, device_mesh.make_mesh(config, jax.devices()[: data * expert * model])


@functools.cache
def inputs(case: str) -> tuple:
    """Parameters with strong opinions, tokens with padding among them, a bias, and a direction."""
    config, rng = ALL[case], np.random.default_rng(3)
    real = rng.random((B, N)) > 0.2
    real[:2] = False  # the first of eight devices has nothing to do
    x, direction = (rng.normal(size=(2, B, N, D)) * real[..., None]).astype(np.float32)
    start = functools.partial(MoELayer(config, "swiglu").init, training=True)
    params = jax.jit(start)(jax.random.key(1), x, real)["params"]
    params = {k: 2 * v if "router" in k else v for k, v in params.items()}
    bias_E = (
        jnp.linspace(-0.2, 0.2, config.num_choices) if config.built_router.always_biased else None
    )
    return params, x, real, bias_E, direction / 10


@functools.cache
def on(case: str, mesh: str, **settings) -> tuple:
    """Loss, what the layer says, the norm of the gradient, a new bias, and every gradient."""
    params, x, real, bias_E, direction = inputs(case)
    layout, grid = mesh_of(mesh, **settings)
    layer = MoELayer(ALL[case], "swiglu", layout)

    def loss(params, x):
        y, stats, chosen = layer.apply({"params": params}, x, real, training=True, bias_E=bias_E)
        return layer_loss(y, stats, direction), (y, stats, chosen)

    def run(params, x):
        (value, said), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        asked_E = said[1].asked_BE.sum(0)
        bias = selection_bias.step(
            jnp.zeros_like(asked_E[None]), asked_E[None], "proportional", 0.01
        )
        norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients[0])))
        violation = balance.max_violation(asked_E[None])
        return value, said, norm, bias, violation, gradients

    with jax.set_mesh(grid):
        shardings = partition.tree_shardings(grid, params, layout.fsdp)
        placed = jax.device_put(params, shardings)
        x = jax.device_put(x, partition.activation_sharding(grid, "batch_BN"))
        return jax.device_get(jax.jit(run)(placed, x))


@functools.cache
def reference(case: str) -> Truth:
    """The oracle on the same numbers."""
    params, x, real, bias_E, direction = inputs(case)
    config = CASES[case]
    slots = oracle.capacity(S, config.top_k, E, config.capacity_factor or E)
    groups = {name: getattr(config, name) for name in ("expert_groups", "kept_expert_groups")}
    layer = oracle.Layer(config.router, config.top_k, slots, **groups)
    return run_oracle(layer, params, x, real, direction, S, bias_E)


def assert_is_right(case: str, got: tuple) -> None:
    """Equal to the oracle, and to one device, in all that ``on`` gives."""
    value, (y, stats, _), norm, bias, _, gradients = got
    truth = reference(case)
    truth.assert_equal(value, y, stats, gradients)
    asked_BE = truth.count("asked_SE")
    mean = asked_BE.sum() / E
    np.testing.assert_allclose(bias[0], 0.01 * (1 - asked_BE.sum(0) / mean), atol=1e-5)
    squares = sum(np.square(np.float64(g)).sum() for g in jax.tree.leaves(gradients[0]))
    np.testing.assert_allclose(norm, np.sqrt(squares), rtol=1e-5)
    chex.assert_trees_all_close(got, on(case, "1x1"), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_one_device_equals_the_oracle(case):
    got = on(case, "1x1")
    assert_is_right(case, got)
    dropped = got[1][1].seated_BE.sum() < got[1][1].asked_BE.sum()
    assert dropped == (case != "dropless")
    assert np.abs(got[-1][0]["w_router_DE"]).max() > 1e-3  # the router learns


GRID = [
    pytest.param(
        mesh,
        form,
        case,
        marks=[] if mesh == "2x2x2" and (form != "auto") else [pytest.mark.slow],
    )
    for mesh in MESHES
    for form in FORMS
    for case in CASES
]


@pytest.mark.parametrize(("mesh", "form", "case"), GRID)
def test_every_mesh_and_form_equals_one_device_and_the_oracle(mesh, form, case):
    """Outputs, drops, losses, metrics, every gradient, their norm, and the update of the bias."""
    assert_is_right(case, on(case, mesh, expert_parallel=form))


@pytest.mark.parametrize("form", FORMS)
def test_neither_fsdp_nor_chunks_change_anything(form):
    chunks = 1 if form == "auto" else 2
    got = on("deepseek_v3", "2x2x2", expert_parallel=form, fsdp=True, chunks=chunks)
    assert_is_right("deepseek_v3", got)


QUICK = [
    ("all_to_all", "experts without computation"),
    ("all_to_all", "experts choose"),
    ("ragged", "weights on inputs"),
    ("all_gather", "the weightiest first"),
]


@pytest.mark.parametrize(
    ("mesh", "form", "case"),
    [
        pytest.param(
            mesh,
            form,
            case,
            marks=[] if mesh == "2x4" and (form, case) in QUICK else [pytest.mark.slow],
        )
        for mesh in ("2x4", "1x8", "2x2x2")
        for form in FORMS
        for case in OTHERS | NOT_BY_TOKENS
        if case in OTHERS or form in ("auto", "all_to_all")
    ],
)
def test_every_form_carries_every_kind_of_choice(mesh, form, case):
    got, want = on(case, mesh, expert_parallel=form), on(case, "1x1")
    chex.assert_trees_all_close(got, want, atol=1e-5)
    assert np.abs(want[1][0]).max() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_a_form_for_many_devices_serves_one_device_and_none(form):
    """Without a mesh, and on a mesh of one device: as if nothing had been said."""
    params, x, real, bias_E, _ = inputs("deepseek_v3")
    chunks = 1 if form == "auto" else 2
    layout = MeshConfig(expert_parallel=form, chunks=chunks)
    layer = MoELayer(CASES["deepseek_v3"], "swiglu", layout)
    run = jax.jit(functools.partial(layer.apply, training=True))
    want = on("deepseek_v3", "1x1")
    said = run({"params": params}, x, real, bias_E=bias_E)
    chex.assert_trees_all_close(said, want[1], atol=1e-5)
    got = on("deepseek_v3", "1x1", expert_parallel=form, chunks=chunks)
    chex.assert_trees_all_close(got, want, atol=1e-5)


# Room to receive.


def served_by_hand(expert_GSK, here: int, sides: tuple[int, int], room: int) -> np.ndarray:
    """Which choices are served, ``served_GSK``, by loops over devices: each sender may fill a
    ``room // n`` of every receiver; what is left goes to the first sender that has more, then to
    the next. A sender's first choices come before its second ones.
    """
    data, n = sides
    served = np.zeros(expert_GSK.shape, bool)
    owners = np.arange(expert_GSK.shape[0]).reshape(data, n, -1)
    for groups_NG in owners:
        for receiver in range(n):
            queues = []
            for groups in groups_NG:
                _, S, K = expert_GSK.shape
                order = [(g, s, k) for k in range(K) for g in groups for s in range(S)]
                queues.append([i for i in order if expert_GSK[i] // here == receiver])
            left = room - sum(min(len(queue), room // n) for queue in queues)
            for queue in queues:
                more = min(left, max(0, len(queue) - room // n))
                left -= more
                for i in queue[: min(len(queue), room // n) + more]:
                    served[i] = True
    return served


def by_rows(layout: MeshConfig, form: str, capacity: int = S) -> Travel:
    """Without slots, by an explicit form where there are several devices on the expert axis."""
    form = form if layout.expert > 1 else "auto"
    known = {"activation": "swiglu", "capacity": capacity, "layout": layout}
    return Travel(dispatch="grouped", exchange=form, **known)


def routed(form, mesh, choice, params, x, real, direction, capacity=S, factor=None):
    """The slope along ``direction`` by bank, tokens and weights, what comes out, and who got it."""
    layout, grid = mesh_of(mesh, expert_parallel=form, receive_factor=factor)

    def loss(params, x, weight):
        weighted = dataclasses.replace(choice, weight_GSK=weight)
        travel = by_rows(layout, form, capacity)
        y, seated = ROUTES[travel.route](params, x, weighted, real, travel=travel)
        return (y * direction).sum(), (y, seated)

    with jax.set_mesh(grid):
        run = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        gradients, (y, seated) = run(params, x, choice.weight_GSK)
    return jax.device_get((gradients, y, np.asarray(seated) > 0))


def choices(expert_GSK, weight_GSK) -> contract.TokenChoice:
    shape = (*expert_GSK.shape[:2], E)
    return contract.TokenChoice(
        expert_GSK=jnp.asarray(expert_GSK, jnp.int32),
        weight_GSK=jnp.asarray(weight_GSK, jnp.float32),
        probability_GSE=jnp.zeros(shape),
    )


@pytest.mark.parametrize("capacity", [pytest.param(S, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    ("mesh", "factor"),
    [
        ("2x4", 0.9),
        pytest.param("1x8", 1.1, marks=pytest.mark.slow),
        pytest.param("2x2x2", 0.4, marks=pytest.mark.slow),
        pytest.param("4x2", 0.04, marks=pytest.mark.slow),
    ],
)
def test_what_a_device_has_no_room_for_is_as_if_it_had_not_been_chosen(mesh, factor, capacity):
    """The same choices under both forms, in the outputs, in every gradient, and in the count."""
    rng, G, K = np.random.default_rng(8), B, 3
    (data, n, _), here = MESHES[mesh], E // MESHES[mesh][1]
    popular = rng.dirichlet(np.full(E, 0.5), G * S) + 1e-3 + 2 * (np.arange(E) < 2)
    popular /= popular.sum(1, keepdims=True)
    expert_GSK = np.stack([rng.choice(E, K, replace=False, p=p) for p in popular]).reshape(G, S, K)
    expert_GSK[rng.random(expert_GSK.shape) < 0.1] = -1
    real = rng.random((G, S)) > 0.1
    choice = choices(expert_GSK, rng.random(expert_GSK.shape))
    x, direction = rng.normal(size=(2, G, S, D)).astype(np.float32)
    params = {k: v for k, v in inputs("dropless")[0].items() if k.endswith(("EDF", "EFD"))}

    room = math.ceil(factor * (G // (data * n) * S * K))
    asked = np.asarray(grouped.drop_unseated(choice, real, E, capacity, "position"))
    served = served_by_hand(asked, here, (data, n), room)
    assert (asked >= 0).sum() > served.sum() > 0
    only = dataclasses.replace(choice, expert_GSK=jnp.where(served, expert_GSK, -1))
    want = routed("ragged", "1x1", only, params, x, real, direction)
    np.testing.assert_array_equal(want[2].sum(), served.sum())
    for form in ("ragged", "all_gather"):
        got = routed(form, mesh, choice, params, x, real, direction, capacity, factor)
        np.testing.assert_array_equal(got[2], want[2])
        chex.assert_trees_all_close(got, want, atol=1e-5)
        dweight = got[0][2]
        assert (dweight[~served] == 0).all() and (dweight[served] != 0).all()


@pytest.mark.parametrize("form", ["ragged", "all_gather"])
def test_every_sender_has_its_part_of_the_room_and_the_first_have_what_is_left(form):
    """Four devices of four tokens, that want 4, 1, 0 and 3 times what the first device has, which
    takes 6: one from each, and three more from the first sender.
    """
    wants = [4, 1, 0, 3]
    expert_GSK = np.array([[[2 * d + 1]] * S for d in range(4)])  # else an expert at home
    for device, number in enumerate(wants):
        expert_GSK[device, :number] = 0
    layout = MeshConfig(expert=4, expert_parallel=form, receive_factor=1.5)
    params = inputs("dropless")[0]
    params = {k: v for k, v in params.items() if k.endswith(("EDF", "EFD"))}
    with jax.set_mesh(device_mesh.make_mesh(layout, jax.devices()[:4])):
        _, seated_GSE = jax.jit(functools.partial(ROUTES[form], travel=by_rows(layout, form)))(
            params,
            jnp.ones((4, S, D)),
            choices(expert_GSK, np.ones((4, S, 1))),
            jnp.ones((4, S)) > 0,
        )
    np.testing.assert_array_equal(seated_GSE[..., 0].sum(1), [4, 1, 0, 1])
    np.testing.assert_array_equal(seated_GSE[..., 1:].sum((1, 2)), [0, 3, 4, 1])


@pytest.mark.parametrize("form", ["ragged", pytest.param("all_gather", marks=pytest.mark.slow)])
def test_room_for_the_worst_case_loses_nothing_and_a_hair_less_one_choice(form):
    """All tokens of all devices want both experts of the first, in each of two data rows."""
    expert_GSK = np.broadcast_to([0, 1], (B, S, 2))
    params = {k: v for k, v in inputs("dropless")[0].items() if k.endswith(("EDF", "EFD"))}
    x = np.random.default_rng(9).normal(size=(B, S, D)).astype(np.float32)
    rest = choices(expert_GSK, np.ones((B, S, 2))), params, x, np.ones((B, S), bool), x
    for factor, lost in ((4.0, 0), (3.93, 2)):
        _, _, seated = routed(form, "2x4", *rest, factor=factor)
        assert seated.sum() == B * S * 2 - lost


def test_the_layer_counts_what_devices_had_no_room_for_and_both_forms_agree():
    ragged, all_gather = (
        on("dropless", "2x4", expert_parallel=form, receive_factor=0.7)
        for form in ("ragged", "all_gather")
    )
    chex.assert_trees_all_close(ragged, all_gather, atol=1e-5)
    stats, whole = ragged[1][1], on("dropless", "1x1")[1][1]
    np.testing.assert_array_equal(stats.asked_BE, whole.asked_BE)
    dropped = stats.asked_BE.sum() - stats.seated_BE.sum()
    assert 0 < dropped < stats.asked_BE.sum() / 2
    # In each of two rows of four devices, whatever data lie there, none takes more than its room.
    of_device = stats.seated_BE.reshape(2, B // 2, 4, E // 4).sum((1, 3))
    assert of_device.max() == math.ceil(0.7 * (B * N // 8) * 3)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(ragged[-1]))


# What travels.

COLLECTIVES = ("all-to-all", "all-gather", "reduce-scatter", "all-reduce", "collective-permute")


@functools.cache
def moved(config: MoEConfig, mesh: str, backward: bool, **settings) -> tuple:
    """The collectives of the compiled forward pass, or of the gradient: the name of each and the
    shapes of what it gives one device. Tokens lie over all devices.
    """
    layout, grid = mesh_of(mesh, **settings)
    layer = MoELayer(config, "swiglu", layout)
    rows = partition.activation_sharding(grid, "batch_BN")

    def abstract(of, sharding=rows):
        return jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=sharding)

    def forward(params, x, real):
        found = layer.apply({"params": params}, x, real, training=True)
        return jax.tree.map(lambda y: jax.lax.with_sharding_constraint(y, rows), found)

    def loss(params, x, real):
        y, stats, _ = forward(params, x, real)
        return jnp.square(y).sum() + jnp.square(stats.probability_BE).sum()

    x, real = jnp.zeros((B, N, D)), jnp.ones((B, N), bool)
    run = jax.grad(loss, argnums=(0, 1)) if backward else forward
    with jax.set_mesh(grid):
        start = functools.partial(layer.init, training=True)
        params = jax.eval_shape(start, jax.random.key(0), x, real)["params"]
        shardings = partition.tree_shardings(grid, params, layout.fsdp)
        inputs = jax.tree.map(abstract, params, shardings), abstract(x), abstract(real)
        text = jax.jit(run).lower(*inputs).compile().as_text()
    found = re.findall(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", text)
    return tuple(
        (name, tuple(tuple(map(int, s.split(","))) for s in re.findall(r"\[([\d,]+)\]", shapes)))
        for shapes, name in found
    )


def count(name: str, moves: tuple) -> int:
    return sum(kind == name for kind, _ in moves)


@pytest.mark.parametrize(("backward", "exchanges"), [(False, 2), (True, 4)])
@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("auto", {"dispatch": "einsum"}),
        ("auto", {"dispatch": "gather"}),
        ("auto", {"router": "deepseek_v3", "expert_groups": 4, "kept_expert_groups": 2}),
        ("auto", {"router": "expert_choice"}),
        ("auto", {"router": "soft"}),
        pytest.param("all_to_all", {"dispatch": "einsum"}, marks=pytest.mark.slow),
        ("all_to_all", {"dispatch": "gather"}),
        pytest.param("all_to_all", {"router": "expert_choice"}, marks=pytest.mark.slow),
        pytest.param("all_to_all", {"router": "soft"}, marks=pytest.mark.slow),
    ],
)
def test_slots_go_to_experts_and_back_and_tokens_are_never_gathered(
    form, settings, backward, exchanges
):
    """All-to-alls alone: no device ever holds the tokens or the scores of others. What is added up
    over devices is the gradient of parameters.
    """
    moves = moved(moe(**settings), "2x4", backward, expert_parallel=form)
    assert count("all-to-all", moves) == exchanges
    assert {name for name, _ in moves} <= {"all-to-all", "all-reduce"}
    assert backward or count("all-reduce", moves) == 0


@pytest.mark.parametrize("mesh", ["2x4", pytest.param("4x2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("chunks", [1, 2])
def test_an_exchange_takes_out_of_a_device_what_its_docstring_says(mesh, chunks):
    """G E C D (n - 1) / n numbers, twice; in parts, as much in all."""
    data, n, _ = MESHES[mesh]
    config = moe(capacity_factor=2.0)
    G, C = B * N // S // (data * n), oracle.capacity(S, config.top_k, E, 2.0)
    moves = moved(config, mesh, False, expert_parallel="all_to_all", chunks=chunks)
    assert count("all-to-all", moves) == 2 * chunks
    sent = 0
    for _, shapes in moves:
        assert len(shapes) == n  # one of them for itself
        sent += sum(map(math.prod, shapes[1:]))
    assert sent == 2 * G * E * C * D * (n - 1) / n


@pytest.mark.parametrize("mesh", ["2x4", pytest.param("4x2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("chunks", [1, 2])
def test_a_gathering_takes_out_of_a_device_what_its_docstring_says(mesh, chunks):
    """T D (n - 1) numbers each way, with the K experts and weights of each token beside them; in
    parts, as much in all.
    """
    data, n, _ = MESHES[mesh]
    T, K = B * N // (data * n), 2
    moves = moved(moe(), mesh, False, expert_parallel="all_gather", chunks=chunks)
    assert count("all-gather", moves) == 3 * chunks
    assert count("reduce-scatter", moves) == chunks == len(moves) - 3 * chunks
    there = [math.prod(s) for name, shapes in moves for s in shapes if name == "all-gather"]
    back = [math.prod(s) for name, shapes in moves for s in shapes if name == "reduce-scatter"]
    # What a device gets holds its own part; what it sums up is of n devices.
    assert sum(there) * (n - 1) / n == T * (D + 2 * K) * (n - 1)
    assert sum(back) * (n - 1) == T * D * (n - 1)


@pytest.mark.parametrize("form", ["auto", "all_to_all"])
def test_under_fsdp_parameters_are_all_that_is_gathered_each_once(form):
    """Each for the whole step, where XLA left to itself gathers wide experts for both ways."""
    F = 256
    config = moe(shared_experts=1, hidden_size=F)
    moves = moved(config, "2x2x2", True, expert_parallel=form, fsdp=True)
    gathered = [shape for name, shapes in moves for shape in shapes if name == "all-gather"]
    here, width = E // 2, F // 2  # of a device of two on the expert and the model axis
    expert = [(here, D, width), (here, D, width), (here, width, D)]
    shared = [(D, width), (D, width), (width, D)]
    assert sorted(gathered) == sorted([*expert, *shared, (D, E)])


@pytest.mark.parametrize("form", ["all_to_all", "ragged", "all_gather"])
def test_no_explicit_form_forgets_expert_dropout(form):
    """A layer built without a whole config, which would have refused it."""
    layout, grid = mesh_of("2x4", expert_parallel=form)
    layer = MoELayer(moe(expert_dropout=0.5), "swiglu", layout)
    keys = {"params": jax.random.key(0), "router": jax.random.key(1)}
    with jax.set_mesh(grid), pytest.raises(ValueError, match="no expert dropout"):
        start = functools.partial(layer.init, training=True)
        jax.eval_shape(start, keys, jnp.zeros((B, N, D)), jnp.ones((B, N), bool))
