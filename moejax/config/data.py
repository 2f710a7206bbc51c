"""Settings of the data, and of how they become batches."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from moejax.config.checks import (
    check,
    check_paths,
    check_positive,
    check_sizes,
    check_types,
    make_tuples,
)
from moejax.config.errors import ConfigError
from moejax.config.images import ImageDataConfig
from moejax.config.mixture import NONE, Mixture, SourceConfig, make_mixture

GIVEN = ("train", "validation", "files", "validation_files")
"""The settings that name files, folders and globs."""
DOCSTRINGS = "stdlib:docstrings"
"""In ``train`` and ``validation``: the conversations of ``data/chat/docstrings.py``."""
TFDS = "tfds:"
"""Before the name of a data set of TFDS, in ``train`` and ``validation``."""
STDLIB = "stdlib"
STDLIB_PARTS = ("code", "prose")
"""Of the standard library, as texts: `stdlib:code` and, the docstrings, `stdlib:prose`."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text or the images, and how they become batches."""

    train: str | tuple[str, ...] | None = None
    """What to train on, whatever its format: a file, a folder, a quoted glob, or several of these.
    The suffix says what it is: JSON lines, JSON, Parquet, Arrow, tokens (`.npy`, `.bin`), or else
    text; `.gz`, `.zst`, `.bz2` and `.xz` may follow. A data set saved by Hugging Face's `datasets`
    is named by its folder, one of TensorFlow Datasets by `tfds:NAME`. `stdlib` is the standard
    library of Python, `stdlib:code` and `stdlib:prose` are its code and its docstrings alone, and
    `stdlib:docstrings` conversations about it."""
    mixture: str | Mixture | None = None
    """Several sources instead, with weights, epochs or both: a TOML file that names them (see
    docs/guides/data.md), or in a config file a list of `SourceConfig`."""
    validation: str | tuple[str, ...] | None = None
    """What is held out, written as `train` is; by default `validation_percent` of its documents."""
    field: str = "text"
    """Where a document has its text (or its tokens): the field of an object of JSON, the column of
    a table, the feature of a TFDS data set. `meta.body` is the field `body` of the field `meta`."""
    skip_bad: bool = False
    """Leave out documents that cannot be read, count them, and go on; by default the first one ends
    the run before it begins."""
    chat_template: str | None = None
    """Read what `train` names as conversations, and learn what the assistant says in them: `auto`
    writes them by the model's own chat template, which lies beside the tokenizer or in the model of
    `--run.init-from`; `chatml`, `llama3` and `plain` are others; or a file with one. `field` is
    then where the messages are; by default `messages`, `conversations`, or `prompt` and
    `completion`."""
    too_long: Literal["cut", "drop"] = "cut"
    """What becomes of a conversation longer than `sequence_length`: its end is left out, or all of
    it."""
    source: Literal["stdlib", "tfds", "files", "digits"] = "stdlib"
    """What is read if `train` names nothing. `stdlib`: the Python standard library of this
    interpreter. `tfds`: a data set of TensorFlow Datasets by name, of text or of labelled images.
    `files`: text files of your own. `digits`: scikit-learn's handwritten digits."""
    tfds_name: str | None = None
    """Name of the TFDS data set, such as `lm1b` or `tiny_shakespeare`; `mnist` or `cifar10`."""
    tfds_text_field: str = "text"
    """The feature of the TFDS data set that holds the text."""
    tfds_train_split: str = "train"
    """The split to train on, in TFDS's notation (`train[:99%]`)."""
    tfds_validation_split: str = "validation"
    """The split held out, in TFDS's notation (`train[99%:]`)."""
    directory: str | None = None
    """Where prepared data sets are kept; by default TFDS's own place, `~/tensorflow_datasets`. What
    `train` prepares (indices, and the texts of compressed files and tables) is kept there, too; by
    default in `~/.cache/moejax`."""
    files: str | tuple[str, ...] | None = None
    """Text files to train on: a file, a folder with all texts in it, or a quoted glob such as
    `'books/**/*.txt'`; or several of these."""
    validation_files: str | tuple[str, ...] | None = None
    """Text files held out, written as `files` are; by default `validation_percent` of those."""
    validation_percent: float = 5.0
    """Share held out. Of `files`: whole files, chosen by a stable hash of their paths; of one file,
    or of very few, the last part of each. Of `train`: documents, chosen by a hash of their numbers;
    of one document, or of very few, the last part of each."""
    tokenizer: str = "bytes"
    """`bytes`, or the path of a Hugging Face `tokenizer.json`."""
    token_cache: Literal["auto", "always", "never"] = "auto"
    """Whether the tokens of all documents are made before the first step, in all CPUs, and kept in
    `directory` (by default in `~/.cache/moejax`) for later runs: `auto`, with `train`. They take
    three bytes a token. The batches are the same. Raw bytes (`tokenizer bytes`) are not kept."""
    sequence_length: int = 128
    """Positions in a sequence (N) of text."""
    images: ImageDataConfig = dataclasses.field(default_factory=ImageDataConfig)
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
        make_tuples(self, *GIVEN)
        if isinstance(self.mixture, str | tuple | list):
            object.__setattr__(self, "mixture", make_mixture(self.mixture))
        check_types(at, self)
        check_paths(at, self, "directory", *GIVEN, "tokenizer", "field", "chat_template")
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
            self.mixture is None or self.train is None,
            "--data.train and --data.mixture both say what to train on: leave one out.",
        )
        self._check_stdlib()
        check(
            self.chat_template is None or self.names_text and not self._reads_tfds,
            f"--data.chat-template {self.chat_template} reads conversations from files: name them"
            f" by --data.train 'chats/*.jsonl'.",
        )
        check(
            len(self.chat_templates) < 2,
            f"--data.mixture has the chat templates {', '.join(sorted(self.chat_templates))}: a"
            f" model has one. Write the same below all sources of conversations.",
        )
        check(
            self.source != "tfds" or self.names_text or bool(self.tfds_name),
            "--data.source tfds needs --data.tfds-name, such as lm1b, or mnist for images.",
        )
        check(
            self.source != "files" or self.names_text or bool(self.files),
            "--data.source files needs --data.files: a file, a folder, or a glob such as"
            " 'books/**/*.txt'.",
        )

    def _check_stdlib(self) -> None:
        """The standard library has its own held-out part, and is texts."""
        if not (isinstance(self.train, str) and names_stdlib(self.train)):
            return
        part = self.train.partition(":")[2]
        check(
            part in ("", *STDLIB_PARTS),
            f"--data.train {self.train}: there are {STDLIB},"
            f" {', '.join(f'{STDLIB}:{name}' for name in STDLIB_PARTS)} and {DOCSTRINGS}.",
        )
        check(
            self.validation in (None, self.train) and self.chat_template is None,
            f"--data.train {self.train} has its own held-out part, and no conversations: leave"
            f" --data.validation and --data.chat-template out.",
        )

    @property
    def names_text(self) -> bool:
        """Whether ``train`` or ``mixture`` says what to train on, and not ``source``."""
        return self.train is not None or self.mixture is not None

    @property
    def sources(self) -> Mixture:
        """The sources of a mixture, by name; none without one."""
        return self.mixture if isinstance(self.mixture, tuple) else ()

    @property
    def chat_templates(self) -> set[str]:
        """The values of ``chat_template`` by which anything is read: one at most."""
        every = map(self.of_source, self.sources) if self.sources else (self,)
        return {one.chat_template for one in every if one.chat_template is not None}

    @property
    def learns_parts(self) -> bool:
        """Whether batches say which of their targets are learned: they have conversations."""
        return self.used_template is not None

    @property
    def used_template(self) -> str | None:
        """The value of ``chat_template`` by which all conversations are read; None for texts."""
        return next(iter(self.chat_templates), None)

    def of_source(self, source: SourceConfig) -> "DataConfig":
        """The settings of one source of a mixture, as if it were alone. Raises ``ConfigError``."""
        template = source.chat_template or self.chat_template
        try:
            return dataclasses.replace(
                self,
                mixture=None,
                train=source.path,
                validation=source.eval,
                field=source.field or self.field,
                chat_template=None if template == NONE else template,
            )
        except ConfigError as error:
            raise ConfigError(in_words_of(source, error)) from error

    @property
    def _reads_tfds(self) -> bool:
        return any(given and names_tfds(given) for given in (self.train, self.validation))


def in_words_of(source: SourceConfig, error: ConfigError) -> str:
    """What is wrong with a source of a mixture, by the names of its settings."""
    said = str(error)
    for flag, name in (
        ("--data.train", "path"),
        ("--data.validation-percent", "--data.validation_percent"),
        ("--data.validation", "eval"),
        ("--data.field", "field"),
        ("--data.chat-template", "chat_template"),
    ):
        said = said.replace(flag, name)
    said = said.replace("validation_percent", "validation-percent")
    return said if said.startswith("source ") else f"source {source.name}: {said}"


def names_stdlib(given: str | tuple[str, ...]) -> bool:
    """Whether ``--data.train`` names the standard library, or a part of it, as texts."""
    return isinstance(given, str) and given.partition(":")[0] == STDLIB and given != DOCSTRINGS


def names_tfds(given: str | tuple[str, ...]) -> bool:
    """Whether ``--data.train`` or ``--data.validation`` names a data set of TFDS."""
    return isinstance(given, str) and given.startswith(TFDS)
