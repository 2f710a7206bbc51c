"""Data sets of TensorFlow Datasets by name, of text or of labelled images, prepared on first use.

Whatever can go wrong there (an unknown name, no network, TensorFlow missing) ends in a
``ConfigError`` within seconds, where TFDS itself would retry for minutes.
"""

import contextlib
import difflib
import http.client
import importlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming

from moejax.config.checks import check
from moejax.config.data import DataConfig
from moejax.config.errors import ConfigError
from moejax.config.paths import expand_home
from moejax.data.stdlib_corpus import silence_tfds

_PROBE_SECONDS = 5.0
SPLITS = ("tfds_train_split", "tfds_validation_split")
_EMPTY_LOOKED_AT = 1000  # empty documents in a row before a split is called empty


class TextField:
    """One text field of a random-access data source, as bytes. ``path_field`` is the one with the
    path of the file that the text was, if there is such a field.
    """

    def __init__(
        self, examples: Sequence[dict[str, Any]], field: str, path_field: str | None = None
    ) -> None:
        self._examples = examples
        self._field = field
        self._path_field = path_field

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> bytes:
        return self._bytes(index, self._field)

    def path(self, index: int) -> str | None:
        """The path of the file that a document was; None if it was none."""
        if self._path_field is None:
            return None
        return self._bytes(index, self._path_field).decode("utf-8", "replace")

    def _bytes(self, index: int, field: str) -> bytes:
        value = self._examples[index][field]
        return value.encode() if isinstance(value, str) else bytes(value)


class ImageAndLabel:
    """The images of a random-access data source, with their classes."""

    def __init__(self, examples: Sequence[dict[str, Any]], image: str, label: str) -> None:
        self._examples, self._image, self._label = examples, image, label

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        example = self._examples[index]
        return np.asarray(example[self._image], np.uint8), int(example[self._label])


def open_tfds(config: DataConfig) -> tuple[TextField, TextField]:
    """The training and the validation documents of ``config.tfds_name``.

    Raises ``ConfigError`` for an unknown name, field or split, and when the data set is not
    prepared and cannot be.
    """
    builder = _open_prepared(config, _check_text_field)
    found = []
    for setting in SPLITS:
        documents = TextField(_open_split(builder, config, setting), config.tfds_text_field)
        first = range(min(len(documents), _EMPTY_LOOKED_AT))
        at = f"--data.{setting.replace('_', '-')} {getattr(config, setting)}"
        check(any(documents[i] for i in first), f"{at}: its documents are all empty.")
        found.append(documents)
    return found[0], found[1]


def open_tfds_images(
    config: DataConfig,
) -> tuple[ImageAndLabel, ImageAndLabel, tuple[str, ...], tuple[int, int, int]]:
    """The training and the validation images of ``config.tfds_name``, the names of their classes,
    and their height, width and channels. Raises ``ConfigError`` as ``open_tfds`` does.
    """
    builder = _open_prepared(config, _check_image_fields)
    image, label = config.images.image_field, config.images.label_field
    sides = [ImageAndLabel(_open_split(builder, config, s), image, label) for s in SPLITS]
    for setting, side in zip(SPLITS, sides, strict=True):
        at = f"--data.{setting.replace('_', '-')} {getattr(config, setting)}"
        check(len(side) > 0, f"{at} has no images.")
    try:
        sides[0][0]
    except ImportError as error:
        raise ConfigError(
            "images of TFDS are decoded by Pillow, which is missing: pip install -e '.[images]'"
        ) from error
    features = builder.info.features
    return *sides, tuple(features[label].names), features[image].shape


def _open_prepared(config: DataConfig, check_fields: Callable) -> tfds.core.DatasetBuilder:
    """The builder of a data set that is ready to be read."""
    builder = _find_builder(config)
    check_fields(builder, config)  # before a long download
    if not _is_prepared(builder):
        _prepare(builder, config)
        builder = _find_builder(config)
    return builder


def _find_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    """The builder of the named data set."""
    at = f"--data.tfds-name {config.tfds_name}"
    with silence_tfds():
        try:
            name, _ = naming.parse_builder_name_kwargs(config.tfds_name)
            # Community data sets are looked up over the network, with minutes of retries.
            check(not name.namespace, f"{at}: leave out the `{name.namespace}:`.")
            _register_older_sets(name.name)
            directory = config.directory and expand_home("--data.directory", config.directory)
            return tfds.builder(config.tfds_name, data_dir=directory)
        except tfds.core.DatasetNotFoundError as error:
            known = sorted(set(tfds.list_builders(with_community_datasets=False)))
            near = difflib.get_close_matches(name.name, known, n=5)
            raise ConfigError(
                f"{at}: TFDS knows no such data set"
                + (f"; near are {', '.join(near)}." if near else ".")
                + " All names: https://www.tensorflow.org/datasets/catalog/overview"
            ) from error
        except ConfigError:
            raise
        except Exception as error:
            raise _explain(at, error) from error


