"""A model in a directory of its own: what `moejax import` writes, and training begins from."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from moejax.config.config import Config
from moejax.config.data import DataConfig
from moejax.config.errors import CheckpointError, ConfigError
from moejax.config.files import to_dict
from moejax.config.mesh import MeshConfig
from moejax.config.model import FloatType, ModelConfig
from moejax.config.optim import OptimConfig
from moejax.config.paths import check_plain
from moejax.config.run import RunConfig
from moejax.hf.accounts import BIAS
from moejax.hf.arrays import lay_out
from moejax.hf.configs import with_defaults
from moejax.hf.files import read_json
from moejax.hf.tensors import ArrayPath
from moejax.hf.writing import copy_other_files, make_new_directory
from moejax.moe.placing import Like
from moejax.moe.quantise_params import (
    Weights,
    check_not_quantised,
    check_spread,
    quantise_shape,
)
from moejax.runs.checkpoint import first_line
from moejax.runs.checksums import check_files, write_checksums
from moejax.runs.stored_arrays import read_tree, read_types, save_in_parts
from moejax.runtime.atomic_files import write_json
from moejax.runtime.room import ROOM, check_room, count_bytes

ARRAYS = "model"
ORIGINAL = "huggingface.json"
"""The ``config.json`` that the model came with, where it came with one."""


def is_imported(directory: Path) -> bool:
    """Whether this is such a directory."""
    return (directory / ARRAYS).is_dir() and (directory / "config.json").is_file()


def write_model(
    directory: Path,
    config: ModelConfig,
    params: dict,
    bias_LE: jax.Array | None,
    *,
    layout: MeshConfig,
    hf: dict[str, Any],
    files_from: Path,
    name: Path,
    first: bool = True,
) -> None:
    """Write a model, its tokenizer, and ``config.json``: the settings of a run that goes on
    training it. ``hf`` is the ``config.json`` that it came with; ``name`` is what the directory is
    called in the end. Of several processes, each writes the parts of its own devices, and the
    ``first`` all else. Raises ``CheckpointError``.
    """
    check_plain("NEW", name)
    check_not_quantised(params, f"{name} is to be trained from")
    if first:
        make_new_directory(directory)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    tree = {"params": params} | ({} if bias_LE is None else {"bias_LE": bias_LE})
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save((directory / ARRAYS).absolute(), args=save_in_parts(tree))
        if first:
            write_checksums(directory / ARRAYS)
    except Exception as error:  # a full disk shows as OSError, ValueError, XlaRuntimeError, ...
        raise CheckpointError(f"cannot write {directory}: {first_line(error)}.") from error
    if not first:
        return
    copy_other_files(files_from, directory)
    write_json(directory / ORIGINAL, hf)
    tokenizer = name / "tokenizer.json" if (directory / "tokenizer.json").is_file() else "bytes"
    longest = with_defaults(hf)["max_position_embeddings"] or 1024
    run = make_fine_tuning_config(config, name, str(tokenizer), layout, longest)
    write_json(directory / "config.json", to_dict(run))
    write_checksums(directory, sorted(p.name for p in directory.iterdir() if p.is_file()))


def make_fine_tuning_config(
    model: ModelConfig, directory: Path, tokenizer: str, layout: MeshConfig, longest: int
) -> Config:
    """Settings to go on training a model with: ordinary ones, to be overridden."""
    length = min(1024, longest, model.attention.longest or 1024)
    rows = 8 * max(1, layout.expert * (layout.data or 1))
    return Config(
        model=replace(model, dtype="float32" if model.dtype == "float32" else "bfloat16"),
        data=DataConfig(
            tokenizer=tokenizer,
            sequence_length=length,
            batch_size=rows,
            eval_batch_size=rows,
        ),
        optim=OptimConfig(learning_rate=2e-5, warmup_fraction=0.03),
        mesh=layout,
        run=RunConfig(init_from=str(directory), steps=1000, eval_every=250, checkpoint_every=250),
    )


def read_weights(
    directory: Path,
    shapes: dict[ArrayPath, tuple[int, ...]],
    mesh: Mesh,
    layout: MeshConfig,
    dtype: FloatType | None,
    weights: Weights | None = None,
) -> tuple[dict, jax.Array | None]:
    """The parameters and the selection bias of a model whose arrays have these shapes, on ``mesh``;
    in ``dtype``, by default as they were written, and quantised if ``weights`` say so. Raises
    ``UserError``.
    """
    try:
        check_files(directory / ARRAYS)
        written = read_types(directory / ARRAYS)
        like: dict[ArrayPath, Like] = {}
        for name, shape in shapes.items():
            bias = name == BIAS
            place = name if bias else ("params", *name)
            kind = "float32" if bias else dtype or written[place]
            like[place] = quantise_shape(name[-1], jax.ShapeDtypeStruct(shape, kind), weights)
        like = lay_out(like, mesh, layout)
        check_spread(like, layout)
        check_room(count_bytes(jax.tree.leaves(like)), f"{directory}", ROOM)
        tree = read_tree(directory / ARRAYS, unflatten_dict(like))
    except ConfigError:
        raise
    except Exception as error:  # TensorStore raises many kinds for a cut file
        raise CheckpointError(f"{directory} cannot be read: {first_line(error)}.") from error
    return tree["params"], tree.get("bias_LE")


def read_original(directory: Path) -> dict[str, Any] | None:
    """The ``config.json`` that a model came with, or None."""
    file = directory / ORIGINAL
    return read_json(file) if file.is_file() else None
