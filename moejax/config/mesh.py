"""Settings of the device mesh, and what of a model must fit them."""

from dataclasses import dataclass
from typing import Literal

from moejax.config.checks import check, check_positive, check_types
from moejax.config.model import ModelConfig

BY_ROWS = ("ragged", "all_gather")
"""The forms of expert parallelism that move rows and know no slots."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The devices: data x expert x model."""

    data: int | None = None
    """Devices on the data axis; by default all that the other axes leave."""
    expert: int = 1
    """Devices on the expert axis, over which the experts are spread; tokens are spread over it and
    the data axis together."""
    model: int = 1
    """Devices on the model axis, which share heads and hidden widths of the same tokens."""
    fsdp: bool = False
    """Spread parameters and optimizer state over the data axis (and what is not of experts over the
    expert axis, too); each layer's are gathered when it runs."""
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
        check_positive("mesh", self, "data", "expert", "model", "chunks", "receive_factor")
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


def check_mesh(model: ModelConfig, mesh: MeshConfig) -> None:
    """What is shared out over an axis must divide by it, and the form must carry the router."""
    moe = model.moe
    heads = {"--model.num-heads": model.num_heads, "--model.num-kv-heads": model.key_value_heads}
    shared_out = {} if model.kind == "mlp" else heads
    if not all(model.routed_layers):
        shared_out["--model.dense-hidden-size"] = model.dense_hidden
    if moe.every:
        shared_out["--model.moe.hidden-size"] = moe.hidden_size
    for flag, number in shared_out.items():
        check(
            number % mesh.model == 0,
            f"{flag} {number} is not divisible by --mesh.model {mesh.model}, which shares it out:"
            f" make it a multiple of {mesh.model}, or --mesh.model a divisor of {number}.",
        )
    if not moe.every:
        return
    check(
        not moe.expert_bias or mesh.model == 1,
        f"--model.moe.expert-bias cannot be shared out over --mesh.model {mesh.model}: set it to 1,"
        f" and spread experts (--mesh.expert) instead.",
    )
    E, groups = moe.num_experts, moe.expert_groups
    check(
        E % mesh.expert == 0,
        f"--model.moe.num-experts {E} is not divisible by --mesh.expert {mesh.expert}, which shares"
        f" them out: make it a multiple of {mesh.expert}, or --mesh.expert a divisor of {E}.",
    )
    check(
        groups is None or groups % mesh.expert == 0 or mesh.expert % groups == 0,
        f"--model.moe.expert-groups {groups} cannot stand on --mesh.expert {mesh.expert} devices:"
        f" let a device hold whole groups, or a group whole devices (one number a multiple of the"
        f" other).",
    )
    check_form(model, mesh)


def check_form(model: ModelConfig, mesh: MeshConfig) -> None:
    """Slots need a form of dispatch with slots, rows one without; rows are sent by tokens."""
    moe, form = model.moe, f"--mesh.expert-parallel {mesh.expert_parallel}"
    router = moe.built_router
    if mesh.expert_parallel == "all_to_all":
        check(
            moe.dispatch != "grouped",
            f"{form} exchanges slots, but --model.moe.dispatch grouped has none: take ragged or"
            f" all_gather, or --model.moe.dispatch gather.",
        )
        check(
            moe.expert_dropout == 0,
            f"--model.moe.expert-dropout {moe.expert_dropout} draws for all slots at once, which"
            f" {form} spreads: take auto, or 0.",
        )
    if mesh.expert_parallel in BY_ROWS:
        check(
            moe.dispatch in ("auto", "grouped"),
            f"{form} sends rows, but --model.moe.dispatch {moe.dispatch} fills slots: take"
            f" --model.moe.dispatch grouped, or --mesh.expert-parallel all_to_all.",
        )
        check(
            not router.slots and not router.experts_choose,
            f"{form} follows the tokens' choices, but with --model.moe.router {moe.router} tokens"
            f" do not choose: take all_to_all.",
        )
        check(
            moe.expert_dropout == 0,
            f"--model.moe.expert-dropout {moe.expert_dropout} has no place in {form}: take auto, or"
            f" 0.",
        )
