"""From labelled images to batches, by Grain.

A batch is a dict of

``images``    uint8 [B, height, width, channels]
``targets``   the class, int32 [B, 1]
``segments``  1 for an image, 0 for padding, int32 [B, 1]
"""

from collections.abc import Callable

import grain
import numpy as np

from moejax.config.data import DataConfig
from moejax.config.images import ImageDataConfig
from moejax.data.batches import (
    Batch,
    TrainBatches,
    pad_batch,
    prefetch,
    read_in_order,
    split_rows_by_stream,
)
from moejax.data.images import LabelledImages


def image_train_batches(
    source: LabelledImages,
    config: DataConfig,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
) -> TrainBatches:
    """Training batches of ``batch_size`` images, without end; of each, the ``rows`` (indices,
    ascending) of one process, by default all.

    Every epoch has another order, and changes each image anew. ``config.shards`` streams give a
    part of every batch each, as with text. Raises ``ConfigError`` if there are fewer images than
    streams.
    """
    own_rows = split_rows_by_stream(len(source), config.shards, batch_size, rows)
    settings, part = config.images, batch_size // config.shards
    layout = {
        "shards": config.shards,
        "batch_size": batch_size,
        "seed": config.seed,
        "shift": settings.shift,
        "flip": settings.flip,
        "images": len(source),
    }
    streams = {number: _open_stream(source, config, number, part) for number in own_rows}
    return TrainBatches(streams, own_rows, layout)


def _open_stream(
    source: LabelledImages, config: DataConfig, number: int, rows: int
) -> grain.IterDataset:
    """One stream of the training images, ``rows`` at a time."""
    images = grain.MapDataset.source(source)[number :: config.shards]
    images = images.shuffle(config.seed).repeat()
    images = images.random_map(make_augmentation(config.images), seed=config.seed)
    batches = read_in_order(images).batch(rows, drop_remainder=True).map(_make_batch)
    return prefetch(batches, config.prefetch)


def make_augmentation(settings: ImageDataConfig) -> Callable:
    """``(image and class, random numbers) -> image and class``, as training shows them."""

    def change(example: tuple[np.ndarray, int], rng: np.random.Generator) -> tuple[np.ndarray, int]:
        image, label = example
        if settings.shift:
            image = shift_image(image, *rng.integers(-settings.shift, settings.shift + 1, 2))
        if settings.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return image, label

    return change


def shift_image(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The image [height, width, channels] moved by so many pixels; pixels from outside are 0."""
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    to_rows, to_columns = _find_overlap(height, down), _find_overlap(width, right)
    moved[to_rows, to_columns] = image[_find_overlap(height, -down), _find_overlap(width, -right)]
    return moved


def _find_overlap(size: int, by: int) -> slice:
    """What is still inside of a range of this size after it is moved."""
    return slice(max(0, by), max(0, size + min(0, by)))


def _make_batch(stacked: tuple[np.ndarray, np.ndarray]) -> Batch:
    images, labels = stacked
    targets = np.asarray(labels, np.int32)[:, None]
    return {"images": images, "targets": targets, "segments": np.ones_like(targets)}


def image_validation_batches(
    source: LabelledImages,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
    limit: int | None = None,
) -> list[Batch]:
    """The held-out images in order, in batches of ``batch_size``; of each, the ``rows`` (indices)
    of one process, by default all. The last batch is filled up with padding. ``limit`` keeps the
    first so many batches.
    """
    starts = range(0, len(source), batch_size)[:limit]
    own = slice(None) if rows is None else rows
    found = []
    for start in starts:
        examples = [source[i] for i in range(start, min(start + batch_size, len(source)))]
        images, labels = zip(*examples, strict=True)
        batch = pad_batch(_make_batch((np.stack(images), labels)), batch_size)
        found.append({name: x[own] for name, x in batch.items()})
    return found
