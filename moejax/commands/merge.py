"""`moejax merge`: a frozen model and the adapters trained beside it, as one plain model."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, ClassVar, Literal

import tyro

from moejax.commands.describe_import import describe_import
from moejax.commands.mesh_needs import ONLY_WRITTEN
from moejax.config.checks import check
from moejax.config.files import read_config_json
from moejax.config.mesh import MeshConfig
from moejax.config.need import Need
from moejax.hf.files import read_json
from moejax.hf.peft import is_adapter
from moejax.hf.tokenizer_files import write_tokenizer
from moejax.hf.writing import copy_other_files, new_directory
from moejax.inference import imported
from moejax.inference.kept_files import copy_template, find_tokenizer
from moejax.inference.open_model import OpenModel
from moejax.inference.opening import find_adapters_base, open_adapter, open_model
from moejax.inference.original_config import make_original
from moejax.inference.trained_run import is_run
from moejax.runs.quantised_mark import refuse_quantised
from moejax.runtime import device_mesh
from moejax.runtime.atomic_files import write_json


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """Add adapters to the model that they were trained beside, and write what comes out."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTERS")]
    """Directory of a run with --run.lora.rank, or of adapters in PEFT's format."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New directory, as `moejax import` writes it."""
    base: Path | None = None
    """Of adapters in PEFT's format: the model that they belong to; by default the directory that
    they name."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the parameters; `auto` is that in which the model computes."""
    mesh: tyro.conf.FlagConversionOff[MeshConfig] = field(default_factory=MeshConfig)

    NEEDS: ClassVar[tuple[Need, ...]] = (ONLY_WRITTEN,)


def merge_adapters(settings: MergeSettings) -> None:
    """Open, merge and write, and say so. Raises ``UserError``."""
    source, theirs = settings.source, is_adapter(settings.source)
    for path in filter(None, (source, settings.base)):
        refuse_quantised(path, "merging")
    check(
        theirs or is_run(source),
        f"{source} is neither a run (config.json and checkpoints/) nor adapters in PEFT's format"
        f" (adapter_config.json).",
    )
    check(
        theirs or read_config_json(source / "config.json").run.lora.rank is not None,
        f"{source} has no adapters: all its parameters were trained. `moejax export` writes it.",
    )
    check(
        theirs or settings.base is None,
        f"--base {settings.base}: a run knows the model that its adapters belong to. Leave it out.",
    )
    with new_directory(settings.target) as place:
        kind, model = _merge(settings, place)
    print(describe_import(kind, model.config, settings.target), flush=True)


def _merge(settings: MergeSettings, place: Path) -> tuple[str, OpenModel]:
    """Returns what it is, in words, and the model."""
    source, layout = settings.source, settings.mesh
    mesh = device_mesh.make_mesh(layout)
    dtype = None if settings.dtype == "auto" else settings.dtype
    if is_adapter(source):
        owner = settings.base or find_adapters_base(source)
        model = open_adapter(source, mesh, layout, dtype, None, None, owner)
    else:
        owner, model = source, open_model(source, mesh=mesh, layout=layout, dtype=dtype)
    fields = make_original(owner, model)
    with TemporaryDirectory() as folder:
        files = Path(folder)
        write_json(files / "config.json", fields)
        if is_run(owner):
            assert model.tokenizer is not None  # as in every run on text
            given = find_tokenizer(owner, read_config_json(owner / "config.json"))
            write_tokenizer(files, given, model.tokenizer.edges, released=True)
            copy_template(owner, files)
        else:
            copy_other_files(owner, files)
        imported.write_model(
            place,
            model.config,
            model.params,
            model.bias_LE,
            layout=layout,
            hf=read_json(files / "config.json"),
            files_from=files,
            name=settings.target,
        )
    return f"{fields['model_type']}, merged", model
