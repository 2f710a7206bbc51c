"""Rows exchanged between the devices of the expert axis, to each as many as there are.

Letters: Q: devices of the expert axis.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from moejax.runtime import device_mesh


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def exchange(x_RD: jax.Array, count_QQ: jax.Array, sent: int, taken: int) -> jax.Array:
    """Send rows, those for device 0 first, and get those of the others: [taken, D], the rows of
    device 0 first, zeros behind them. ``x_RD`` has ``sent`` rows.

    ``count_QQ[s, r]`` (int32, the same everywhere) is how many rows device s sends device r. The
    transpose is the exchange by the transposed counts: nothing is read that was not sent.
    """
    me = lax.axis_index("expert")
    output_RD = jnp.zeros((taken, x_RD.shape[1]), x_RD.dtype)
    how = (sum_before(count_QQ, 1)[me], count_QQ[me], sum_before(count_QQ, 0)[me], count_QQ[:, me])
    # XLA has no such operation for CPUs.
    run = emulate if device_mesh.platform() == "cpu" else lax.ragged_all_to_all
    return run(x_RD, output_RD, *how, axis_name="expert")


exchange.defvjp(
    lambda x_RD, count_QQ, sent, taken: (exchange(x_RD, count_QQ, sent, taken), count_QQ),
    lambda sent, taken, count_QQ, d_RD: (exchange(d_RD, count_QQ.T, taken, sent), None),
)


def sum_before(count: jax.Array, axis: int) -> jax.Array:
    """The sum of what comes earlier along an axis."""
    return jnp.cumsum(count, axis) - count


def emulate(
    operand: jax.Array,
    output: jax.Array,
    input_offsets: jax.Array,
    send_sizes: jax.Array,
    output_offsets: jax.Array,
    recv_sizes: jax.Array,
    *,
    axis_name: str,
) -> jax.Array:
    """``lax.ragged_all_to_all`` by gathering everything everywhere: n times the memory."""
    me, row_R = lax.axis_index(axis_name), jnp.arange(output.shape[0])
    sent = (operand, input_offsets, send_sizes, output_offsets)
    operands, starts, sizes, places = (lax.all_gather(x, axis_name) for x in sent)
    for sender in range(operands.shape[0]):
        past_R = row_R - places[sender, me]
        here_R = (past_R >= 0) & (past_R < sizes[sender, me])
        source_R = jnp.clip(starts[sender, me] + past_R, 0, operand.shape[0] - 1)
        output = jnp.where(here_R[:, None], operands[sender][source_R], output)
    return output
