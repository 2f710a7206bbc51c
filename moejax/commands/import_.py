"""`moejax import`: a checkpoint of Hugging Face, to train on from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from moejax import hf
from moejax.commands.describe_import import describe_import
from moejax.commands.mesh_needs import ONLY_WRITTEN
from moejax.config.distributed import DistributedConfig
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.config.need import Need
from moejax.hf.peft import refuse_adapters
from moejax.hf.writing import new_directory
from moejax.inference import imported
from moejax.runtime import device_mesh
from moejax.runtime.processes import Processes


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """Bring a checkpoint in Hugging Face's format into a directory that training begins from."""

    source: tyro.conf.Positional[Path]
    """Directory with config.json and safetensors."""
    target: tyro.conf.Positional[Path]
    """New directory."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the parameters; `auto` keeps that on disk."""
    allow_not_finite: tyro.conf.FlagConversionOff[bool] = False
    """Go on with weights that are NaN or infinite."""
    next_tokens: tyro.conf.FlagConversionOff[bool] = True
    """Keep the layers that predict further tokens (MTP), where the files have them."""
    mesh: tyro.conf.FlagConversionOff[MeshConfig] = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Several processes that import together: each reads what its devices hold."""

    NEEDS: ClassVar[tuple[Need, ...]] = (ONLY_WRITTEN,)


def import_model(settings: ImportSettings) -> None:
    """Read, check and write, and say so; of several processes, the first says it. Raises
    ``UserError``.
    """
    refuse_adapters(settings.source, settings.target)
    with Processes(settings.distributed) as processes:
        if not processes.first:
            _convert(settings, Path(processes.agree("")), processes)
            return
        with new_directory(settings.target) as place:
            model = _convert(settings, Path(processes.agree(str(place))), processes)
    print(describe_import(*model, settings.target), flush=True)


def _convert(
    settings: ImportSettings, place: Path, processes: Processes
) -> tuple[str, ModelConfig]:
    """Returns the family and the settings, when all processes have written their parts."""
    mesh = device_mesh.make_mesh(settings.mesh)
    model = hf.load(
        settings.source,
        settings.dtype,
        mesh=mesh,
        layout=settings.mesh,
        allow_not_finite=settings.allow_not_finite,
        next_tokens=settings.next_tokens,
    )
    imported.write_model(
        place,
        model.config,
        model.params,
        model.bias_LE,
        layout=settings.mesh,
        hf=model.hf,
        files_from=settings.source,
        name=settings.target,
        first=processes.first,
    )
    processes.barrier()
    return model.hf["model_type"], model.config
