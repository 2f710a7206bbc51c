"""A trained model from the directory that holds it, without what only training needs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moejax import hf
from moejax.config.checks import check
from moejax.config.config import Config
from moejax.config.data import DataConfig
from moejax.config.errors import ConfigError, RunError
from moejax.config.files import read_config_json
from moejax.config.mesh import MeshConfig
from moejax.config.mesh_fit import check_mesh
from moejax.config.model import ModelConfig
from moejax.data.tokenizer import Tokenizer, choose_vocab_size, load_tokenizer
from moejax.hf.files import read_json
from moejax.inference import imported
from moejax.inference.generation import for_inference
from moejax.models.by_kind import build
from moejax.models.counts import cost
from moejax.models.initial_params import init_params, selection_bias_shape
from moejax.runs.checkpoint import read_parts
from moejax.runtime import device_fit, partition
from moejax.runtime.number_words import short


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model that can be run."""

    config: ModelConfig
    """As it was trained; see ``generate.for_inference``."""
    layout: MeshConfig
    vocab_size: int
    params: dict
    """On the mesh; see ``as_used`` for their types."""
    bias_LE: jax.Array | None
    tokenizer: Tokenizer | None
    """None if a released model came without its own, and for images."""
    context: int
    """Positions of the sequences that it was trained on; tokens of an image."""
    beginning: tuple[int, ...]
    """The tokens before every text."""
    ends: frozenset[int]
    """The tokens that end a text."""
    description: str
    """One line: what it is, and of what size."""
    data: DataConfig | None
    """The text or images that it was trained on, with a part held out; None if nobody says."""
    rows: int = 64
    """Sequences, or images, in a batch, where nobody says."""

    def begin(self, text: str) -> np.ndarray:
        """The tokens of a text that is to go on, int32 [n]."""
        ids, _ = self.tokenizer.encode(text.encode())
        return np.concatenate([self.beginning, ids]).astype(np.int32)


def open_model(
    path: Path,
    *,
    mesh: Mesh,
    layout: MeshConfig,
    dtype: str | None = None,
    step: int | None = None,
) -> OpenModel:
    """The model in a directory, laid out on ``mesh`` as ``layout`` says, by default in the type in
    which it was trained. ``step`` chooses a checkpoint of a run, by default the last.

    Raises ``UserError`` if there is no model, it cannot be read, or it does not fit the mesh.
    """
    if not path.is_dir():
        raise RunError(f"there is no directory {path}: give that of a model.")
    for kind in KINDS:
        if kind.is_here(path):
            return kind.open(path, mesh, layout, dtype, step)
    looked_for = "; ".join(kind.what for kind in KINDS)
    raise RunError(f"{path} holds no model. Looked for: {looked_for}.")


@dataclass(frozen=True)
class Kind:
    """A kind of directory that holds a model."""

    what: str
    is_here: Callable[[Path], bool]
    open: Callable[[Path, Mesh, MeshConfig, str | None, int | None], OpenModel]


