"""`moejax report BEFORE AFTER`: what training on has done to the routing of a model."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro
from jax.sharding import Mesh

from moejax.commands.model_settings import (
    TextSettings,
    check_batch,
    open_language_model,
    open_settings_text,
)
from moejax.config.checks import check, check_positive, check_sizes
from moejax.config.errors import UserError
from moejax.config.files import load_config_file, read_config_json
from moejax.config.mesh import MeshConfig
from moejax.inference.inference_config import inference_config
from moejax.inference.kept_files import find_base, find_text
from moejax.inference.open_model import OpenModel
from moejax.inference.opening import is_model_alone
from moejax.inference.peek import peek_config, peek_tokenizer
from moejax.inference.trained_run import is_run, read_settings
from moejax.lab.routing_change.change import Change
from moejax.lab.routing_change.run_both import (
    check_alike,
    check_long_enough,
    check_same_tokens,
    collect,
    find_change,
)
from moejax.lab.specialisation.sample import Sample, check_tokens, draw_sample

TEXT_FLAGS = ("data", "split", "text_field", "data_directory", "sequence_length", "dtype")


@dataclass(frozen=True, kw_only=True)
class RoutingSettings:
    """On which text the routing of two models is compared, and how they are run."""

    data: str | None = None
    """With BEFORE and AFTER: the text, as for `moejax specialisation`; by default what was held out
    when AFTER was trained, or else BEFORE."""
    split: str = "validation"
    """The split of `tfds:NAME`, in TFDS's notation (`test[:1%]`)."""
    text_field: str = "text"
    """Where a document has its text: the field of JSON, the column of a table, the feature of
    `tfds:NAME`."""
    data_directory: str | None = None
    """Where prepared data sets are kept, as for `moejax eval`."""
    sequence_length: int | None = None
    """Positions of the pieces that the text is cut into; by default as many as AFTER was trained
    on, and at most 2,048."""
    batch_size: int = 16
    """Sequences in a batch, over all devices."""
    tokens: int = 65_536
    """Tokens to look at, spread evenly over all documents."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of activations and matrix products; by default that of training."""
    config: Path | None = None
    """A Python file that is run first: the config of the run, if it has a router of its own."""
    mesh: tyro.conf.FlagConversionOff[MeshConfig] = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        check_positive("", self, "tokens")
        check_sizes("", self, "sequence_length", "batch_size")
        check_tokens(self.tokens)

    def of_model(self, path: Path) -> TextSettings:
        """The same for one of the models."""
        given = {name: getattr(self, name) for name in (*TEXT_FLAGS, "batch_size", "mesh")}
        return TextSettings(path=path, **given)


def is_before_and_after(before: Path, after: Path) -> bool:
    """Whether these are two models to be compared by their routing: the second began from the
    first, or one of them is no run, so that it has no metrics.
    """
    return is_model_alone(before) or is_model_alone(after) or began_from(after, before)


def began_from(after: Path, before: Path) -> bool:
    """Whether a run's ``run.init_from`` is the other directory."""
    if not is_run(after):
        return False
    try:
        config = read_config_json(after / "config.json")
    except (UserError, OSError):
        return False
    if config.run.init_from is None:
        return False
    return find_base(after, config).resolve() == before.resolve()


def compare_routing(settings: RoutingSettings, before: Path, after: Path) -> Change:
    """What two models choose on the same text. The weights of one are there at a time. Raises
    ``UserError`` for models that do not compare, as far as can be before any weight is read.
    """
    if settings.config is not None:
        load_config_file(settings.config)
    check_before_reading(before, after)
    one = settings.of_model(after)
    model, mesh = open_language_model(one)
    sample, data = draw_text(settings, one, model, mesh, before)
    descriptions, config = [model.description], model.config
    choices = [collect(model, mesh, sample, settings.batch_size)]
    tokenizer = model.tokenizer
    del model
    model, mesh = open_language_model(settings.of_model(before))
    check_alike((str(before), model.config), (str(after), config))
    assert tokenizer is not None and model.tokenizer is not None  # as in every language model
    check_same_tokens((str(before), model.tokenizer), (str(after), tokenizer))
    descriptions.insert(0, model.description)
    choices.insert(0, collect(model, mesh, sample, settings.batch_size))
    return find_change(sample, choices, config, descriptions, data)


def check_before_reading(before: Path, after: Path) -> None:
    """Raise ``UserError`` for models that do not compare, as far as their settings tell."""
    for path in (before, after):
        check(path.is_dir(), f"there is no directory {path}: give that of a model.")
    configs = [peek_config(path) for path in (before, after)]
    if configs[0] is not None and configs[1] is not None:
        check_alike((str(before), configs[0]), (str(after), configs[1]))
        tokenizers = [peek_tokenizer(path) for path in (before, after)]
        if tokenizers[0] is not None and tokenizers[1] is not None:
            check_same_tokens((str(before), tokenizers[0]), (str(after), tokenizers[1]))


def draw_text(
    settings: RoutingSettings, one: TextSettings, model: OpenModel, mesh: Mesh, before: Path
) -> tuple[Sample, str]:
    """The sample of the text that both models are run on, and one line about it."""
    config, length = inference_config(model.config), one.length(model)
    check_batch(config, length, settings.batch_size, mesh)
    held_out = one.path
    if settings.data is None and model.data is None and is_run(before):
        held_out = before
        model = replace(model, data=find_text(before, read_settings(before)[0].data))
    documents, about = open_settings_text(one, model)
    if settings.data is None:
        about = f"what was held out when {held_out} was trained: {about}"
    whole = min(config.moe.group_size, length)
    assert model.tokenizer is not None  # as in every language model that is opened here
    sample = draw_sample(documents, model.tokenizer, length, settings.tokens, whole)
    check_long_enough(sample)
    return sample, about
