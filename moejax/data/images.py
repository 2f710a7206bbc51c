"""Where labelled images come from: scikit-learn's handwritten digits, or a TFDS data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from moejax.config.checks import check
from moejax.config.data import DataConfig
from moejax.config.errors import ConfigError
from moejax.config.model import ModelConfig
from moejax.data.fingerprint import Mark, mark_documents

HELD_OUT_DIGITS = 360
"""How many of the 1,797 images are held out: always the same ones."""


class LabelledImages(Protocol):
    """Random access to pairs of an image, uint8 [height, width, channels], and its class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]: ...


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The images to train on and those held out."""

    train: LabelledImages
    validation: LabelledImages
    classes: tuple[str, ...]
    """What each class is called."""
    shape: tuple[int, int, int]
    """Height, width and channels of every image."""
    description: str
    """One line: what it is and how large."""


class InMemory(Sequence):
    """Images that are already arrays."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(  # type: ignore[override] # nobody asks for a slice
        self, index: int
    ) -> tuple[np.ndarray, int]:
        return self._images[index], int(self._labels[index])


def open_images(config: DataConfig) -> ImageSet:
    """The images that ``config.source`` names, prepared first if TFDS has to.

    Raises ``ConfigError`` if they cannot be had.
    """
    if config.source == "digits":
        return _open_digits()
    from moejax.data.tfds_source import open_tfds_images

    train, validation, classes, shape = open_tfds_images(config)
    return ImageSet(
        train=train,
        validation=validation,
        classes=classes,
        shape=shape,
        description=f"TFDS {config.tfds_name}: {_describe_sides(train, validation)}",
    )


@dataclass(frozen=True)
class ImageBytes:
    """Images and their classes as documents, for a fingerprint."""

    images: LabelledImages

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> bytes:
        image, label = self.images[index]
        return repr((image.shape, label)).encode() + image.tobytes()


def mark_images(images: ImageSet) -> list[Mark]:
    """The fingerprint of images and their classes."""
    sides = ("those to train on", images.train), ("those held out", images.validation)
    return [mark for side, of in sides for mark in mark_documents(side, ImageBytes(of), "image")]


def _open_digits() -> ImageSet:
    """Images of Alpaydin and Kaynak (1998): 8 x 8 pixels, 17 shades of grey."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "--data.source digits needs scikit-learn: pip install -e '.[images]'"
        ) from error
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    held_out, kept = np.sort(order[:HELD_OUT_DIGITS]), np.sort(order[HELD_OUT_DIGITS:])
    train, validation = (InMemory(images[at], found.target[at]) for at in (kept, held_out))
    return ImageSet(
        train=train,
        validation=validation,
        classes=tuple(map(str, found.target_names)),
        shape=images.shape[1:],
        description=f"scikit-learn's digits: {_describe_sides(train, validation)}",
    )


def _describe_sides(train: LabelledImages, validation: LabelledImages) -> str:
    return f"{len(train):,} images to train on, {len(validation):,} held out"


def check_images(images: ImageSet, model: ModelConfig) -> None:
    """Check that a model fits the images. Raises ``ConfigError``."""
    wanted, (height, width, channels) = model.image, images.shape
    check(
        height == width,
        f"the images are {height} x {width} pixels, but a model sees square ones.",
    )
    check(
        (wanted.size, wanted.channels) == (height, channels),
        f"--model.image.size {wanted.size} and --model.image.channels {wanted.channels} do not fit"
        f" the images, which are {height} x {width} pixels of {channels}: set them to {height} and"
        f" {channels}.",
    )
    check(
        model.vocab_size in (None, len(images.classes)),
        f"--model.vocab-size {model.vocab_size} is not the number of classes,"
        f" {len(images.classes)}: leave it out.",
    )
