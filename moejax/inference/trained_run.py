"""The model of a run, from one of its checkpoints."""

import warnings
from dataclasses import replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.config import Config
from moejax.config.errors import ConfigError, RunError
from moejax.config.files import read_config_json
from moejax.config.json_files import MOST_TABLE_BYTES, read_json
from moejax.config.mesh import MeshConfig
from moejax.config.model import FloatType
from moejax.data.tokenizer import Tokenizer, choose_vocab_size, load_tokenizer
from moejax.inference.inference_config import check_layout
from moejax.inference.kept_files import adopt_edges, find_base, find_text, find_tokenizer
from moejax.inference.open_model import Base, OpenModel
from moejax.models.adapters import adapter_shapes, find_weights
from moejax.models.by_kind import state_shapes
from moejax.models.counts import cost
from moejax.models.used_types import cast_shapes
from moejax.moe.quantise_params import Weights, check_spread, quantise_shapes
from moejax.runs.checkpoint import read_parts
from moejax.runs.history import KEY, explain_settings
from moejax.runs.same_model import BASE
from moejax.runtime import partition
from moejax.runtime.number_words import short
from moejax.runtime.room import ROOM, check_room, count_bytes


def is_run(path: Path) -> bool:
    """Whether ``path`` is the directory of a run."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def open_run(
    path: Path,
    mesh: Mesh,
    layout: MeshConfig,
    dtype: FloatType | None,
    step: int | None,
    weights: Weights | None = None,
) -> OpenModel:
    """The model of a run, from its last checkpoint that can be read."""
    config, tokenizer = read_settings(path)
    check(
        weights is None or config.model.material.language,
        f"{weights and weights.words}: {path} is a classifier of images, and only language models"
        f" are quantised.",
    )
    model_config = config.model if dtype is None else replace(config.model, dtype=dtype)
    check_layout(model_config, layout, mesh)
    V = choose_vocab_size(model_config, tokenizer) if tokenizer else count_classes(path)
    like = cast_shapes(state_shapes(replace(config, mesh=MeshConfig()), V), model_config)
    lora = config.run.lora
    if lora.rank is None:
        like["params"] = quantise_shapes(like["params"], weights)
    else:
        like["params"] = adapter_shapes(like["params"], lora)
    like = partition.set_shardings(like, partition.tree_shardings(mesh, like, layout.fsdp))
    check_spread(like, layout)
    check_room(count_bytes(jax.tree.leaves(like)), f"{path}", ROOM)
    step, parts, extra = read_parts(path / "checkpoints", like, step)
    if noted := extra.get(KEY):
        for words in explain_settings(path, step, noted):
            warnings.warn(f"{path}: {words}.", stacklevel=2)
    trained_with = extra["place"]["layout"].get("tokenizer")
    if tokenizer and trained_with != tokenizer.fingerprint:
        raise RunError(
            f"{path} was trained with another tokenizer than the one that is now at"
            f" {find_tokenizer(path, config)} ({trained_with}, not {tokenizer.fingerprint}): put"
            f" the old one back there."
        )
    price, data = cost(config.model, V, config.positions), find_text(path, config.data)
    return OpenModel(
        config=replace(model_config, vocab_size=V) if tokenizer else model_config,
        layout=layout,
        vocab_size=V,
        params=parts["params"],
        bias_LE=parts.get("bias_LE"),
        tokenizer=tokenizer,
        context=config.positions,
        beginning=tokenizer.edges.before_document if tokenizer else (),
        ends=tokenizer.edges.ends if tokenizer else frozenset(),
        description=f"{path}, step {step:,}: {short(price.parameters_total, 'kMBT')} parameters,"
        f" {short(price.parameters_active, 'kMBT')} active a token",
        data=data,
        chat_template=data.used_template,
        rows=OpenModel.rows if tokenizer else config.data.eval_batch_size,
        base=None if lora.rank is None else describe_base(path, config, extra[BASE]),
    )


def describe_base(path: Path, config: Config, digest: str | None) -> Base:
    """The model that the adapters of a run belong to."""
    lora = config.run.lora
    return Base(find_base(path, config), digest, lora.scale, find_weights(lora))


def count_classes(path: Path) -> int:
    """The number of classes of a run on images."""
    try:
        return len(read_json(path / "summary.json", MOST_TABLE_BYTES)["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path / 'summary.json'} does not say what the classes of the images are: {error}."
        ) from error


def read_settings(path: Path) -> tuple[Config, Tokenizer | None]:
    """The settings and the tokenizer of a run; a classifier of images has no tokenizer. Raises
    ``RunError`` that says which of them is missing.
    """
    try:
        config = read_config_json(path / "config.json")
    except ConfigError as error:
        raise RunError(str(error)) from error
    if not config.model.material.language:
        return config, None
    try:
        return config, adopt_edges(load_tokenizer(find_tokenizer(path, config)), path)
    except ConfigError as error:
        raise RunError(
            f"the tokenizer that {path} was trained with is missing: {error} Or copy it to"
            f" {path / 'tokenizer' / 'tokenizer.json'}."
        ) from error
