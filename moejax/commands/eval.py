"""`moejax eval`: how well a trained model does on any text, or on held-out images."""

import json
import time
from dataclasses import dataclass
from typing import Any, Literal

from moejax.commands.model_settings import (
    TextSettings,
    check_batch,
    open_any_model,
    open_settings_text,
)
from moejax.config.change import changed
from moejax.config.checks import check, check_positive
from moejax.config.data import DataConfig
from moejax.config.model import ModelConfig
from moejax.data.batches import Batch
from moejax.data.check_tokens import check_known
from moejax.data.image_batches import image_validation_batches
from moejax.data.images import open_images
from moejax.data.lost_text import LostText
from moejax.data.pipeline import validation_batches
from moejax.inference.inference_config import inference_config
from moejax.inference.open_model import OpenModel
from moejax.lab.evaluation import describe_figures, evaluate_model
from moejax.runs.metric_lines import null_not_finite


@dataclass(frozen=True, kw_only=True)
class EvalSettings(TextSettings):
    """The settings of `moejax eval`."""

    batches: int | None = None
    """Evaluate so many batches only."""
    capacity_factor: float | None = None
    """Slots of an expert in a group, over its fair share; by default nothing is dropped."""
    seating: Literal["position", "priority"] | None = None
    """With --capacity-factor: who gets a slot; by default as in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("", self, "batches", "capacity_factor")
        check(
            self.seating is None or self.capacity_factor is not None,
            "--seating says who gets a slot where there are too few: give --capacity-factor, too.",
        )

    def apply_to(self, config: ModelConfig) -> ModelConfig:
        """The model as it is to be evaluated."""
        if self.capacity_factor is None:
            return inference_config(config)
        router, moe = config.moe.built_router, config.moe
        check(
            not router.experts_choose and not router.slots,
            f"--capacity-factor limits the tokens' choices, but with --model.moe.router"
            f" {moe.router} tokens do not choose: leave it out.",
        )
        config = inference_config(config)
        changes: dict[str, Any]
        changes = {"eval_capacity_factor": self.capacity_factor, "group_size": moe.group_size}
        changes["seating"] = self.seating or moe.seating
        return changed(config, {"moe": changes})


def evaluate(settings: EvalSettings) -> None:
    """Evaluate and print the figures."""
    model, mesh = open_any_model(settings)
    language = model.config.material.language
    length = settings.length(model) if language else model.context
    config, rows = settings.apply_to(model.config), settings.batch_size or model.rows
    check_batch(config, length, rows, mesh)
    started = time.monotonic()
    lost = LostText()
    if language:
        batches, about = batch_text(settings, model, length, rows, lost, settings.batches)
    else:
        batches, about = batch_images(settings, model, rows)
    figures = {
        "model": model.description,
        "data": about,
        **({"sequence_length": length} if language else {}),
        **evaluate_model(model, config, mesh, batches, lost),
        "seconds": time.monotonic() - started,
    }
    text = json.dumps(null_not_finite(figures), indent=2)
    print(text if settings.json else describe_figures(figures, config), flush=True)


def batch_text(
    settings: TextSettings,
    model: OpenModel,
    length: int,
    rows: int,
    lost: LostText,
    limit: int | None,
) -> tuple[list[Batch], str]:
    """At most ``limit`` batches of text to run a model on, and one line about them. ``lost`` counts
    what they lack of the text.
    """
    documents, about = open_settings_text(settings, model)
    assert model.tokenizer is not None  # as in every language model that is opened here
    batches = validation_batches(
        documents,
        model.tokenizer,
        DataConfig(sequence_length=length),
        batch_size=rows,
        limit=limit,
        lost=lost,
    )
    for batch in batches:
        for name in ("inputs", "targets"):
            check_known(batch[name], model.vocab_size, model.tokenizer)
    return batches, about


def batch_images(settings: EvalSettings, model: OpenModel, rows: int) -> tuple[list[Batch], str]:
    """The batches of images to evaluate on, and one line about them."""
    check(
        settings.data is None and settings.sequence_length is None,
        f"{settings.path} sees images, and is evaluated on those that were held out: leave out"
        f" --data and --sequence-length.",
    )
    assert model.data is not None  # a model of images is one of a run
    found = open_images(model.data)
    source, limit = found.validation, settings.batches
    return image_validation_batches(source, batch_size=rows, limit=limit), found.description
