"""Devices that a plan can be for, and meshes of them that exist on paper only."""

from dataclasses import dataclass

from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from moejax.config.errors import ConfigError
from moejax.config.mesh import MeshConfig
from moejax.runtime import targets
from moejax.runtime.device_mesh import AXES, name_axes
from moejax.runtime.device_peaks import Peak, look_up


@dataclass(frozen=True)
class Device:
    """A kind of device."""

    platform: str
    bytes: float | None
    """Memory that a program gets; None if that is not known."""
    peak: Peak | None = None
    """Its limits; None if they are not known."""


DEVICES = {
    "v4": Device("tpu", targets.HBM_BYTES["TPU v4"], look_up("TPU v4", cores=1)),
    "v5e": Device("tpu", targets.HBM_BYTES["TPU v5 lite"], look_up("TPU v5 lite")),
    "v5p": Device("tpu", targets.HBM_BYTES["TPU v5"], look_up("TPU v5")),
    "v6e": Device("tpu", targets.HBM_BYTES["TPU v6 lite"], look_up("TPU v6 lite")),
    "a100": Device("cuda", 80e9, look_up("NVIDIA A100-SXM4-80GB")),
    "h100": Device("cuda", 80e9, look_up("NVIDIA H100 80GB HBM3")),
    "h200": Device("cuda", 141e9, look_up("NVIDIA H200")),
    "cpu": Device("cpu", None),
}
"""For a TPU, the memory that its compiler grants; for a GPU, that in its name. A v4 is one core, as
its compiler describes it."""


def paper_mesh(layout: MeshConfig, devices: int | None, kind: str) -> AbstractMesh:
    """A mesh without real devices; by default, of as few devices as the layout allows. Raises
    ``ConfigError`` if the layout does not fit the number of devices.
    """
    inner = layout.beside_data
    if devices is None:
        devices = (layout.data or 1) * inner
    data = layout.data or max(1, devices // inner)
    if data * inner != devices:
        raise ConfigError(
            f"--devices {devices} is not {name_axes(data, layout)}: make it a multiple of {inner}"
            + (f", or leave --mesh.data {data} out." if layout.data else ".")
        )
    device = AbstractDevice(kind, 1, DEVICES[kind].platform)
    sizes = (data, layout.context, layout.expert, layout.model)
    types = (AxisType.Auto,) * len(AXES)
    return AbstractMesh(sizes, AXES, axis_types=types, abstract_device=device)
