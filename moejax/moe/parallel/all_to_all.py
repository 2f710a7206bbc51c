"""Slots exchanged between the devices of the expert axis by explicit collectives."""

from functools import partial

import jax
from jax.ad_checkpoint import checkpoint_name

from moejax.moe import experts
from moejax.moe.parallel.on_each_device import run_on_each_device
from moejax.moe.travel import Travel
from moejax.runtime import device_mesh

exchange = partial(jax.lax.all_to_all, axis_name="expert", tiled=True)


def compute(params: dict[str, jax.Array], x_GRD: jax.Array, travel: Travel) -> jax.Array:
    """As ``slots.compute``: each device sends every other one the slots of its experts, and gets
    back what they made of them (Lepikhin et al. 2020, section 3.3).

    An exchange takes G E C D (n - 1) / n numbers out of a device with G groups, n devices on the
    expert axis.
    """
    return run_on_each_device(_compute, params, x_GRD, travel=travel)[0]


def _compute(
    params: dict[str, jax.Array], x_GRD: jax.Array, travel: Travel
) -> tuple[jax.Array, None]:
    here, (G, _, D) = params["w_down_EFD"].shape[0], x_GRD.shape
    # Slots of my experts, from the groups of all; [G, E, C, D] -> [n * G, E / n, C, D].
    x_GECD = x_GRD.reshape(G, here * device_mesh.expert_devices(), -1, D)
    x_GECD = checkpoint_name(exchange(x_GECD, split_axis=1, concat_axis=0), "expert_inputs")
    y_EGCD = experts.bank(params, x_GECD.swapaxes(0, 1), travel.activation)
    y_GECD = exchange(y_EGCD.swapaxes(0, 1), split_axis=0, concat_axis=1)
    return y_GECD.reshape(x_GRD.shape), None
