"""Settings of how long to train, what to write, and where."""

import re
from dataclasses import dataclass, field

from moejax.config.checks import (
    LARGEST,
    check,
    check_at_most,
    check_not_negative,
    check_paths,
    check_positive,
    check_types,
)
from moejax.config.lora import LoraConfig

MOST_PROFILED = 100
"""Steps in one trace."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long to train, what to write, and where."""

    directory: str | None = None
    """Where the run is written; by default `runs/` and the name of the config file."""
    init_from: str | None = None
    """Directory of a model to begin from: one that `moejax import` wrote, a checkpoint in Hugging
    Face's format, or a run; by default parameters are drawn."""
    lora: LoraConfig = field(default_factory=LoraConfig)
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
    part_every: int | None = None
    """Steps between two evaluations of a part of the validation text, for the curves of the report;
    by default there are none."""
    part_batches: int = 1
    """Batches of such a part; their rows are spread evenly over the validation text."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Latest checkpoints kept, besides the best one."""
    peak_flops: float | None = None
    """FLOP/s that a device can do at most, for the model FLOPs utilisation (MFU); by default what
    its vendor says, on CPUs what a matrix product reaches there."""
    profile: str | None = None
    """Steps to trace, as START:STOP (without STOP): 100:105 traces five. The trace for XProf and a
    table of the dearest operations are written to `profile/` in the run's directory."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too, to `tensorboard/` in the run's directory."""
    wandb: str | None = None
    """Write the metrics to this project of Weights & Biases, too."""
    max_skipped_in_a_row: int = 10
    """Stop after so many updates in a row that were skipped because they were not finite."""
    force: bool = False
    """Begin even where parameters, optimizer and one batch cannot fit into memory by arithmetic."""
    sample_prompt: str = "def "
    """The text that the sample in the report begins with; of a run on conversations, what a user
    says."""
    sample_tokens: int = 400
    """Tokens generated for the report; 0 for none."""
    sample_temperature: float = 0.7
    """Temperature of the sample; 0 takes the most probable token each time."""

    def __post_init__(self) -> None:
        at = "run"
        check_types(at, self)
        check_paths(at, self, "directory", "init_from")
        check(
            self.lora.rank is None or self.init_from is not None,
            f"--run.lora.rank {self.lora.rank} trains adapters of a model that is there: give"
            f" --run.init-from, too (what `moejax import` wrote, a checkpoint of Hugging Face, or a"
            f" run), or leave it out.",
        )
        check(0 <= self.seed < 2**31, f"--run.seed must lie in [0, 2**31), not {self.seed}.")
        check_positive(at, self, "steps", "log_every", "eval_every", "eval_batches")
        check_positive(at, self, "part_every", "part_batches")
        check_positive(at, self, "checkpoint_every", "keep_checkpoints", "max_skipped_in_a_row")
        check(self.wandb != "", "--run.wandb needs the name of a project.")
        check_not_negative(at, self, "sample_tokens", "sample_temperature")
        check_positive(at, self, "peak_flops")
        check_at_most(LARGEST, at, self, "steps", "sample_tokens")
        if self.profile is not None:
            self._check_profile(self.profile)

    @property
    def profiled(self) -> range:
        """The steps to trace, the first step of a run being 1."""
        if self.profile is None:
            return range(0)
        start, stop = self.profile.split(":")
        return range(int(start), int(stop))

    def _check_profile(self, value: str) -> None:
        said = f"--run.profile {value}"
        check(
            re.fullmatch(r"\d{1,9}:\d{1,9}", value) is not None,
            f"{said} is not START:STOP. To trace the steps 100 to 104, write 100:105.",
        )
        steps = self.profiled
        check(steps.start > 0, f"{said}: the first step is 1. Write 1:{max(2, steps.stop)}.")
        check(
            len(steps) > 0,
            f"{said} has no step: STOP is not traced. Write {steps.start}:{steps.start + 5}.",
        )
        check(
            len(steps) <= MOST_PROFILED,
            f"{said} would trace {len(steps):,} steps. Trace at most {MOST_PROFILED}, since each"
            f" writes megabytes: {steps.start}:{steps.start + 5}, say.",
        )
        check(
            steps.stop <= self.steps + 1,
            f"{said} ends after the last step, as --run.steps is {self.steps}. Write"
            f" {max(1, self.steps - 4)}:{self.steps + 1} for the last ones.",
        )
