"""Settings of the device mesh."""

from dataclasses import dataclass
from typing import Literal

from moejax.config.checks import check, check_positive, check_types

BY_ROWS = ("ragged", "all_gather")
"""The forms of expert parallelism that move rows and know no slots."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The devices: data x context x expert x model."""

    data: int | None = None
    """Devices on the data axis; by default all that the other axes leave."""
    context: int = 1
    """Devices that share each sequence, in training: every one has a piece of its positions, and
    attention gathers the keys and values of all."""
    expert: int = 1
    """Devices on the expert axis, over which the experts are spread; tokens are spread over it and
    the data axis together."""
    model: int = 1
    """Devices on the model axis, which share heads and hidden widths of the same tokens."""
    fsdp: bool = False
    """Spread parameters and optimizer state over the data and the context axis (and what is not of
    experts over the expert axis, too); each layer's are gathered when it runs."""
    zero1: bool = False
    """Spread parameters and optimizer state as `fsdp` does, but gather all parameters once at the
    beginning of a step, in the type of products, and keep them until its end (ZeRO-1)."""
    expert_parallel: Literal["auto", "all_to_all", "ragged", "all_gather"] = "auto"
    """How tokens meet experts on other devices; all forms give the same. `auto`: slots, moved by
    XLA; `all_to_all`: slots, exchanged explicitly; `ragged`: a token's row goes once to each device
    that it chose; `all_gather`: all tokens of the expert axis go everywhere, sums come back."""
    chunks: int = 1
    """Parts in which the explicit forms send a device's tokens, so that XLA can overlap the travel
    of one with the arithmetic of another."""
    receive_factor: float | None = None
    """Choices that a device takes in under `ragged` and `all_gather`, over its fair share; what is
    more is dropped, and counted. By default there is room for the worst case."""

    def __post_init__(self) -> None:
        check_types("mesh", self)
        sizes = ("data", "context", "expert", "model", "chunks", "receive_factor")
        check_positive("mesh", self, *sizes)
        check(
            not (self.fsdp and self.zero1),
            "--mesh.fsdp True and --mesh.zero1 True both spread parameters: take zero1 where all of"
            " them fit a device in the type of products, else fsdp.",
        )
        explicit = self.expert_parallel != "auto"
        check(
            explicit or self.chunks == 1,
            f"--mesh.chunks {self.chunks} needs a form that sends by itself: --mesh.expert-parallel"
            f" all_to_all, ragged or all_gather, not auto.",
        )
        check(
            self.receive_factor is None or self.expert_parallel in BY_ROWS,
            f"--mesh.receive-factor {self.receive_factor} limits the rows of --mesh.expert-parallel"
            f" ragged or all_gather: take one of these, or leave it out. {self.expert_parallel} has"
            f" slots, which --model.moe.capacity-factor limits.",
        )

    @property
    def beside_data(self) -> int:
        """Devices for each one of the data axis."""
        return self.context * self.expert * self.model

    @property
    def spreads(self) -> bool:
        """Whether the state of a run lies spread over devices that would else hold copies."""
        return self.fsdp or self.zero1
