"""`moejax export`: a trained model as a checkpoint of Hugging Face."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro
from jax.sharding import Mesh

from moejax import hf
from moejax.commands.mesh_needs import ONLY_WRITTEN
from moejax.config.checks import check
from moejax.config.config import Config
from moejax.config.files import load_config_file, read_config_json
from moejax.config.mesh import MeshConfig
from moejax.config.need import Need
from moejax.hf.files import is_checkpoint
from moejax.hf.peft import list_shapes, refuse_adapters, write_adapter
from moejax.hf.tokenizer_files import write_tokenizer
from moejax.hf.writing import new_directory
from moejax.inference import imported
from moejax.inference.kept_files import copy_template, find_tokenizer
from moejax.inference.open_model import OpenModel
from moejax.inference.opening import open_model
from moejax.inference.original_config import find_original, make_original
from moejax.inference.trained_run import is_run, open_run
from moejax.models.by_kind import state_shapes
from moejax.runs.quantised_mark import refuse_quantised
from moejax.runtime import device_mesh


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Write a run or an imported model in Hugging Face's format."""

    source: tyro.conf.Positional[Path]
    """Directory of a run, or of an imported model."""
    target: tyro.conf.Positional[Path]
    """New directory."""
    family: str | None = None
    """Write it as this family (mixtral, qwen3_moe, ...); by default the one that it was imported
    from, or the first that can hold it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the parameters; `auto` is that in which the model computes."""
    quantise: Literal["fp8", "mxfp4", "int4"] | None = None
    """Write weights in codes: `fp8` in blocks of 128 x 128 (all matrices of the layers, except
    routers), `mxfp4` (the experts of gpt-oss), `int4` of compressed-tensors (experts)."""
    next_tokens: tyro.conf.FlagConversionOff[bool] = True
    """Keep the modules that predict further tokens (MTP), if the model has such."""
    adapters: tyro.conf.FlagConversionOff[bool] = False
    """Of a run with --run.lora.rank: the adapters alone, in PEFT's format."""
    config: Path | None = None
    """A Python file that is run first: the config of the run, if it has a router of its own."""
    mesh: tyro.conf.FlagConversionOff[MeshConfig] = field(default_factory=MeshConfig)

    NEEDS: ClassVar[tuple[Need, ...]] = (
        ONLY_WRITTEN,
        Need(
            ("dtype", "quantise", "next_tokens"),
            lambda s: not s.adapters,
            "--adapters True, which writes no weights of the model",
            "export the whole model, without --adapters",
        ),
    )


def export_model(settings: ExportSettings) -> None:
    """Open and write, and say so. Raises ``UserError``."""
    source = settings.source
    refuse_quantised(source, "exporting")
    refuse_adapters(source)
    check(
        is_run(source) or imported.is_imported(source),
        f"{source} is neither a run (config.json and checkpoints/) nor an imported model"
        f" (config.json and model/)."
        + f" `moejax import {source} NEW` makes such a model of it."
        * is_checkpoint(source),
    )
    if settings.config is not None:
        load_config_file(settings.config)
    run = read_config_json(source / "config.json")
    check(
        run.model.material.language,
        f"{source} is a classifier of images: only language models are exported.",
    )
    check(
        not settings.adapters or run.run.lora.rank is not None,
        f"--adapters True: {source} has no adapters: leave it out.",
    )
    with new_directory(settings.target) as place:
        family = _convert(settings, run, place)
    print(f"written  {settings.target}, as {family}{_note(run)}", flush=True)


def _convert(settings: ExportSettings, run: Config, place: Path) -> str:
    """Returns the family that it was written as."""
    mesh = device_mesh.make_mesh(settings.mesh)
    if settings.adapters:
        return _write_adapters(settings, run, place, mesh)
    opened = open_model(settings.source, mesh=mesh, layout=settings.mesh)
    return write_checkpoint(
        place,
        settings.source,
        run,
        opened,
        family=settings.family,
        dtype=settings.dtype,
        quantise=settings.quantise,
        next_tokens=settings.next_tokens,
    )


def write_checkpoint(
    place: Path, source: Path, run: Config | None, opened: OpenModel, **how: Any
) -> str:
    """Write a model that was opened from ``source``, with its tokenizer; ``how`` is as in
    ``hf.save``. ``run``: its settings, None for a checkpoint of Hugging Face. Returns the family
    that it was written as.
    """
    original = find_original(source)
    more: dict[str, Any] = {}
    if original is None:
        assert run is not None  # as others have an original
        more["max_position_embeddings"] = run.data.sequence_length
    family = hf.save(
        place,
        opened.config,
        opened.params,
        opened.bias_LE,
        hf=original,
        files_from=None if is_run(source) else source,
        more=more,
        **how,
    )
    if run is not None and is_run(source):
        assert opened.tokenizer is not None  # as in every run on text
        given, released = find_tokenizer(source, run), original is not None
        write_tokenizer(place, given, opened.tokenizer.edges, released=released)
        copy_template(source, place)
    return family


def _write_adapters(settings: ExportSettings, run: Config, place: Path, mesh: Mesh) -> str:
    """Returns the family that they were written for."""
    source = settings.source
    opened = open_run(source, mesh, settings.mesh, None, None, None)
    assert opened.base is not None  # as the run has adapters
    family = settings.family or make_original(source, opened)["model_type"]
    parts, base = state_shapes(run, opened.vocab_size), opened.base
    shapes = list_shapes(parts["params"], parts.get("bias_LE"))
    write_adapter(place, family, opened.config, shapes, opened.params, base.scale, str(base.path))
    return f"adapters in PEFT's format of {family}"


def _note(run: Config) -> str:
    """What a reader must know of a model that was trained with capacity."""
    factor = run.model.moe.capacity_factor
    if not any(run.model.routed_layers) or factor is None:
        return ""
    return (
        f"\nnote     it was trained with --model.moe.capacity-factor {factor}; Hugging Face's"
        f" models drop nothing"
    )
