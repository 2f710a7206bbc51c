"""`moejax quantise`: a model with weights of 8 or 4 bits, to be run."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from moejax.commands.model_settings import GroupFlag
from moejax.config.checks import check
from moejax.config.config import Config
from moejax.config.files import load_config_file, read_config_json
from moejax.config.mesh import MeshConfig
from moejax.hf.files import read_json
from moejax.hf.peft import refuse_adapters
from moejax.hf.writing import new_directory
from moejax.inference.imported import is_imported, make_fine_tuning_config
from moejax.inference.open_model import OpenModel
from moejax.inference.opening import open_model
from moejax.inference.quantised_model import write_quantised
from moejax.inference.trained_run import is_run
from moejax.moe.quantise_params import Weights, count_bits
from moejax.moe.quantised import Kind, is_quantised
from moejax.runs.quantised_mark import refuse_quantised
from moejax.runtime import device_mesh
from moejax.runtime.number_words import short


@dataclass(frozen=True, kw_only=True)
class QuantiseSettings:
    """Write a model with weights of 8 or 4 bits: `moejax generate` and `moejax eval` run it."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The directory of a run, of an imported model, or of a checkpoint of Hugging Face."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New directory."""
    weights: Kind = "int4"
    """What the matrices become, with those of experts; the embedding takes 8 bits, and routers,
    norms and biases stay."""
    group: GroupFlag | None = None
    """How many numbers that are summed together share a scale; `channel`: all of them. By default
    32 for int4, where that divides them, and else all."""
    config: Path | None = None
    """A Python file that is run first: the config of the run, if it has a router of its own."""
    step: int | None = None
    """The checkpoint; by default the last."""


def quantise_model(settings: QuantiseSettings) -> None:
    """Read, quantise and write, and say so. Raises ``UserError``."""
    if settings.config is not None:
        load_config_file(settings.config)
    source = settings.source
    refuse_quantised(source, "quantising")
    refuse_adapters(source)
    weights = Weights(kind=settings.weights, group=settings.group)
    with new_directory(settings.target) as place:
        mesh = device_mesh.make_mesh(MeshConfig(data=1), jax.devices()[:1])
        model = open_model(
            source, mesh=mesh, layout=MeshConfig(data=1), step=settings.step, weights=weights
        )
        check(model.config.vocab_size is not None or is_run(source), f"{source} has no vocabulary.")
        write_quantised(place, model, weights, find_config(source, model), source)
    print(describe(model, weights, settings.target), flush=True)


def find_config(source: Path, model: OpenModel) -> Config:
    """The settings of the run, or those to go on training a released model with."""
    if is_run(source) or is_imported(source):
        return read_config_json(source / "config.json")
    longest = read_json(source / "config.json").get("max_position_embeddings") or 1024
    return make_fine_tuning_config(model.config, source, "bytes", MeshConfig(), int(longest))


def describe(model: OpenModel, weights: Weights, target: Path) -> str:
    """What was written, and how large it is."""
    leaves = jax.tree.leaves(model.params, is_leaf=is_quantised)
    numbers = sum(math.prod(w.shape) for w in leaves)
    held, bits = sum(w.nbytes for w in leaves), count_bits(model.params)
    return (
        f"written  {target}, {weights.kind}: {short(numbers, 'kMBT')} parameters in"
        f" {short(held)}B, {bits:.2f} bits each, {held / (4 * numbers):.3f} of float32"
    )
