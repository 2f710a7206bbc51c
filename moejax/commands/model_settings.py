"""Which model a command runs, on which text: the settings of generate, eval and specialisation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from jax.sharding import Mesh

from moejax.commands.mesh_needs import NOT_TRAINED
from moejax.config.attention import check_length
from moejax.config.checks import check, check_sizes
from moejax.config.errors import ConfigError
from moejax.config.files import load_config_file
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.config.need import Need
from moejax.data.documents import Documents
from moejax.data.kinds.table import has_fields, is_prepared
from moejax.data.mixed_corpus import open_corpus
from moejax.data.sources import open_text
from moejax.inference.open_model import OpenModel
from moejax.inference.opening import open_model
from moejax.moe.quantise_params import Weights
from moejax.moe.quantised import Kind
from moejax.runtime import device_mesh
from moejax.runtime.allocator import keep_freed_memory, return_freed_memory

LONGEST = 2048
"""Positions of a piece of text, where nobody says."""

GroupFlag = int | Literal["channel"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, and how it is run."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    """The directory of a run, of an imported model, or of a checkpoint of Hugging Face."""
    config: Path | None = None
    """A Python file that is run first: the config of the run, if it has a router of its own."""
    step: int | None = None
    """The checkpoint; by default the last."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of activations and matrix products; by default that of training."""
    weights: Kind | None = None
    """Quantise a language model as it is read: its matrices, with those of experts, take 8 or 4
    bits a number, the embedding 8; routers, norms and biases stay. Products are in --dtype."""
    group: GroupFlag | None = None
    """With --weights: how many numbers that are summed together share a scale; `channel`: all of
    them. By default 32 for int4, where that divides them, and else all."""
    json: bool = False
    """Print one JSON object."""
    mesh: tyro.conf.FlagConversionOff[MeshConfig] = field(default_factory=MeshConfig)

    NEEDS: ClassVar[tuple[Need, ...]] = (
        NOT_TRAINED,
        Need(
            ("group",),
            lambda s: s.weights is not None,
            "--weights int8, int4 or fp8",
            "give that, too",
            says="has no effect without",
        ),
    )

    @property
    def quantised(self) -> Weights | None:
        """What --weights and --group ask for."""
        return None if self.weights is None else Weights(kind=self.weights, group=self.group)


@dataclass(frozen=True, kw_only=True)
class TextSettings(ModelSettings):
    """Which model is run on which text, and how the text is cut."""

    NEEDS: ClassVar[tuple[Need, ...]] = (
        *ModelSettings.NEEDS,
        Need(
            ("split",),
            lambda s: s.data is not None and s.data.startswith("tfds:"),
            "--data tfds:NAME",
            "give that, too",
            says="has no effect without",
        ),
        Need(
            ("text_field",),
            lambda s: s.data is not None and has_fields(s.data),
            "--data tfds:NAME, or files of JSON or a table",
            "give one of these, too",
            says="has no effect without",
        ),
        Need(
            ("data_directory",),
            lambda s: s.data is not None and (s.data == "stdlib" or is_prepared(s.data)),
            "--data tfds:NAME or stdlib, or compressed files, JSON or a table",
            "give one of these, too",
            says="has no effect without",
        ),
    )

    data: str | None = None
    """The text: `stdlib`, the held-out part of the standard library; a file, a folder or a quoted
    glob, of any format that --data.train reads; or `tfds:NAME`. By default what was held out when
    the model was trained."""
    split: str = "validation"
    """The split of `tfds:NAME`, in TFDS's notation (`test[:1%]`)."""
    text_field: str = "text"
    """Where a document has its text: the field of JSON, the column of a table, the feature of
    `tfds:NAME`."""
    data_directory: str | None = None
    """Where prepared data sets are kept; by default TFDS's own place, `~/tensorflow_datasets`, and
    `~/.cache/moejax` for what is made of compressed files and tables."""
    sequence_length: int | None = None
    """Positions of the pieces that the text is cut into, each read by itself; by default as many as
    the model was trained on, and at most 2,048."""
    batch_size: int | None = None
    """Sequences in a batch, over all devices; by default 64. Of images, as many as in training."""

    def __post_init__(self) -> None:
        check_sizes("", self, "sequence_length", "batch_size")

    def length(self, model: OpenModel) -> int:
        """Positions of a piece of text."""
        length = self.sequence_length or min(model.context, LONGEST)
        check_length(model.config.attention, length, f"--sequence-length {length}")
        return length


def open_language_model(settings: ModelSettings) -> tuple[OpenModel, Mesh]:
    """A language model, and the mesh that it lies on."""
    model, mesh = open_any_model(settings)
    check(
        model.config.material.language,
        f"{settings.path} is a classifier of images: `moejax eval` evaluates it; what is about text"
        f" needs a language model.",
    )
    return model, mesh


def open_any_model(settings: ModelSettings) -> tuple[OpenModel, Mesh]:
    """The model, and the mesh that it lies on."""
    if settings.config is not None:
        load_config_file(settings.config)
    check(
        settings.mesh.context == 1,
        f"--mesh.context {settings.mesh.context} splits sequences in training alone: leave it out,"
        f" and spread whole ones over --mesh.data.",
    )
    mesh = device_mesh.make_mesh(settings.mesh)
    layout, path = settings.mesh, settings.path
    model = open_model(
        path,
        mesh=mesh,
        layout=layout,
        dtype=settings.dtype,
        step=settings.step,
        weights=settings.quantised,
    )
    return_freed_memory()  # of the parts that were read; from here on all is used again
    keep_freed_memory()
    check(
        model.tokenizer is not None or not model.config.material.language,
        f"there is no tokenizer.json in {path}: put that of the model there.",
    )
    return model, mesh


def open_settings_text(settings: TextSettings, model: OpenModel) -> tuple[Documents, str]:
    """The documents to run the model on, and one line about them."""
    if settings.data is not None:
        return open_text(
            settings.data,
            split=settings.split,
            field=settings.text_field,
            directory=settings.data_directory,
            tokenizer=model.tokenizer,
        )
    if model.data is None:
        raise ConfigError("--data is missing: the text to evaluate on, such as stdlib.")
    corpus = open_corpus(model.data, model.tokenizer)
    return corpus.validation, corpus.description


def check_batch(config: ModelConfig, length: int, rows: int, mesh: Mesh) -> None:
    """Batches must be spread evenly, in whole groups where groups mean something."""
    group = config.moe.group_size if any(config.routed_layers) else 1
    check(
        length % group == 0 or group % length == 0,
        f"--sequence-length {length} must divide the {group} tokens of a routing group, or be a"
        f" multiple of them: with --model.moe.router {config.moe.router} they belong together.",
    )
    devices = mesh.shape["data"] * mesh.shape["expert"]
    unit = devices * max(1, group // length)
    check(
        rows % unit == 0,
        f"--batch-size {rows} cannot be spread over data x expert = {devices} devices: make it a"
        f" multiple of {unit}.",
    )
