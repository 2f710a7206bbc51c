"""Which rows of a batch the devices of a process hold, and a batch on the mesh."""

import math

import jax
import numpy as np
from jax.sharding import Mesh

from moejax.runtime.partition import ROWS, activation_sharding
from moejax.runtime.pieces import cut


def _own_positions(mesh: Mesh, process: int) -> tuple[list[int], int]:
    """Which parts of a batch the devices of a process hold, and of how many, in order of rows."""
    first = [mesh.axis_names.index(axis) for axis in ROWS]
    devices = np.moveaxis(mesh.devices, first, range(len(ROWS)))
    positions = devices.reshape(math.prod(devices.shape[: len(ROWS)]), -1)
    own = [any(device.process_index == process for device in copies) for copies in positions]
    return np.flatnonzero(own).tolist(), len(positions)


def process_rows(mesh: Mesh, rows: int, process: int | None = None) -> np.ndarray:
    """Which of the ``rows`` of a batch the devices of a process (by default this one) hold: their
    indices, ascending. Processes whose devices hold copies, or other pieces, have the same ones;
    where hosts lie side by side in both directions of a torus, a process has several runs of rows.
    """
    own, of = _own_positions(mesh, jax.process_index() if process is None else process)
    each = rows // of
    return np.concatenate([np.arange(i * each, (i + 1) * each) for i in own])


def place_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch on the mesh, from the rows (``process_rows``) that this process has of each array
    [B, N]; over the axis ``context`` in pieces. Of arrays [B] every piece has the number.
    """
    sharding = activation_sharding(mesh, "batch_BN")
    own, of = _own_positions(mesh, jax.process_index())
    pieces = mesh.shape["context"]

    def put(x_BN: np.ndarray) -> jax.Array:
        each = len(x_BN) // len(own)
        rows_RN = np.tile(x_BN, pieces) if x_BN.ndim == 1 else cut(x_BN, pieces)

        def take(index: tuple[slice, ...] | None) -> np.ndarray:
            """What a device holds: one piece of the sequences at one position."""
            assert index is not None
            piece, position = divmod(index[0].indices(pieces * of * each)[0] // each, of)
            begin = piece * len(x_BN) + own.index(position) * each
            return rows_RN[begin : begin + each]

        shape = (pieces * of * each, *rows_RN.shape[1:])
        return jax.make_array_from_callback(shape, sharding, take)

    return {name: put(x_BN) for name, x_BN in batch.items()}
