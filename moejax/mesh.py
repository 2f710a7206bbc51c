"""The device mesh, and every PartitionSpec by name.

Axes: ``data`` and ``expert``. Tokens are spread over both together, expert weights over
``expert``; everything else is replicated.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.config import Config, ConfigError, MeshConfig

AXES = ("data", "expert")

# Activations, by the name of what they hold.
SPECS = {
    "batch_BN": P(AXES),
    "tokens_GSD": P(AXES),
    "slots_EGCD": P("expert", "data"),
}

# Parameters that are not replicated, by their own name; a leading L of stacked layers is added.
PARAMETER_SPECS = {
    "w_gate_EDF": P("expert"),
    "w_up_EDF": P("expert"),
    "w_down_EFD": P("expert"),
}


def make_mesh(config: MeshConfig) -> Mesh:
    """Lay all devices out as data x expert. Raises ``ConfigError`` when they do not fit."""
    devices = jax.device_count()
    data = config.data or max(1, devices // config.expert)
    if data * config.expert != devices:
        fits = [(devices // e, e) for e in range(1, devices + 1) if devices % e == 0]
        raise ConfigError(
            f"a mesh of --mesh.data {data} x --mesh.expert {config.expert} needs"
            f" {data * config.expert} devices, but there are {devices}. What fits (data x expert): "
            + ", ".join(f"{d}x{e}" for d, e in fits)
            + ". To try several on a CPU, set JAX_NUM_CPU_DEVICES."
        )
    return jax.make_mesh((data, config.expert), AXES, axis_types=(AxisType.Auto,) * 2)


def check_batches(config: Config, devices: int) -> None:
    """Every device must get whole sequences and whole routing groups of each (micro-)batch."""
    sequences = config.sequences_per_group
    unit = devices * sequences
    micro = config.data.batch_size // config.optim.accumulate
    for name, rows in (
        ("--data.batch-size / --optim.accumulate", micro),
        ("--data.eval-batch-size", config.data.eval_batch_size),
    ):
        if rows % unit:
            raise ConfigError(
                f"{name} = {rows} sequences cannot be spread over {devices} devices in routing"
                f" groups of {sequences} sequence{'s' * (sequences > 1)}: make it a multiple of"
                f" {unit}."
            )


def pin(x: jax.Array, name: str) -> jax.Array:
    """Fix how ``x`` lies on the mesh in use, by the name of its spec; without a mesh, return it."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, SPECS[name])


def by_tokens(function: Callable) -> Callable:
    """Run ``function(params, *arrays)`` on each device's own groups of tokens.

    ``arrays`` and results have a leading G; ``params`` are whole on every device, and their
    gradients are added up. Without a mesh, or on one device, the function itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    tokens = SPECS["tokens_GSD"]

    def run(params: object, *arrays: object) -> object:
        specs = (P(), *[tokens] * len(arrays))
        # Kernels say nothing of which axes their results vary over, hence no check.
        return jax.shard_map(function, in_specs=specs, out_specs=tokens, check_vma=False)(
            params, *arrays
        )

    return run


def devices() -> int:
    """Devices of the mesh in use; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def expert_devices() -> int:
    """Devices on the expert axis of the mesh in use; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("expert", 1)


def platform() -> str:
    """What the devices of the mesh in use are (``cpu``, ``tpu``, ``cuda``); they need not be here.
    Without a mesh, the default devices.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "cuda" if name == "gpu" else name


def tree_shardings(mesh: Mesh, tree: object) -> object:
    """The shardings of parameters, or of any state that repeats their names (optimizer moments)."""

    def sharding(path: tuple, leaf: jax.Array) -> NamedSharding:
        names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
        spec = next((PARAMETER_SPECS[n] for n in reversed(names) if n in PARAMETER_SPECS), P())
        if not spec or leaf.ndim < 3:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, P(*[None] * (leaf.ndim - 3), *spec))

    return jax.tree_util.tree_map_with_path(sharding, tree)


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


def place(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch on the mesh, from the rows (``process_rows``) that this process has of each array
    [B, N].
    """
    sharding = named(mesh, "batch_BN")
    own, of = _own_positions(mesh, jax.process_index())

    def put(x_BN: np.ndarray) -> jax.Array:
        shape = (len(x_BN) // len(own) * of, *x_BN.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x_BN, shape)

    return {name: put(x_BN) for name, x_BN in batch.items()}


def named(mesh: Mesh, name: str) -> NamedSharding:
    """The sharding of an activation or batch by the name of its spec."""
    return NamedSharding(mesh, SPECS[name])
