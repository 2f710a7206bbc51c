"""Settings of the data, and of how they become batches."""

from dataclasses import dataclass, field
from typing import Literal

from moejax.config.checks import (
    check,
    check_paths,
    check_positive,
    check_sizes,
    check_types,
    make_tuples,
)
from moejax.config.images import ImageDataConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text or the images, and how they become batches."""

    source: Literal["stdlib", "tfds", "files", "digits"] = "stdlib"
    """`stdlib`: the Python standard library of this interpreter. `tfds`: a data set of TensorFlow
    Datasets by name, of text or of labelled images. `files`: text files of your own. `digits`:
    scikit-learn's handwritten digits."""
    tfds_name: str | None = None
    """Name of the TFDS data set, such as `lm1b` or `tiny_shakespeare`; `mnist` or `cifar10`."""
    tfds_text_field: str = "text"
    """The feature of the TFDS data set that holds the text."""
    tfds_train_split: str = "train"
    """The split to train on, in TFDS's notation (`train[:99%]`)."""
    tfds_validation_split: str = "validation"
    """The split held out, in TFDS's notation (`train[99%:]`)."""
    directory: str | None = None
    """Where prepared data sets are kept; by default TFDS's own, `~/tensorflow_datasets`."""
    files: str | tuple[str, ...] | None = None
    """Text files to train on: a file, a folder with all texts in it, or a quoted glob such as
    `'books/**/*.txt'`; or several of these."""
    validation_files: str | tuple[str, ...] | None = None
    """Text files held out, written as `files` are; by default `validation_percent` of those."""
    validation_percent: float = 5.0
    """Share of `files` held out: whole files, chosen by a stable hash of their paths; of one file,
    or of very few, the last part of each."""
    tokenizer: str = "bytes"
    """`bytes`, or the path of a Hugging Face `tokenizer.json`."""
    sequence_length: int = 128
    """Positions in a sequence (N) of text."""
    images: ImageDataConfig = field(default_factory=ImageDataConfig)
    batch_size: int = 16
    """Sequences, or images, in one optimizer step (B), over all devices and accumulated
    micro-batches."""
    eval_batch_size: int = 64
    """Sequences, or images, in one evaluation batch, over all devices."""
    seed: int = 0
    """Seed of the shuffle."""
    shuffle_window: int = 8192
    """Pieces of documents (of at most a sequence each) that are shuffled together."""
    shards: int = 1
    """Streams that the training text is read as (S): stream s has the documents s, s + S, ... and
    gives an S-th of the rows of every batch. With as many as there are processes, each process
    reads its own part of the text alone. The batches depend on S, and not on the processes."""
    prefetch: int = 4
    """Batches prepared ahead in a background thread."""

    def __post_init__(self) -> None:
        at = "data"
        make_tuples(self, "files", "validation_files")
        check_types(at, self)
        check_paths(at, self, "directory", "files", "validation_files", "tokenizer")
        check_sizes(at, self, "sequence_length", "batch_size", "eval_batch_size")
        check_positive(at, self, "shuffle_window", "shards", "prefetch")
        check(
            self.batch_size % self.shards == 0,
            f"--data.batch-size {self.batch_size} is not divisible by --data.shards {self.shards}.",
        )
        check(0 <= self.seed < 2**31, f"--data.seed must lie in [0, 2**31), not {self.seed}.")
        check(
            0 < self.validation_percent < 100,
            f"--data.validation-percent must lie between 0 and 100, not {self.validation_percent}.",
        )
        check(
            self.source != "tfds" or bool(self.tfds_name),
            "--data.source tfds needs --data.tfds-name, such as lm1b, or mnist for images.",
        )
        check(
            self.source != "files" or bool(self.files),
            "--data.source files needs --data.files: a file, a folder, or a glob such as"
            " 'books/**/*.txt'.",
        )