def _register_older_sets(name: str) -> None:
    """Make TFDS know its older data sets.

    Without TensorFlow, TFDS stops importing them at the first module that needs it, and then
    denies that ``c4`` or ``wikipedia`` exist.
    """
    if name not in tfds.list_builders(with_community_datasets=False):
        for group in (
            "text",
            "summarization",
            "translate",
            "question_answering",
            "image_classification",
        ):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{group}")


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    with silence_tfds():
        return builder.is_prepared()


def _check_text_field(builder: tfds.core.DatasetBuilder, config: DataConfig) -> None:
    features = builder.info.features
    text = [name for name, feature in features.items() if _is_text(feature)]
    check(
        config.tfds_text_field in text,
        f"--data.tfds-text-field {config.tfds_text_field}: {config.tfds_name} has no text there."
        f" Its text fields are: {', '.join(text) or 'none'}.",
    )


def _check_image_fields(builder: tfds.core.DatasetBuilder, config: DataConfig) -> None:
    features, name, settings = builder.info.features, config.tfds_name, config.images
    for field, kind, what in (
        (settings.image_field, tfds.features.Image, "image"),
        (settings.label_field, tfds.features.ClassLabel, "label"),
    ):
        there = [field for field, feature in features.items() if isinstance(feature, kind)]
        check(
            field in there,
            f"--data.images.{what}-field {field}: {name} has no {what} there. Its {what} fields"
            f" are: {', '.join(there) or 'none'}.",
        )
    shape = features[settings.image_field].shape
    check(
        None not in shape,
        f"--data.tfds-name {name}: its images are not all of one size ({shape}), which they must"
        f" be; mnist, fashion_mnist and cifar10 are.",
    )


def _is_text(feature: tfds.features.FeatureConnector) -> bool:
    return feature.shape == () and feature.np_dtype in (np.object_, np.str_, np.bytes_)


def _prepare(builder: tfds.core.DatasetBuilder, config: DataConfig) -> None:
    """Download and write the data set as array_record, with TFDS's own progress bars."""
    at = f"--data.tfds-name {config.tfds_name}"
    url = _find_download_url(builder)
    check(
        url is None or _is_reachable(url, _PROBE_SECONDS),
        f"{at} is neither prepared in {builder.data_dir} nor can it be downloaded: no answer from"
        f" {url}. Prepare it where there is a network and point --data.directory at a copy, or"
        f" train on what needs none: --data.source stdlib or files; of images, digits.",
    )
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(file_format="array_record", download_config=download)
    except Exception as error:
        if not _is_prepared(_find_builder(config)):  # unless another process was faster
            raise _explain(f"{at} cannot be prepared", error) from error


def _find_download_url(builder: tfds.core.DatasetBuilder) -> str | None:
    """An address that preparing will download from; ``None`` if it needs no network."""
    urls = getattr(builder, "url_infos", None) or {}
    url = next((url for url in urls if url.startswith(("http://", "https://"))), None)
    stock = type(builder).__module__.startswith("tensorflow_datasets.")
    return url or ("https://storage.googleapis.com/" if stock else None)


def _is_reachable(url: str, seconds: float) -> bool:
    """Whether a server answers for ``url`` within ``seconds``, looking up its name included."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.build_opener().open(request, timeout=seconds):
                answered.set()
        except urllib.error.HTTPError as error:  # an answer, if not a kind one
            error.close()
            answered.set()
        except (OSError, ValueError, http.client.HTTPException):
            pass

    # The time-out of a socket does not cover the look-up of a name, hence the thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _explain(at: str, error: Exception) -> ConfigError:
    """What an exception of TFDS means to the user."""
    reason = " ".join(str(error).split())[:600] or type(error).__name__
    if isinstance(error, ImportError):
        return ConfigError(
            f"{at}: {reason}. Many TFDS data sets need TensorFlow to prepare (not to read):"
            f" pip install 'moejax[tensorflow]'; some, such as c4, need apache-beam, too."
        )
    return ConfigError(f"{at}: {reason}")


def _open_split(
    builder: tfds.core.DatasetBuilder, config: DataConfig, setting: str
) -> Sequence[dict[str, Any]]:
    split = getattr(config, setting)
    at = f"--data.{setting.replace('_', '-')} {split}"
    try:
        with silence_tfds():
            return builder.as_data_source(split)
    except NotImplementedError as error:
        raise ConfigError(
            f"{config.tfds_name} in {builder.data_dir} was prepared in a format without random"
            f" access. Give another --data.directory, and it is prepared there as array_record."
        ) from error
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{at}: {config.tfds_name} has the splits {', '.join(builder.info.splits)}; a share of"
            f" one is written 'train[:99%]' or 'train[99%:]'. ({reason})"
        ) from error
