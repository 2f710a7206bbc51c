"""Released models: as `moejax import` keeps them, and as Hugging Face does."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from moejax.config.errors import CheckpointError
from moejax.config.files import read_config_json
from moejax.config.mesh import MeshConfig
from moejax.config.model import FloatType, ModelConfig
from moejax.data.tokenizer import load_tokenizer
from moejax.hf.configs import with_defaults
from moejax.hf.reading import array_shapes, load
from moejax.inference import imported
from moejax.inference.inference_config import check_layout, inference_config
from moejax.inference.open_model import OpenModel, check_no_step
from moejax.models.counts import cost
from moejax.moe.quantise_params import Weights
from moejax.runs.checksums import find_damage
from moejax.runtime import device_fit
from moejax.runtime.number_words import short


def open_imported(
    path: Path,
    mesh: Mesh,
    layout: MeshConfig,
    dtype: FloatType | None,
    step: int | None,
    weights: Weights | None = None,
) -> OpenModel:
    """A model that `moejax import` or `moejax upcycle` wrote."""
    check_no_step(path, step)
    if damage := find_damage(path):  # somebody may have meant it
        warnings.warn(f"{path}: {damage}.", stacklevel=2)
    config = read_config_json(path / "config.json").model
    check_layout(config, layout, mesh)
    shapes = array_shapes(inference_config(config))  # as groups may be larger than what it traces
    params, bias_LE = imported.read_weights(path, shapes, mesh, layout, dtype, weights)
    config = config if dtype is None else replace(config, dtype=dtype)
    fields = imported.read_original(path)
    if fields is None:
        raise CheckpointError(
            f"{path / imported.ORIGINAL} is missing, which `moejax import` wrote: import the model"
            f" again."
        )
    return describe_released(path, config, params, bias_LE, layout, fields)


def open_checkpoint(
    path: Path,
    mesh: Mesh,
    layout: MeshConfig,
    dtype: FloatType | None,
    step: int | None,
    weights: Weights | None = None,
) -> OpenModel:
    """A checkpoint in Hugging Face's format, as it is."""
    check_no_step(path, step)
    model = load(path, dtype or "auto", mesh=mesh, layout=layout, weights=weights)
    device_fit.check_fsdp(model.config, layout, mesh)
    return describe_released(path, model.config, model.params, model.bias_LE, layout, model.hf)


def describe_released(
    path: Path,
    config: ModelConfig,
    params: dict,
    bias_LE: jax.Array | None,
    layout: MeshConfig,
    fields: dict[str, Any],
) -> OpenModel:
    """A released model, with the tokens that begin and end texts. ``fields``: its config.json."""
    has_tokenizer = (path / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(str(path)) if has_tokenizer else None
    assert config.vocab_size is not None  # as in every config.json of a model
    context = with_defaults(fields)["max_position_embeddings"] or 2048
    price = cost(config, config.vocab_size, sequence_length=1)
    return OpenModel(
        config=config,
        layout=layout,
        vocab_size=config.vocab_size,
        params=params,
        bias_LE=bias_LE,
        tokenizer=tokenizer,
        context=min(context, config.attention.longest or context),
        beginning=tokenizer.edges.before_text if tokenizer else (),
        ends=tokenizer.edges.ends if tokenizer else frozenset(),
        description=f"{path}, {fields['model_type']}:"
        f" {short(price.parameters_total, 'kMBT')} parameters,"
        f" {short(price.parameters_active, 'kMBT')} active a token",
        data=None,
    )
