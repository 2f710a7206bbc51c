"""The device mesh: axes ``data``, ``context``, ``expert`` and ``model``.

Sequences are spread over ``data`` and ``expert`` together, the positions of each over ``context``,
expert weights over ``expert``, heads and hidden widths over ``model``; ``runtime.partition`` has
how each array lies on it.
"""

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from moejax.config.errors import ConfigError
from moejax.config.mesh import MeshConfig

AXES = ("data", "context", "expert", "model")


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Lay devices (by default all) out as data x context x expert x model.

    TPU slices are laid along the data axis, so that only gradients (and, with FSDP, parameters)
    pass between them. Raises ``ConfigError`` when the devices do not fit.
    """
    devices = devices or jax.devices()
    count = len(devices)
    data = config.data or max(1, count // config.beside_data)
    shape = (data, config.context, config.expert, config.model)
    if data * config.beside_data != count:
        raise ConfigError(
            f"a mesh of {name_axes(data, config)} needs {data * config.beside_data} devices, but"
            f" there are {count}. {list_what_fits(count, config)} To try several on a CPU, set"
            f" JAX_NUM_CPU_DEVICES."
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # An axis of the mesh may be a part of an axis of the chips' torus.
    if slices > 1 and devices[0].platform == "tpu":
        if data % slices:
            raise ConfigError(
                f"--mesh.data {data} is not divisible by the {slices} slices: experts and hidden"
                f" widths are spread inside a slice, so make --mesh.data a multiple of {slices}."
            )
        inside, across = (data // slices, *shape[1:]), (slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(
            inside, across, devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def name_axes(data: int, config: MeshConfig) -> str:
    """The flags of a mesh with so many devices on the data axis."""
    context = f" x --mesh.context {config.context}" if config.context > 1 else ""
    return (
        f"--mesh.data {data}{context} x --mesh.expert {config.expert} x --mesh.model {config.model}"
    )


def list_what_fits(count: int, config: MeshConfig) -> str:
    """Which axes so many devices can be laid out as."""
    beside, rest = f"--mesh.model {config.model}", config.model * config.context
    if config.context > 1:
        beside = f"--mesh.context {config.context} and {beside}"
    fits = [f"{count // (e * rest)}x{e}" for e in range(1, count + 1) if count % (e * rest) == 0]
    what = ", ".join(fits) or f"nothing, as {rest} does not divide {count}"
    return f"What fits (data x expert) beside {beside}: {what}."


def devices() -> int:
    """Devices of the mesh in use; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def token_devices() -> int:
    """Devices of the mesh in use over which tokens are spread; 1 without a mesh."""
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    return shape.get("data", 1) * shape.get("context", 1) * shape.get("expert", 1)


def expert_devices() -> int:
    """Devices on the expert axis of the mesh in use; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("expert", 1)


def context_devices() -> int:
    """Devices of the mesh in use that share each sequence; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("context", 1)


def platform() -> str:
    """What the devices of the mesh in use are (``cpu``, ``tpu``, ``cuda``); they need not be here.
    Without a mesh, the default devices.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "cuda" if name == "gpu" else name


def compiler_options(config: MeshConfig, platform: str) -> dict[str, str]:
    """What XLA must be told so that the parts of ``config.chunks`` overlap: on TPUs it exchanges
    slots and rows while nothing else runs, unless it is asked to go on.
    """
    if platform != "tpu" or config.chunks == 1:
        return {}
    return {f"xla_tpu_enable_async_{name}": "true" for name in ("all_to_all", "ragged_all_to_all")}
