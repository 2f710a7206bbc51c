"""Rows exchanged between devices, against copies by numpy: values, gradients, and what nobody may
read.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moejax.config import MeshConfig
from moejax.moe.parallel.exchange import emulate, exchange
from moejax.runtime import device_mesh

Q, D = 4, 3
# Rows from sender to receiver.
COUNTS = {
    "as it comes": [[2, 0, 3, 1], [1, 1, 0, 2], [0, 4, 1, 0], [3, 2, 2, 2]],
    "a silent device": [[1, 2, 0, 2], [0, 0, 0, 0], [5, 0, 1, 1], [1, 0, 3, 0]],
    "a device that nobody wants": [[3, 0, 1, 1], [2, 0, 2, 3], [0, 0, 4, 1], [1, 0, 1, 1]],
    "all to one": [[0, 0, 6, 0], [0, 0, 4, 0], [0, 0, 0, 0], [0, 0, 5, 0]],
    "each to itself": [[4, 0, 0, 0], [0, 0, 0, 0], [0, 0, 7, 0], [0, 0, 0, 2]],
    "nothing": [[0] * Q] * Q,
    **{f"random {seed}": np.random.default_rng(seed).poisson(1.5, (Q, Q)) for seed in range(3)},
}


def on_each(function):
    """``function`` of every device's own part of arrays with a leading Q."""
    grid = device_mesh.make_mesh(MeshConfig(expert=Q), jax.devices()[:Q])

    def run(*arrays):
        return function(*(a[0] for a in arrays))[None]

    specs = {"in_specs": P("expert"), "out_specs": P("expert")}
    return jax.jit(jax.shard_map(run, mesh=grid, check_vma=False, **specs))


def copied(x_QRD, output_QRD, starts_QQ, count_QQ, places_QQ):
    """The oracle: each receiver's rows, with those of every sender copied into their places."""
    output_QRD = output_QRD.copy()
    for s, r in np.ndindex(Q, Q):
        start, place, count = starts_QQ[s, r], places_QQ[s, r], count_QQ[s, r]
        output_QRD[r, place : place + count] = x_QRD[s, start : start + count]
    return output_QRD


def before(count_QQ, axis):
    return np.cumsum(count_QQ, axis) - count_QQ


def sent_and_received(name):
    """The counts, and which rows of each device are sent, and which come: [Q, rows], where the
    busiest device has no row to spare.
    """
    count_QQ = np.asarray(COUNTS[name], np.int32)
    sent_Q, came_Q = count_QQ.sum(1), count_QQ.sum(0)
    rows = [np.arange(max(1, n.max())) < n[:, None] for n in (sent_Q, came_Q)]
    return count_QQ, *rows


@pytest.mark.parametrize("name", COUNTS)
def test_rows_arrive_in_the_order_of_their_senders_and_nobody_sees_what_was_not_sent(name):
    """What is not sent is NaN, and so are the slopes of what did not come."""
    count_QQ, sent_QR, came_QR = sent_and_received(name)
    sent, taken = sent_QR.shape[1], came_QR.shape[1]
    rng = np.random.default_rng(4)
    x_QRD = rng.normal(size=(Q, sent, D)).astype(np.float32)
    slope_QRD = rng.normal(size=(Q, taken, D)).astype(np.float32)
    zeros_QRD, places = (
        np.zeros_like(slope_QRD),
        (before(count_QQ, 1), count_QQ, before(count_QQ, 0)),
    )
    want = copied(x_QRD, zeros_QRD, *places)
    back = copied(slope_QRD, np.zeros_like(x_QRD), *(p.T for p in places[::-1]))

    x_QRD[~sent_QR], slope_QRD[~came_QR] = np.nan, np.nan
    run = on_each(lambda x_RD: exchange(x_RD, jnp.asarray(count_QQ), sent, taken))
    got, pull = jax.vjp(run, x_QRD)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(pull(slope_QRD)[0], back)


