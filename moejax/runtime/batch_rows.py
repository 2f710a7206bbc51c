"""Which rows of a batch the devices of a process hold, and a batch on the mesh."""

import math

import jax
import numpy as np
from jax.sharding import Mesh

from moejax.runtime.partition import SPECS, activation_sharding


def _own_positions(mesh: Mesh, process: int) -> tuple[list[int], int]:
    """Which parts of a batch the devices of a process hold, and of how many, in order of rows."""
    (axes,) = SPECS["batch_BN"]
    first = [mesh.axis_names.index(axis) for axis in axes]
    devices = np.moveaxis(mesh.devices, first, range(len(axes)))
    positions = devices.reshape(math.prod(devices.shape[: len(axes)]), -1)
    own = [any(device.process_index == process for device in copies) for copies in positions]
    return np.flatnonzero(own).tolist(), len(positions)


def process_rows(mesh: Mesh, rows: int, process: int | None = None) -> np.ndarray:
    """Which of the ``rows`` of a batch the devices of a process (by default this one) hold: their
    indices, ascending. Processes whose devices hold copies have the same ones; where hosts lie
    side by side in both directions of a torus, a process has several runs of rows.
    """
    own, of = _own_positions(mesh, jax.process_index() if process is None else process)
    each = rows // of
    return np.concatenate([np.arange(i * each, (i + 1) * each) for i in own])


def place_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch on the mesh, from the rows (``process_rows``) that this process has of each array
    [B, N].
    """
    sharding = activation_sharding(mesh, "batch_BN")
    own, of = _own_positions(mesh, jax.process_index())

    def put(x_BN: np.ndarray) -> jax.Array:
        shape = (len(x_BN) // len(own) * of, *x_BN.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x_BN, shape)

    return {name: put(x_BN) for name, x_BN in batch.items()}
