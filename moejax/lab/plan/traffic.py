"""What a device sends in a training step."""

from dataclasses import dataclass

from moejax.config.config import Config
from moejax.lab.plan.memory import FLOAT, Parameter, Step
from moejax.runtime import device_mesh


@dataclass(frozen=True)
class Move:
    """Collectives of one kind."""

    name: str
    what: str
    count: int
    """In a step."""
    bytes: float
    """That leave a device in each."""


def exchanges(form: str, remat: bool, accumulates: bool) -> tuple[int, int]:
    """Collectives of one routed layer's tokens, there and back again: slots and rows go and come,
    and their gradients the same way. Where the layer is computed again so are they, but that sums
    of rows that come back are in no gradient; micro-batches have a forward pass before.
    """
    again = remat and form in ("auto", "all_to_all")
    return 2 + remat + accumulates, 2 + again + accumulates


def expected_devices(top_k: int, experts: int, devices: int) -> float:
    """Other devices that a token's K distinct choices among even experts are on, on average."""
    here = experts // devices
    missed = 1.0
    for i in range(top_k):
        missed *= max(0, experts - here - i) / (experts - i)
    return (devices - 1) * (1 - missed)


def exchange_bytes(config: Config, step: Step, form: str) -> float:
    """What leaves a device of the mesh in use in one collective of a routed layer, under a form of
    expert parallelism: see ``parallel.all_to_all`` and ``parallel.by_rows``.
    """
    moe, n = config.model.moe, device_mesh.expert_devices()
    numbers = {
        "auto": step.slots * (n - 1) / n,
        "all_to_all": step.slots * (n - 1) / n,
        "all_gather": step.T * (n - 1),
        "ragged": step.T * expected_devices(moe.top_k, moe.num_experts, n),
    }
    return numbers[form] * step.D * step.itemsize


def moves(config: Config, step: Step, parameters: list[Parameter]) -> list[Move]:
    """The collectives of a step on the mesh in use, by what they move; small ones are left out."""
    found = _of_tokens(config, step) if device_mesh.expert_devices() > 1 else []
    return found + _of_parameters(config, step, parameters) + _of_model_axis(config, step)


NAMES = {
    "auto": ("all-to-all", "all-to-all"),
    "all_to_all": ("all-to-all", "all-to-all"),
    "ragged": ("ragged-all-to-all", "ragged-all-to-all"),
    "all_gather": ("all-gather", "reduce-scatter"),
}
"""The collectives that take tokens to experts, and back, under each form."""


def _of_tokens(config: Config, step: Step) -> list[Move]:
    routed, parts = sum(config.model.routed_layers), config.optim.accumulate
    if not routed:
        return []
    times = exchanges(step.form, config.model.remat == "layer", parts > 1)
    each = exchange_bytes(config, step, step.form)
    what = ("tokens to experts", "what experts give, back")
    return [
        Move(name, said, count * routed * parts * config.mesh.chunks, each)
        for name, said, count in zip(NAMES[step.form], what, times, strict=True)
    ]


def _of_parameters(config: Config, step: Step, parameters: list[Parameter]) -> list[Move]:
    """Gradients are added up over the devices that hold copies; with FSDP parameters are gathered,
    forward and backward, and their gradients scattered.
    """
    found, parts = [], config.optim.accumulate
    copied = sum(2 * FLOAT * p.size * (p.copies - 1) / p.copies for p in parameters)
    if copied:
        found.append(Move("all-reduce", "gradients of parameters that have copies", 1, copied))
    spread = step.itemsize * sum(p.gathered - p.size for p in parameters)
    if spread:
        found.append(Move("all-gather", "parameters that FSDP spreads", 2 * parts, spread))
        found.append(Move("reduce-scatter", "their gradients", parts, spread))
    return found


def _of_model_axis(config: Config, step: Step) -> list[Move]:
    """What the parts of heads and of hidden widths add to the residual stream is added up: twice a
    layer forward and backward, and attention's once more where it is computed again.
    """
    n, parts = step.split, config.optim.accumulate
    if n == 1:
        return []
    each = 2 * step.T * step.D * step.itemsize * (n - 1) / n
    times = 4 + (config.model.remat == "layer") + 2 * (parts > 1)
    count = times * config.model.num_layers * parts
    return [Move("all-reduce", "sums over the model axis", count, each)]
