"""What of a run must fit the devices that are there."""

import math

from jax.sharding import AbstractMesh, Mesh

from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.runtime.partition import TOKENS


def check_fits(config: Config, mesh: Mesh | AbstractMesh) -> None:
    """Every device must get whole sequences and whole routing groups of each (micro-)batch, in as
    many parts as they are sent in; and its share of the width, with FSDP.
    """
    devices = mesh.shape["data"] * mesh.shape["expert"]
    sequences = config.sequences_per_group
    unit = devices * sequences
    micro = config.data.batch_size // config.optim.accumulate
    for name, rows in (
        ("--data.batch-size / --optim.accumulate", micro),
        ("--data.eval-batch-size", config.data.eval_batch_size),
    ):
        if rows % unit:
            group = f"{sequences} {config.row_name}{'s' * (sequences > 1)}"
            raise ConfigError(
                f"{name} = {rows} {config.row_name}s cannot be spread over {devices} devices in"
                f" routing groups of {group}: make it a multiple of {unit}."
            )
        positions = config.positions // config.mesh.context
        groups = rows // devices * positions // config.model.moe.group_size
        if config.model.moe.every and groups % config.mesh.chunks:
            raise ConfigError(
                f"--mesh.chunks {config.mesh.chunks} does not divide the {groups} routing"
                f" group{'s' * (groups > 1)} of a device ({name} = {rows} {config.row_name}s over"
                f" {devices} devices): make it a divisor of {groups}, or the batch larger."
            )
    check_fsdp(config.model, config.mesh, mesh)
    if isinstance(mesh, Mesh):
        check_host(config, mesh.devices.flat[0].platform)


def check_host(config: Config, platform: str) -> None:
    """What waits in the host's memory needs a device that has another."""
    flags = {
        "--optim.offload True": config.optim.offload,
        "--model.remat offload": config.model.remat == "offload",
    }
    for flag in (flag for flag, given in flags.items() if given and platform == "cpu"):
        raise ConfigError(
            f"{flag} lets numbers wait in the memory of the host, but the CPU has no other: leave"
            f" it out here, or train on a TPU or a GPU."
        )


def check_fsdp(model: ModelConfig, layout: MeshConfig, mesh: Mesh | AbstractMesh) -> None:
    """With FSDP or ZeRO-1, every device must get its share of what is spread."""
    if not layout.spreads:
        return
    flag = "--mesh.fsdp" if layout.fsdp else "--mesh.zero1"
    devices = math.prod(mesh.shape[axis] for axis in TOKENS)
    widths = {"--model.width": (model.width, devices)}
    if model.is_latent:
        heads, both = model.num_heads, model.plain_head_size + model.value_head_size
        widths["the width of all keys and values,"] = (heads * both, mesh.size)
        widths["the width of all queries,"] = (heads * model.query_head_size, mesh.size)
    for name, (width, number) in widths.items():
        if width % number:
            raise ConfigError(
                f"{flag} spreads {name} {width} over {number} devices, which do not divide"
                f" it: make it a multiple of {number}, or leave {flag} out."
            )
