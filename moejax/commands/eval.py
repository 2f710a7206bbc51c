"""`moejax eval`: how well a trained model does on any text, or on held-out images."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from moejax.commands.model_settings import (
    TextSettings,
    check_batch,
    open_any_model,
    open_settings_text,
)
from moejax.config.attention import check_length
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
from moejax.data.route_files import Recording, read_recording
from moejax.data.routes import lay_recording
from moejax.inference.inference_config import inference_config
from moejax.inference.open_model import OpenModel
from moejax.lab.evaluation import describe_figures, evaluate_model
from moejax.lab.replayed import compare_with_own, describe_replay
from moejax.models.replay import check_replays
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
    candidates: int | None = None
    """With --capacity-factor: a token competes for slots of so many of its best experts, by score,
    and takes the K best that have room (capacity-aware inference)."""
    routes: Path | None = None
    """What `moejax generate --record-routes` wrote: evaluate on its texts, with its routes in the
    place of the routers' own choices, and say how far these agree."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("", self, "batches", "capacity_factor", "candidates")
        check(
            self.seating is None or self.capacity_factor is not None,
            "--seating says who gets a slot where there are too few: give --capacity-factor, too.",
        )
        check(
            self.candidates is None or self.capacity_factor is not None,
            "--candidates have room or not where slots are few: give --capacity-factor, too.",
        )
        check(
            self.routes is None or self.data is None,
            f"--data {self.data}: --routes {self.routes} has the texts; leave --data out.",
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
        changes["eval_candidates"] = self.candidates or moe.eval_candidates
        return changed(config, {"moe": changes})


def evaluate(settings: EvalSettings) -> None:
    """Evaluate and print the figures."""
    recording = None if settings.routes is None else read_recording(settings.routes)
    model, mesh = open_any_model(settings)
    language = model.config.material.language
    length = settings.length(model) if language else model.context
    config, rows = settings.apply_to(model.config), settings.batch_size or model.rows
    if recording is not None:
        length, rows = fit_recording(settings, config, recording, mesh)
    check_batch(config, length, rows, mesh)
    started = time.monotonic()
    lost = LostText()
    if recording is not None:
        batches, about = batch_recording(settings, model, config, recording, length, rows)
    elif language:
        batches, about = batch_text(settings, model, length, rows, lost, settings.batches)
    else:
        batches, about = batch_images(settings, model, rows)
    figures = {
        "model": model.description,
        "data": about,
        **({"sequence_length": length} if language else {}),
        **evaluate_model(model, config, mesh, batches, lost),
        **({} if recording is None else compare_with_own(model, config, mesh, batches)),
        "seconds": time.monotonic() - started,
    }
    text = json.dumps(null_not_finite(figures), indent=2)
    if not settings.json:
        lines = [] if recording is None else [describe_replay(figures, config)]
        text = "\n".join([describe_figures(figures, config), *lines])
    print(text, flush=True)


def fit_recording(
    settings: EvalSettings, config: ModelConfig, recording: Recording, mesh: Mesh
) -> tuple[int, int]:
    """Positions of a row, which has one text, and rows of a batch: by default as many as the
    recording needs. Raises ``ConfigError`` for a model that has no routes, or reads no such text.
    """
    check_replays(config)
    group = config.moe.group_size
    longest = max(len(ids) for ids in recording.tokens) - 1
    length = settings.sequence_length or -(-max(longest, 1) // group) * group
    check_length(config.attention, length, f"the longest text of --routes {settings.routes}")
    devices = mesh.shape["data"] * mesh.shape["expert"]
    unit = devices * max(1, group // length)
    rows = min(OpenModel.rows, len(recording.tokens))
    return length, settings.batch_size or -(-rows // unit) * unit


def batch_recording(
    settings: EvalSettings,
    model: OpenModel,
    config: ModelConfig,
    recording: Recording,
    length: int,
    rows: int,
) -> tuple[list[Batch], str]:
    """The batches of a recording, and one line about them."""
    assert model.tokenizer is not None  # as in every language model that is opened here
    texts, file = len(recording.tokens), settings.routes
    for ids in recording.tokens:
        check_known(ids, model.vocab_size, model.tokenizer)
    batches = lay_recording(config, recording, model.tokenizer, length, rows)[: settings.batches]
    about = f"{file}: {texts} text{'s' * (texts != 1)} with recorded routes"
    by = recording.settings.get("model")
    return batches, about + (f", of {by}" if by else "")


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
    own = model.data if settings.data is None else None
    read = validation_batches(
        documents,
        model.tokenizer,
        replace(own or DataConfig(), sequence_length=length),
        batch_size=rows,
        limit=limit,
        lost=lost,
    )
    batches = list(read)
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
