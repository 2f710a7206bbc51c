"""Devices that a plan can be for, and meshes of them that exist on paper only."""

from dataclasses import dataclass

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from moejax.config.errors import ConfigError
from moejax.config.mesh import MeshConfig
from moejax.runtime import targets
from moejax.runtime.device_mesh import AXES


@dataclass(frozen=True)
class Device:
    """A kind of device."""

    platform: str
    bytes: float | None
    """Memory that a program gets; None where nobody says."""


DEVICES = {
    "v4": Device("tpu", targets.HBM_BYTES["TPU v4"]),
    "v5e": Device("tpu", targets.HBM_BYTES["TPU v5 lite"]),
    "v5p": Device("tpu", targets.HBM_BYTES["TPU v5"]),
    "v6e": Device("tpu", targets.HBM_BYTES["TPU v6 lite"]),
    "a100": Device("cuda", 80e9),
    "h100": Device("cuda", 80e9),
    "h200": Device("cuda", 141e9),
    "cpu": Device("cpu", None),
}
"""Those of TPUs are what their compiler grants, those of GPUs what is written on them."""


def paper_mesh(layout: MeshConfig, devices: int | None, kind: str) -> AbstractMesh:
    """A mesh of so many devices, by default as few as the layout says. Raises ``ConfigError``
    where they do not fit.
    """
    inner = layout.expert * layout.model
    if devices is None:
        devices = (layout.data or 1) * inner
    data = layout.data or max(1, devices // inner)
    if data * inner != devices:
        raise ConfigError(
            f"--devices {devices} is not --mesh.data {data} x --mesh.expert {layout.expert} x"
            f" --mesh.model {layout.model}: make it a multiple of {inner}"
            + (f", or leave --mesh.data {data} out." if layout.data else ".")
        )
    device = AbstractDevice(kind, 1, DEVICES[kind].platform)
    sizes = (data, layout.expert, layout.model)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


def using(mesh: AbstractMesh) -> object:
    """The context in which ``mesh`` is in use."""
    return jax.sharding.use_abstract_mesh(mesh)