def arguments(name, gap):
    """Of ``lax.ragged_all_to_all``: ``gap`` rows before and between what goes and what comes, which
    must be neither read nor written.
    """
    count_QQ = np.asarray(COUNTS[name], np.int32)
    starts_QQ = (before(count_QQ, 1) + gap * (1 + np.arange(Q))).astype(np.int32)
    places_QQ = (before(count_QQ, 0) + gap * (1 + np.arange(Q)[:, None])).astype(np.int32)
    rows = max(count_QQ.sum(0).max(), count_QQ.sum(1).max()) + gap * (Q + 1) + 1
    return rows, starts_QQ, count_QQ, places_QQ


@pytest.mark.parametrize("name", ["as it comes", "a silent device", "all to one", "random 0"])
def test_the_emulation_copies_from_any_offset_to_any_offset_and_so_does_its_gradient(name):
    """Rows of the output that nothing is written to stay, and are what its gradient sees."""
    rows, starts_QQ, count_QQ, places_QQ = arguments(name, gap=2)
    rng = np.random.default_rng(5)
    x_QRD, output_QRD, slope_QRD = rng.normal(size=(3, Q, rows, D)).astype(np.float32)
    how = (starts_QQ, count_QQ, places_QQ, count_QQ.T)
    run = on_each(lambda *arrays: emulate(*arrays, axis_name="expert"))
    got, pull = jax.vjp(lambda x, output: run(x, output, *how), x_QRD, output_QRD)
    want = copied(x_QRD, output_QRD, starts_QQ, count_QQ, places_QQ)
    np.testing.assert_array_equal(got, want)
    assert (want == output_QRD).any() and (want != output_QRD).any()

    dx_QRD, doutput_QRD = pull(slope_QRD)
    zeros = np.zeros_like(x_QRD)
    back = copied(slope_QRD, zeros, places_QQ.T, count_QQ.T, starts_QQ.T)
    np.testing.assert_array_equal(dx_QRD, back)
    np.testing.assert_array_equal(doutput_QRD, np.where(want == output_QRD, slope_QRD, 0))


@pytest.mark.parametrize("name", ["as it comes", "nothing", "random 1", "random 2"])
def test_the_gradient_of_the_exchange_is_that_of_the_emulation_differentiated(name):
    count_QQ, sent_QR, came_QR = sent_and_received(name)
    sent, taken = sent_QR.shape[1], came_QR.shape[1]
    rng = np.random.default_rng(6)
    x_QRD = rng.normal(size=(Q, sent, D)).astype(np.float32)
    slope_QRD = rng.normal(size=(Q, taken, D)).astype(np.float32)
    places = (before(count_QQ, 1), count_QQ, before(count_QQ, 0), count_QQ.T)
    how = tuple(np.ascontiguousarray(p, np.int32) for p in places)

    def plain(x_RD, *how):
        return emulate(x_RD, jnp.zeros((taken, D)), *how, axis_name="expert")

    plainly = jax.vjp(lambda x: on_each(plain)(x, *how), x_QRD)
    written = on_each(lambda x_RD: exchange(x_RD, jnp.asarray(count_QQ), sent, taken))
    ours = jax.vjp(written, x_QRD)
    np.testing.assert_array_equal(ours[0], plainly[0])
    np.testing.assert_array_equal(ours[1](slope_QRD)[0], plainly[1](slope_QRD)[0])


@pytest.mark.parametrize("name", ["as it comes", "all to one"])
def test_what_is_sent_and_sent_back_is_what_it_was(name):
    count_QQ, sent_QR, came_QR = sent_and_received(name)
    sent, taken = sent_QR.shape[1], came_QR.shape[1]
    x_QRD = np.random.default_rng(7).normal(size=(Q, sent, D)).astype(np.float32)

    def there_and_back(x_RD):
        count = jnp.asarray(count_QQ)
        return exchange(exchange(x_RD, count, sent, taken), count.T, taken, sent)

    back_QRD = on_each(there_and_back)(x_QRD)
    np.testing.assert_array_equal(back_QRD, np.where(sent_QR[..., None], x_QRD, 0))
