"""Rows brought to the experts' devices and back: no slots, so nothing need be dropped.

Two ways with one meaning. ``all_gather``: every device of the expert axis gets all tokens of it,
computes what its experts add, and the sums are scattered back. ``ragged``: a token's row goes to
the devices that it chose, once to each, and comes back as the sum of what it chose there.

Moved out of a device with T tokens, n devices on the expert axis, each way: T D (n - 1) numbers by
``all_gather``; by ``ragged`` D for each token and other device that it chose, at most
T D min(K, n - 1).

Letters: Q: devices of the expert axis; X: experts and weights side by side.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from moejax.moe.dispatch.grouped import drop_unseated, spread_seated
from moejax.moe.kernels.grouped_feed_forward import grouped_feed_forward
from moejax.moe.kernels.rows import copy_tokens, sort_rows, sum_copies
from moejax.moe.parallel.exchange import exchange, sum_before
from moejax.moe.travel import Travel
from moejax.routing.contract import TokenChoice
from moejax.routing.seating import seat
from moejax.runtime import device_mesh

Params = dict[str, jax.Array]


def route(
    params: Params,
    x_GSD: jax.Array,
    choice: TokenChoice,
    real_GS: jax.Array,
    travel: Travel,
) -> tuple[jax.Array, jax.Array]:
    """As ``einsum.route``, also in what is dropped, for experts spread over several devices: of one
    device's tokens, with its own experts (see ``on_each_device``).

    With ``layout.receive_factor``, choices beyond what a device takes in are dropped as well: every
    sender may fill an equal part of it, and what others leave, first choices first.
    """
    n, here = device_mesh.expert_devices(), params["w_down_EFD"].shape[0]
    E, factor = n * here, travel.layout.receive_factor
    (G, S, D), K = x_GSD.shape, choice.expert_GSK.shape[-1]
    expert_GSK = drop_unseated(choice, real_GS, E, travel.capacity, travel.seating)
    worst = n * G * min(S * min(K, here), here * travel.capacity)
    room = worst
    if factor is not None:
        # A hair less before rounding up, so that 1.1 * 10 are 11.
        room = min(worst, math.ceil(factor * G * S * K * (1 - 1e-9)))
    expert_TK = expert_GSK.reshape(G * S, K)
    if room < worst:
        expert_TK = drop_beyond_room(expert_TK, here, room)
    run_experts = partial(
        _run_local_experts,
        params,
        room=room,
        activation=travel.activation,
        weigh=choice.weigh,
    )
    gathers = travel.exchange == "all_gather"
    move = _all_gather if gathers else partial(_ragged, here=here, room=room)
    weight_TK = choice.weight_GSK.reshape(G * S, K)
    y_TD = move(run_experts, x_GSD.reshape(G * S, D), expert_TK, weight_TK)
    return y_TD.reshape(x_GSD.shape), spread_seated(expert_TK.reshape(G, S, K), E)


def _all_gather(
    run_experts: Callable,
    x_TD: jax.Array,
    expert_TK: jax.Array,
    weight_TK: jax.Array,
) -> jax.Array:
    gather = partial(lax.all_gather, axis_name="expert", tiled=True)
    all_TD = checkpoint_name(gather(x_TD), "expert_inputs")
    y_TD = run_experts(all_TD, gather(expert_TK), gather(weight_TK))
    return lax.psum_scatter(y_TD, "expert", tiled=True)


def _ragged(
    run_experts: Callable,
    x_TD: jax.Array,
    expert_TK: jax.Array,
    weight_TK: jax.Array,
    *,
    here: int,
    room: int,
) -> jax.Array:
    (T, K), n = expert_TK.shape, device_mesh.expert_devices()
    rows = sort_rows(find_devices(expert_TK, here), n)
    sent, taken = T * min(K, n), min(room, n * T)
    token_R = rows.choice_R[:sent] // K
    count_QQ = lax.all_gather(rows.size_E, "expert")
    x_RD = exchange(copy_tokens(x_TD, token_R, rows.row_TK), count_QQ, sent, taken)
    x_RD = checkpoint_name(x_RD, "expert_inputs")
    # What the receiver must know beside the row; float32 holds the numbers of experts exactly.
    beside_TX = jnp.concatenate([expert_TK.astype(jnp.float32), weight_TK], axis=1)
    beside_RX = exchange(copy_tokens(beside_TX, token_R, rows.row_TK), count_QQ, sent, taken)
    came_R1 = jnp.arange(taken)[:, None] < count_QQ[:, lax.axis_index("expert")].sum()
    expert_RK = jnp.where(came_R1, beside_RX[:, :K], -1).astype(jnp.int32)
    y_RD = run_experts(x_RD, expert_RK, beside_RX[:, K:])
    return sum_copies(exchange(y_RD, count_QQ.T, taken, sent), token_R, rows.row_TK)


def find_devices(expert_TK: jax.Array, here: int) -> jax.Array:
    """The device of each choice, ``device_TK`` (int32), -1 where an earlier choice of the token is
    of the same device, or there is none.
    """
    device_TK = jnp.where(expert_TK >= 0, expert_TK // here, -1)
    earlier_TKK = (device_TK[:, :, None] == device_TK[:, None, :]) & jnp.tri(
        device_TK.shape[1], k=-1, dtype=bool
    )
    return jnp.where(earlier_TKK.any(-1), -1, device_TK)


def drop_beyond_room(expert_TK: jax.Array, here: int, room: int) -> jax.Array:
    """``expert_TK`` with -1 where the device of an expert has no room left for the choice."""
    n, me = device_mesh.expert_devices(), lax.axis_index("expert")
    device_1TK = jnp.where(expert_TK >= 0, expert_TK // here, -1)[None]
    turn_TK = seat(device_1TK, jnp.ones(device_1TK.shape[:2], bool), n, device_1TK.size)[0]
    wanted_Q = (device_1TK.reshape(-1, 1) == jnp.arange(n)).sum(0)
    wanted_QQ = lax.all_gather(wanted_Q, "expert")  # [sender, receiver]
    first_QQ = jnp.minimum(wanted_QQ, room // n)
    more_QQ, left_Q = wanted_QQ - first_QQ, room - first_QQ.sum(0)
    granted_QQ = first_QQ + jnp.clip(left_Q - sum_before(more_QQ, 0), 0, more_QQ)
    granted_TK = granted_QQ[me][jnp.maximum(device_1TK[0], 0)]
    return jnp.where(turn_TK < granted_TK, expert_TK, -1)


def _run_local_experts(
    params: Params,
    x_TD: jax.Array,
    expert_TK: jax.Array,
    weight_TK: jax.Array,
    *,
    room: int,
    activation: str,
    weigh: str,
) -> jax.Array:
    """What the experts of this device add to each token; of no more than ``room`` choices."""
    here = params["w_down_EFD"].shape[0]
    expert_TK -= lax.axis_index("expert") * here
    expert_TK = jnp.where((expert_TK >= 0) & (expert_TK < here), expert_TK, -1)
    rows = sort_rows(expert_TK, here)
    rows = replace(rows, choice_R=rows.choice_R[:room])
    return grouped_feed_forward(params, x_TD, weight_TK, rows, activation, weigh)
