"""Settings of data, optimizer and run, and the whole tree."""

from dataclasses import dataclass, field
from typing import Literal

from moejax.config.checks import check, check_not_negative, check_positive, check_types, flag
from moejax.config.distributed import DistributedConfig
from moejax.config.images import ImageDataConfig
from moejax.config.mesh import MeshConfig, check_mesh
from moejax.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text or the images, and how they become batches."""

    source: Literal["stdlib", "tfds", "files", "digits"] = "stdlib"
    """`stdlib`: the Python standard library of this interpreter. `tfds`: a data set of TensorFlow
    Datasets by name, of text or of labelled images. `files`: local text files by glob. `digits`:
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
    files: str | None = None
    """Glob of the text files to train on, such as `'books/**/*.txt'`."""
    validation_files: str | None = None
    """Glob of the text files held out; by default `validation_percent` of `files`."""
    validation_percent: float = 5.0
    """Share of `files` held out, chosen by a stable hash of the path."""
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
        check_types(at, self)
        check_positive(at, self, "sequence_length", "batch_size", "eval_batch_size")
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
            "--data.source files needs --data.files, a glob such as 'books/**/*.txt'.",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw` for every parameter; or `muon` for the matrices inside the layers, with AdamW for the
    rest (embedding, patches, head, norms, routers)."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.03
    """Peak learning rate of Muon."""
    muon_iterations: int = 3
    """Newton-Schulz iterations of Muon."""
    router_learning_rate: float | None = None
    """Peak learning rate of the routers; by default AdamW's."""
    warmup_fraction: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: `cosine` decay, or `wsd`, warm-up-stable-decay: constant, then linear."""
    decay_fraction: float = 0.2
    """Share of the steps over which `wsd` decays at the end."""
    final_fraction: float = 0.0
    """Learning rate at the end, over its peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices alone."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    label_smoothing: float = 0.0
    """In training, the share of the target probability that is spread evenly over all classes (or
    the vocabulary)."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; `None` for no clipping."""
    accumulate: int = 1
    """Micro-batches that one step adds up; the update is that of the whole batch."""

    def __post_init__(self) -> None:
        at = "optim"
        check_types(at, self)
        check_positive(at, self, "learning_rate", "muon_learning_rate", "router_learning_rate")
        check_positive(at, self, "clip_norm", "accumulate", "muon_iterations")
        check_not_negative(at, self, "weight_decay", "warmup_fraction", "final_fraction")
        for name in ("beta1", "beta2", "label_smoothing"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{flag(at, name)} must lie in [0, 1), not {value}.")
        decay = self.decay_fraction if self.schedule == "wsd" else 0.0
        check(
            self.warmup_fraction + decay <= 1 and decay >= 0,
            f"--optim.warmup-fraction {self.warmup_fraction} and --optim.decay-fraction"
            f" {self.decay_fraction} must be shares of the run that sum to at most 1.",
        )

    def kind_of(self, name: str) -> str:
        """Which transformation a parameter of this name takes: muon, router, matrix or rest."""
        if name.startswith(("w_router_", "w_noise_", "w_shared_gate_")):
            return "router"
        if not name.startswith("w_"):
            return "rest"  # norms, biases and the embedding: no weight decay
        inside = name not in ("w_head_DV", "w_patch_XD")
        return "muon" if self.optimizer == "muon" and inside else "matrix"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long to train, what to write, and where."""

    directory: str | None = None
    """Where the run is written; by default `runs/` and the name of the config file."""
    init_from: str | None = None
    """Directory of a model to begin from: one that `moejax import` wrote, a checkpoint in Hugging
    Face's format, or a run; by default parameters are drawn."""
    steps: int = 1000
    """Optimizer steps."""
    seed: int = 0
    """Seed of the initial parameters."""
    log_every: int = 50
    """Steps between two lines of training metrics."""
    eval_every: int = 500
    """Steps between two evaluations; there is always one at the end."""
    eval_batches: int | None = None
    """Batches of an evaluation; by default all of the validation text."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Latest checkpoints kept, besides the best one."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too, to `tensorboard/` in the run's directory."""
    max_skipped_in_a_row: int = 10
    """Stop after so many updates in a row that were skipped because they were not finite."""
    sample_prompt: str = "def "
    """The text that the sample in the report begins with."""
    sample_tokens: int = 400
    """Tokens generated for the report; 0 for none."""
    sample_temperature: float = 0.7
    """Temperature of the sample; 0 takes the most probable token each time."""

    def __post_init__(self) -> None:
        at = "run"
        check_types(at, self)
        check(0 <= self.seed < 2**31, f"--run.seed must lie in [0, 2**31), not {self.seed}.")
        check_positive(at, self, "steps", "log_every", "eval_every", "eval_batches")
        check_positive(at, self, "checkpoint_every", "keep_checkpoints", "max_skipped_in_a_row")
        check_not_negative(at, self, "sample_tokens", "sample_temperature")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check_types("", self)
        self._check_kind()
        length = self.positions
        # A dense model has no groups.
        group = self.model.moe.group_size if self.model.moe.every else 1
        whole = "the tokens of an image," if self.model.sees_images else "--data.sequence-length"
        check(
            length % group == 0 or group % length == 0,
            f"--model.moe.group-size {group} must divide {whole} {length}, or be a multiple of it.",
        )
        accumulate, batch = self.optim.accumulate, self.data.batch_size
        check(
            batch % accumulate == 0,
            f"--data.batch-size {batch} is not divisible by --optim.accumulate {accumulate}.",
        )
        for name, rows in (
            ("--data.batch-size / --optim.accumulate", batch // accumulate),
            ("--data.eval-batch-size", self.data.eval_batch_size),
        ):
            check(
                rows * length % group == 0,
                f"--model.moe.group-size {group} does not divide the {rows * length} tokens of a"
                f" batch of {name} = {rows} {self.row_name}s of {length}.",
            )
        check_mesh(self.model, self.mesh)

    def _check_kind(self) -> None:
        """Language models need text, classifiers images."""
        kind, source = self.model.kind, self.data.source
        if not self.model.sees_images:
            check(
                source != "digits",
                "--data.source digits are images: they go with --model.kind mlp or vit.",
            )
            return
        check(
            source in ("digits", "tfds"),
            f"--model.kind {kind} sees images, but --data.source {source} is text: take digits, or"
            f" tfds with the name of a data set of images, such as --data.tfds-name mnist.",
        )
        check(
            self.run.init_from is None,
            f"--run.init-from begins from language models, and --model.kind {kind} is none.",
        )
        check(
            self.model.moe.router != "hash" or not self.model.moe.every,
            f"--model.moe.router hash looks at the ids of tokens, which images have not: choose"
            f" another for --model.kind {kind}, such as top_k.",
        )

    @property
    def positions(self) -> int:
        """Tokens in a row of a batch (N): of a sequence, or of an image."""
        return self.model.image_tokens if self.model.sees_images else self.data.sequence_length

    @property
    def row_name(self) -> str:
        """What a row of a batch is."""
        return "image" if self.model.sees_images else "sequence"

    @property
    def sequences_per_group(self) -> int:
        """Whole sequences that must stay together: a routing group's, or 1 where it is a part of
        one; a dense model has no groups.
        """
        if not self.model.moe.every:
            return 1
        return max(1, self.model.moe.group_size // self.positions)
