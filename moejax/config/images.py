"""Settings of image classifiers and of their data."""

from dataclasses import dataclass

from moejax.config.checks import check, check_not_negative, check_sizes, check_types


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """The images that a classifier (`--model.kind vit` or `mlp`) sees."""

    size: int = 28
    """Height and width, in pixels."""
    channels: int = 1
    """Numbers in a pixel: 1 is grey, 3 is colour."""
    patch_size: int = 7
    """Height and width of a patch, which is a token of the vision transformer, in pixels."""

    def __post_init__(self) -> None:
        at = "model.image"
        check_types(at, self)
        check_sizes(at, self, "size", "channels", "patch_size")


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig:
    """Labelled images, and how they are changed in training."""

    image_field: str = "image"
    """The feature of the TFDS data set that holds the image."""
    label_field: str = "label"
    """The feature of the TFDS data set that holds the class."""
    shift: int = 0
    """In training, move each image by up to so many pixels in both directions, anew each time."""
    flip: bool = False
    """In training, mirror every second image, left to right."""

    def __post_init__(self) -> None:
        at = "data.images"
        check_types(at, self)
        check_not_negative(at, self, "shift")
        check(bool(self.image_field), "--data.images.image-field is empty: image, say.")
