"""A model from the directory that holds it, whatever wrote it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from moejax.config.errors import RunError
from moejax.config.mesh import MeshConfig
from moejax.config.model import FloatType
from moejax.hf.files import is_checkpoint, read_json
from moejax.hf.peft import SETTINGS, is_adapter, list_shapes, read_adapter
from moejax.hf.writing import UNFINISHED
from moejax.inference.imported import is_imported
from moejax.inference.open_model import OpenModel, check_no_step
from moejax.inference.original_config import make_original
from moejax.inference.quantised_model import open_quantised
from moejax.inference.released_model import open_checkpoint, open_imported
from moejax.inference.trained_run import is_run, open_run
from moejax.models.adapters import attach, merge
from moejax.models.used_types import read_frozen
from moejax.moe.quantise_params import Weights, quantise_params
from moejax.runs.quantised_mark import is_quantised_model
from moejax.runs.same_model import check_base, sum_arrays
from moejax.runtime import partition


def open_model(
    path: Path,
    *,
    mesh: Mesh,
    layout: MeshConfig,
    dtype: FloatType | None = None,
    step: int | None = None,
    weights: Weights | None = None,
) -> OpenModel:
    """The model in a directory, laid out on ``mesh`` as ``layout`` says, by default in the type in
    which it was trained. ``step`` chooses a checkpoint of a run, by default the last. With
    ``weights``, those of a language model are quantised as they are read.

    Raises ``UserError`` if there is no model, it cannot be read, or it does not fit the mesh.
    """
    if not path.is_dir():
        raise RunError(f"there is no directory {path}: give that of a model.")
    for kind in KINDS:
        if kind.is_here(path):
            opened = kind.open(path, mesh, layout, dtype, step, weights)
            return opened if opened.base is None else put_into_base(path, opened, mesh, weights)
    if (path / "checkpoints").is_dir() and not (path / "config.json").exists():
        raise RunError(
            f"{path} has checkpoints, but no config.json, which says what model they are of. Put it"
            f" back from a copy of the run; or train one step more by the command of the run, which"
            f" writes it anew."
        )
    looked_for = "; ".join(kind.what for kind in KINDS)
    reason = f"{path} holds no model. Looked for: {looked_for}."
    if (path / UNFINISHED).is_dir():
        reason = f"{path} is unfinished: give the command that was to write it again, or wait."
    raise RunError(reason)


def put_into_base(
    path: Path, adapters: OpenModel, mesh: Mesh, weights: Weights | None
) -> OpenModel:
    """Adapters and the model that they belong to, as one plain model, quantised as ``weights`` say.
    ``path`` is the adapters'. Raises ``UserError`` if that model is not there, or is another one.
    """
    base, dtype = adapters.base, adapters.config.dtype
    assert base is not None
    if not base.path.is_dir():
        raise RunError(
            f"{path} has adapters of the model in {base.path}, and there is no such directory: put"
            f" it back there."
        )
    if base.digest is not None:
        check_base(path, str(base.path), sum_arrays(base.path), base.digest)
    wide: FloatType | None = "float32" if dtype == "float32" else None
    there = open_model(
        base.path, mesh=mesh, layout=adapters.layout, dtype=wide, weights=base.weights
    )
    frozen = read_frozen(there.params, adapters.config)
    params = add_adapters(frozen, adapters.params, base.scale, dtype, weights)
    return replace(adapters, params=params, base=None)


def add_adapters(
    params: dict, adapters: dict, scale: float, dtype: FloatType, weights: Weights | None
) -> dict:
    """The parameters of a plain model, from those of a base and its adapters; quantised if
    ``weights`` say so.
    """
    merged = merge(attach(params, adapters, scale), dtype)
    return merged if weights is None else quantise_params(merged, weights)


def find_adapters_base(path: Path) -> Path:
    """The model that adapters in PEFT's format name, from here or beside them. Raises ``RunError``
    if it is no directory.
    """
    name = str(read_json(path / SETTINGS).get("base_model_name_or_path"))
    places = [Path(name), path / name]
    if found := next((place for place in places if place.is_dir()), None):
        return found
    raise RunError(
        f"{path} has adapters of the model {name}, and there is no such directory. Say where it is:"
        f" `moejax merge {path} OUT --base MODEL`."
    )


def open_adapter(
    path: Path,
    mesh: Mesh,
    layout: MeshConfig,
    dtype: FloatType | None,
    step: int | None,
    weights: Weights | None,
    base: Path | None = None,
) -> OpenModel:
    """Adapters in PEFT's format and the model that they belong to, as one plain model."""
    check_no_step(path, step)
    base = base or find_adapters_base(path)
    there = open_model(base, mesh=mesh, layout=layout, dtype=dtype)
    config = there.config
    family = make_original(base, there)["model_type"]
    shapes = list_shapes(there.params, there.bias_LE)
    adapters, scale = read_adapter(path, family, config, shapes)
    placed = jax.device_put(adapters, partition.tree_shardings(mesh, adapters, layout.fsdp))
    params = add_adapters(there.params, placed, scale, config.dtype, weights)
    words = f"{there.description}, with the adapters of {path}"
    return replace(there, params=params, description=words)


@dataclass(frozen=True)
class Kind:
    """A kind of directory that holds a model."""

    what: str
    is_here: Callable[[Path], bool]
    open: Callable[
        [Path, Mesh, MeshConfig, FloatType | None, int | None, Weights | None], OpenModel
    ]


KINDS = [
    Kind("a run of train.py (config.json and checkpoints/)", is_run, open_run),
    Kind("a model of moejax import (config.json and model/)", is_imported, open_imported),
    Kind(
        "a model of moejax quantise (config.json and quantised.json)",
        is_quantised_model,
        open_quantised,
    ),
    Kind("adapters in PEFT's format (adapter_config.json)", is_adapter, open_adapter),
    Kind(
        "a checkpoint of Hugging Face (config.json with model_type, safetensors)",
        is_checkpoint,
        open_checkpoint,
    ),
]


def is_model_alone(path: Path) -> bool:
    """Whether a directory holds a model that is no run's."""
    return not is_run(path) and any(kind.is_here(path) for kind in KINDS)