def is_run(path: Path) -> bool:
    """Whether ``path`` is the directory of a run."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def open_run(
    path: Path, mesh: Mesh, layout: MeshConfig, dtype: str | None, step: int | None
) -> OpenModel:
    """The model of a run, from its last checkpoint that can be read."""
    config, tokenizer = read_run(path)
    model_config = config.model if dtype is None else replace(config.model, dtype=dtype)
    check_layout(model_config, layout, mesh)
    V = choose_vocab_size(model_config, tokenizer) if tokenizer else classes_of(path)
    like = as_used(parts_of_state(replace(config, mesh=MeshConfig()), V), model_config)
    shardings = partition.tree_shardings(mesh, like, layout.fsdp)
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        like,
        shardings,
    )
    step, parts, extra = read_parts(path / "checkpoints", like, step)
    trained_with = extra["place"]["layout"].get("tokenizer")
    if tokenizer and trained_with != tokenizer.fingerprint:
        raise RunError(
            f"{path} was trained with another tokenizer than the one that is now at"
            f" {config.data.tokenizer} ({trained_with}, not {tokenizer.fingerprint}): put the old"
            f" one back there."
        )
    price = cost(config.model, V, config.positions)
    boundary = (tokenizer.boundary,) if tokenizer else ()
    return OpenModel(
        config=model_config,
        layout=layout,
        vocab_size=V,
        params=parts["params"],
        bias_LE=parts.get("bias_LE"),
        tokenizer=tokenizer,
        context=config.positions,
        beginning=boundary,
        ends=frozenset(boundary),
        description=f"{path}, step {step:,}: {short(price.parameters_total, 'kMBT')} parameters,"
        f" {short(price.parameters_active, 'kMBT')} active a token",
        data=config.data,
        rows=config.data.eval_batch_size if config.model.sees_images else OpenModel.rows,
    )


def classes_of(path: Path) -> int:
    """The number of classes of a run on images."""
    try:
        return len(json.loads((path / "summary.json").read_text(encoding="utf-8"))["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path / 'summary.json'} does not say what the classes of the images are: {error}."
        ) from error


def read_run(path: Path) -> tuple[Config, Tokenizer | None]:
    """The settings and the tokenizer of a run, which a classifier of images has not; ``RunError``
    says which of them is missing.
    """
    try:
        config = read_config_json(path / "config.json")
    except ConfigError as error:
        own = ""
        if "--model.moe.router" in str(error):
            own = " If it is a router of your own, give --config and the file that has it."
        raise RunError(f"{error}{own}") from error
    if config.model.sees_images:
        return config, None
    try:
        return config, load_tokenizer(config.data.tokenizer)
    except ConfigError as error:
        raise RunError(f"the tokenizer that {path} was trained with is missing: {error}") from error


def check_layout(config: ModelConfig, layout: MeshConfig, mesh: Mesh) -> None:
    """Raise ``ConfigError`` if a model cannot lie on this mesh when it is run."""
    check_mesh(for_inference(config), layout)
    device_fit.check_fsdp(config, layout, mesh)


def parts_of_state(config: Config, vocab_size: int) -> dict:
    """Shapes of the parts of a train state that a trained model needs."""
    model = build(config.model, vocab_size)
    parts = {"params": jax.eval_shape(partial(init_params, model, config))}
    if (shape := selection_bias_shape(config.model)) is not None:
        parts["bias_LE"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return parts


def as_used(params: dict, config: ModelConfig) -> dict:
    """Shapes of parameters in the types in which a model uses them: matrices and their biases in
    that of the activations, to which it would else cast them at every step; all that is of routers,
    norms and softmaxes in float32.
    """

    def typed(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = path[-1].key
        cast = name in partition.PARAMETERS and name not in ("w_router_DE", "sink_H")
        return jax.ShapeDtypeStruct(leaf.shape, config.dtype if cast else leaf.dtype)

    return jax.tree_util.tree_map_with_path(typed, params)


def open_imported(
    path: Path, mesh: Mesh, layout: MeshConfig, dtype: str | None, step: int | None
) -> OpenModel:
    """A model that `moejax import` or `moejax upcycle` wrote."""
    no_step(path, step)
    check_layout(read_config_json(path / "config.json").model, layout, mesh)
    config, params, bias_LE = imported.read_model(path, mesh, layout, dtype)
    return released(path, config, params, bias_LE, layout, imported.read_original(path))


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a checkpoint in Hugging Face's format, whole or not."""
    file = path / "config.json"
    return file.is_file() and "model_type" in read_json(file)


def open_checkpoint(
    path: Path, mesh: Mesh, layout: MeshConfig, dtype: str | None, step: int | None
) -> OpenModel:
    """A checkpoint in Hugging Face's format, as it is."""
    no_step(path, step)
    model = hf.load(path, dtype or "auto", mesh=mesh, layout=layout)
    device_fit.check_fsdp(model.config, layout, mesh)
    return released(path, model.config, model.params, model.bias_LE, layout, model.hf)


def no_step(path: Path, step: int | None) -> None:
    """Only runs have several checkpoints."""
    check(step is None, f"--step {step}: {path} is no run, and has one state only.")


def released(
    path: Path,
    config: ModelConfig,
    params: dict,
    bias_LE: jax.Array | None,
    layout: MeshConfig,
    fields: dict[str, Any],
) -> OpenModel:
    """A released model with what its directory says of texts: ``fields`` are its config.json."""
    has_tokenizer = (path / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(str(path)) if has_tokenizer else None
    generation = path / "generation_config.json"
    ends = read_json(generation).get("eos_token_id") if generation.is_file() else None
    ends = fields.get("eos_token_id") if ends is None else ends
    if ends is None and tokenizer is not None:
        ends = tokenizer.boundary
    price = cost(config, config.vocab_size, sequence_length=1)
    return OpenModel(
        config=config,
        layout=layout,
        vocab_size=config.vocab_size,
        params=params,
        bias_LE=bias_LE,
        tokenizer=tokenizer,
        context=fields.get("max_position_embeddings") or 2048,
        beginning=() if tokenizer is None else tokenizer.beginning,
        ends=frozenset(ends if isinstance(ends, list) else [ends]),
        description=f"{path}, {fields['model_type']}:"
        f" {short(price.parameters_total, 'kMBT')} parameters,"
        f" {short(price.parameters_active, 'kMBT')} active a token",
        data=None,
    )


KINDS = [
    Kind("a run of train.py (config.json and checkpoints/)", is_run, open_run),
    Kind("a model of moejax import (config.json and model/)", imported.is_imported, open_imported),
    Kind(
        "a checkpoint of Hugging Face (config.json with model_type, safetensors)",
        is_checkpoint,
        open_checkpoint,
    ),
]
