"""The commands `moejax import`, `export` and `upcycle`: models in, out, from dense to routed."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from moejax import hf
from moejax.config.checks import check
from moejax.config.config import Config
from moejax.config.files import read_config_json
from moejax.config.mesh import MeshConfig
from moejax.data.tokenizer import make_byte_tokenizer_files
from moejax.hf.files import read_json
from moejax.hf.upcycle import upcycle, upcycle_config
from moejax.hf.writing import make_new_directory
from moejax.inference import imported
from moejax.inference.opening import is_checkpoint, is_run, open_model
from moejax.models.counts import cost
from moejax.runtime import device_mesh
from moejax.runtime.number_words import short

Place = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """Bring a checkpoint in Hugging Face's format into a directory that training begins from."""

    source: Place
    """Directory with config.json and safetensors."""
    target: Place
    """New directory."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the parameters; `auto` keeps that on disk."""
    mesh: tyro.conf.FlagConversionOff[MeshConfig] = field(default_factory=MeshConfig)


def import_model(settings: ImportSettings) -> None:
    """Read, check and write, and say so. Raises ``UserError``."""
    make_new_directory(settings.target)
    mesh = device_mesh.make_mesh(settings.mesh)
    model = hf.load(settings.source, settings.dtype, mesh=mesh, layout=settings.mesh)
    imported.write_model(
        settings.target,
        model.config,
        model.params,
        model.bias_LE,
        layout=settings.mesh,
        hf=model.hf,
        files_from=settings.source,
    )
    print(described(model.hf["model_type"], model.config, settings.target), flush=True)


def described(kind: str, config: Any, target: Path) -> str:
    price = cost(config, config.vocab_size, sequence_length=1)
    return "\n".join(
        (
            f"model    {kind}: {short(price.parameters_total, 'kMBT')} parameters,"
            f" {short(price.parameters_active, 'kMBT')} active a token, all tensors accounted for",
            f"written  {target}",
            f"next     moejax generate {target} --prompt '...'",
            f"         python train.py --config {target / 'config.json'} --run.directory runs/tuned"
            f" --data.source files --data.files '...'",
        )
    )


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Write a run or an imported model in Hugging Face's format."""

    source: Place
    """Directory of a run, or of an imported model."""
    target: Place
    """New directory."""
    family: str | None = None
    """Write it as this family (mixtral, qwen3_moe, ...); by default the one that it was imported
    from, or the first that can hold it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the parameters; `auto` is that in which the model computes."""
    mesh: tyro.conf.FlagConversionOff[MeshConfig] = field(default_factory=MeshConfig)


def export_model(settings: ExportSettings) -> None:
    """Open and write, and say so. Raises ``UserError``."""
    source = settings.source
    check(
        is_run(source) or imported.is_imported(source),
        f"{source} is neither a run (config.json and checkpoints/) nor an imported model"
        f" (config.json and model/).",
    )
    run = read_config_json(source / "config.json")
    check(
        not run.model.sees_images,
        f"{source} is a classifier of images: only language models are exported.",
    )
    make_new_directory(settings.target)
    mesh = device_mesh.make_mesh(settings.mesh)
    opened = open_model(source, mesh=mesh, layout=settings.mesh)
    original = _original(source, run)
    more: dict[str, Any] = {}
    if original is None:
        edge = opened.tokenizer.boundary
        more = {"bos_token_id": edge, "eos_token_id": edge}
        more["max_position_embeddings"] = run.data.sequence_length
    family = hf.save(
        settings.target,
        opened.config,
        opened.params,
        opened.bias_LE,
        hf=original,
        family=settings.family,
        dtype=settings.dtype,
        files_from=_files_from(source, run),
        more=more,
    )
    if run.data.tokenizer == "bytes" and original is None:
        for name, content in make_byte_tokenizer_files().items():
            (settings.target / name).write_text(json.dumps(content), encoding="utf-8")
    print(f"written  {settings.target}, as {family}{_note(run)}", flush=True)


def _files_from(source: Path, run: Config) -> Path | None:
    """The directory with the model's tokenizer; None if it has read bytes."""
    if imported.is_imported(source):
        return source
    if run.data.tokenizer == "bytes":
        return None
    tokenizer = Path(run.data.tokenizer).expanduser()
    return tokenizer if tokenizer.is_dir() else tokenizer.parent


def _original(source: Path, run: Config) -> dict[str, Any] | None:
    """The ``config.json`` that a model, or the model that a run began from, came with."""
    if imported.is_imported(source):
        return imported.read_original(source)
    if run.run.init_from is None:
        return None
    began = Path(run.run.init_from).expanduser()
    if is_checkpoint(began):
        return read_json(began / "config.json")
    return imported.read_original(began)


def _note(run: Config) -> str:
    """What a reader must know of a model that was trained with capacity."""
    factor = run.model.moe.capacity_factor
    if not any(run.model.routed_layers) or factor is None:
        return ""
    return (
        f"\nnote     it was trained with --model.moe.capacity-factor {factor}; Hugging Face's"
        f" models drop nothing"
    )


@dataclass(frozen=True, kw_only=True)
class UpcycleSettings:
    """Make a routed model of a dense one (Llama, Mistral or Qwen3) that computes the same."""

    source: Place
    """Directory with config.json and safetensors of a dense model."""
    target: Place
    """New directory, as `moejax import` writes it."""
    num_experts: int = 8
    """Experts in a routed layer."""
    top_k: int = 2
    """Experts that a token chooses."""
    split: int = 1
    """Cut each copy of the dense network into so many experts."""
    every: int = 1
    """Every n-th layer gets experts."""
    noise: float = 0.0
    """Noise on the experts, over the standard deviation of their matrices."""
    seed: int = 0
    """Of routers and noise."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the parameters; `auto` keeps that on disk."""


def upcycle_model(settings: UpcycleSettings) -> None:
    """Read, upcycle and write, and say so. Raises ``UserError``."""
    check(settings.noise >= 0, f"--noise must be at least 0, not {settings.noise}.")
    check(0 <= settings.seed < 2**31, f"--seed must lie in [0, 2**31), not {settings.seed}.")
    make_new_directory(settings.target)
    dense = hf.load(settings.source, settings.dtype)
    config = upcycle_config(
        dense.config,
        num_experts=settings.num_experts,
        top_k=settings.top_k,
        split=settings.split,
        every=settings.every,
    )
    params = upcycle(
        dense.config,
        dense.params,
        config,
        split=settings.split,
        noise=settings.noise,
        seed=settings.seed,
    )
    imported.write_model(
        settings.target,
        config,
        params,
        None,
        layout=MeshConfig(),
        hf=dense.hf,
        files_from=settings.source,
    )
    print(described(f"{dense.hf['model_type']}, upcycled", config, settings.target), flush=True)


COMMANDS = {
    "import": (ImportSettings, import_model),
    "export": (ExportSettings, export_model),
    "upcycle": (UpcycleSettings, upcycle_model),
}
