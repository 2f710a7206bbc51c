"""What a model reads: text or images. What depends on it is asked of one description of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moejax.config.measure import BITS_PER_BYTE, ERROR_RATE, Measure


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the rows of a batch are, and what a model makes of them."""

    measure: Measure
    """What a model is judged by."""
    language: bool
    """Whether its models are language models: a tokenizer makes their inputs, they generate text,
    and they may begin from released models."""
    classes: bool
    """Whether a row has one target, its class; else each position has one."""
    row: str
    """What a row of a batch is."""
    whole_row: str
    """The positions of a row, in a message."""
    batch: str
    """What is printed about the rows of a batch, after its tokens."""
    count_positions: Callable[[Any], int]
    """Tokens in a row of a batch (N), of a ``Config``."""
    sources: tuple[str, ...]
    """The values of ``--data.source`` that have it."""
    other_source: str
    """The message about another source."""

    @property
    def name(self) -> str:
        """What it is."""
        return self.measure.material


TEXT = Material(
    measure=BITS_PER_BYTE,
    language=True,
    classes=False,
    row="sequence",
    whole_row="--data.sequence-length",
    batch="",
    count_positions=lambda config: config.data.sequence_length,
    sources=("stdlib", "files", "tfds"),
    other_source="--data.source {source} are images: they go with --model.kind mlp or vit.",
)
IMAGES = Material(
    measure=ERROR_RATE,
    language=False,
    classes=True,
    row="image",
    whole_row="the tokens of an image,",
    batch=" of {:,} images",
    count_positions=lambda config: config.model.image_tokens,
    sources=("digits", "tfds"),
    other_source="--model.kind {kind} sees images, but --data.source {source} is text: take digits,"
    " or tfds with the name of a data set of images, such as --data.tfds-name mnist.",
)


def find_material(kind: str | None) -> Material:
    """What a model of this ``ModelConfig.kind`` reads; runs written before there were kinds read
    text.
    """
    return TEXT if kind in (None, "decoder") else IMAGES


def read_material(settings: dict[str, Any]) -> Material:
    """What the model of a run with this ``config.json`` reads; the file may be damaged."""
    model = settings.get("model")
    return find_material(model.get("kind") if isinstance(model, dict) else None)
