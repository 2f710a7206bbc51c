"""A quantised model in a directory of its own: what `moejax quantise` writes."""

import logging
import shutil
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.config import Config
from moejax.config.errors import CheckpointError
from moejax.config.files import read_config_json, to_dict
from moejax.config.mesh import MeshConfig
from moejax.config.model import FloatType
from moejax.config.own_code import FOLDER
from moejax.data.chat.find_template import FILE
from moejax.data.text_edges import read_edges
from moejax.data.tokenizer import HuggingFaceTokenizer, load_tokenizer
from moejax.hf.writing import copy_other_files
from moejax.inference.imported import ORIGINAL
from moejax.inference.inference_config import check_layout
from moejax.inference.kept_files import EDGES, copy_template, find_text, find_tokenizer
from moejax.inference.open_model import OpenModel, check_no_step
from moejax.models.by_kind import state_shapes
from moejax.models.used_types import cast_shapes
from moejax.moe.quantise_params import Weights, check_spread, count_bits, quantise_shapes
from moejax.moe.quantised import Quantised, is_quantised
from moejax.runs.checkpoint import first_line
from moejax.runs.checksums import check_files, find_damage, write_checksums
from moejax.runs.quantised_mark import MARK, describe_mark, read_mark
from moejax.runs.stored_arrays import read_tree, save_in_parts
from moejax.runtime import partition
from moejax.runtime.atomic_files import write_json
from moejax.runtime.room import check_room, count_bytes

ARRAYS = "quantised"
KEPT = ("summary.json", ORIGINAL)
"""Files of a model that are copied beside those of its tokenizer."""


def write_quantised(
    directory: Path, model: OpenModel, weights: Weights, config: Config, source: Path
) -> None:
    """Write a model that was opened with these ``weights`` from ``source``, with what is needed to
    run it. ``config``: the settings that it was trained with, or is to be. Raises
    ``CheckpointError``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    tree = {"params": split_parts(model.params)}
    tree |= {} if model.bias_LE is None else {"bias_LE": model.bias_LE}
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save((directory / ARRAYS).absolute(), args=save_in_parts(tree))
        write_checksums(directory / ARRAYS)
    except Exception as error:  # a full disk shows as OSError, ValueError, XlaRuntimeError, ...
        raise CheckpointError(f"cannot write {directory}: {first_line(error)}.") from error
    tokenizer = None
    if isinstance(model.tokenizer, HuggingFaceTokenizer):
        tokenizer = "tokenizer.json"
        of_run = (source / "checkpoints").is_dir()
        given = Path(find_tokenizer(source, config)) if of_run else source
        folder = given if given.is_dir() else given.parent
        copy_other_files(folder, directory)
        if given.is_file():  # of any name
            shutil.copyfile(given, directory / tokenizer)
        write_json(directory / EDGES, model.tokenizer.edges.to_json())
    elif model.tokenizer is not None:
        tokenizer = "bytes"
    copy_template(source, directory)
    for name in KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    if (source / FOLDER).is_dir():
        shutil.copytree(source / FOLDER, directory / FOLDER)
    said = {
        "weights": asdict(weights),
        "source": str(source.absolute()),
        "tokenizer": tokenizer,
        "vocab_size": model.vocab_size,
        "context": model.context,
        "beginning": list(model.beginning),
        "ends": sorted(model.ends),
        "has_text": model.data is not None,
        "description": model.description,
    }
    write_json(directory / MARK, said)
    write_json(directory / "config.json", to_dict(replace(config, model=model.config)))
    write_checksums(directory, sorted(p.name for p in directory.iterdir() if p.is_file()))


def open_quantised(
    path: Path,
    mesh: Mesh,
    layout: MeshConfig,
    dtype: FloatType | None,
    step: int | None,
    weights: Weights | None,
) -> OpenModel:
    """A model that `moejax quantise` wrote."""
    check_no_step(path, step)
    said = read_mark(path)
    written = Weights(kind=said["weights"]["kind"], group=said["weights"]["group"])
    check(
        weights in (None, written),
        f"{weights and weights.words}: {path} is quantised already ({describe_mark(path)}). Leave"
        f" this out, or quantise the model that it was made of, {said.get('source')}.",
    )
    if damage := find_damage(path):  # somebody may have meant it
        warnings.warn(f"{path}: {damage}.", stacklevel=2)
    config = read_config_json(path / "config.json")
    model = config.model if dtype is None else replace(config.model, dtype=dtype)
    check_layout(model, layout, mesh)
    like = state_shapes(replace(config, mesh=MeshConfig()), said["vocab_size"])
    like["params"] = quantise_shapes(cast_shapes(like["params"], model), written)
    like = partition.set_shardings(like, partition.tree_shardings(mesh, like, layout.fsdp))
    check_spread(like, layout)
    check_room(
        count_bytes(jax.tree.leaves(like)), str(path), "On a mesh every device holds a part."
    )
    try:
        check_files(path / ARRAYS)
        tree = join_parts(like, read_tree(path / ARRAYS, split_parts(like)))
    except Exception as error:  # TensorStore raises many kinds for a cut file
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}.") from error
    tokenizer = None
    if said["tokenizer"] is not None:
        name = said["tokenizer"]
        tokenizer = load_tokenizer(name if name == "bytes" else str(path))
    if isinstance(tokenizer, HuggingFaceTokenizer):
        tokenizer.edges = read_edges(path / EDGES)
    bits, template = count_bits(tree["params"]), path / FILE
    return OpenModel(
        config=replace(model, vocab_size=said["vocab_size"]),
        layout=layout,
        vocab_size=said["vocab_size"],
        params=tree["params"],
        bias_LE=tree.get("bias_LE"),
        tokenizer=tokenizer,
        context=said["context"],
        beginning=tuple(said["beginning"]),
        ends=frozenset(said["ends"]),
        description=f"{path}, {describe_mark(path)} ({bits:.2f} bits a parameter), made of"
        f" {said['description']}",
        data=find_text(path, config.data) if said["has_text"] else None,
        chat_template=str(template) if template.is_file() else None,
    )


def split_parts(tree: Any) -> Any:
    """A tree with a dict of arrays for each ``Quantised``: what Orbax writes."""
    return jax.tree.map(
        lambda w: {"codes": w.codes, "scales": w.scales} if is_quantised(w) else w,
        tree,
        is_leaf=is_quantised,
    )


def join_parts(like: Any, tree: Any) -> Any:
    """The inverse of ``split_parts``, for a tree like ``like``."""

    def join(w: Any, found: Any) -> Any:
        if not is_quantised(w):
            return found
        return Quantised(found["codes"], found["scales"], w.kind, w.axis)

    return jax.tree.map(join, like, tree, is_leaf=is_quantised)
