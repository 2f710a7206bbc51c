"""What would be better, or is right as it is: each with its reason in a sentence."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AbstractMesh

from moejax.config.change import changed
from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.config.model import ModelConfig
from moejax.lab.plan.devices import DEVICES, paper_mesh
from moejax.lab.plan.load import WANTED, seats
from moejax.lab.plan.memory import memory, step_of
from moejax.lab.plan.step_flops import dispatch_of, slots_of
from moejax.lab.plan.traffic import NAMES, exchange_bytes
from moejax.models.counts import active_parameters, cost, parameters
from moejax.runtime import device_mesh, mesh_fit
from moejax.runtime.number_words import short

SPARE = 0.9
"""Of a device's memory, what a plan may take: the compiler needs some, and so does the model of it.
"""


@dataclass(frozen=True)
class Twin:
    """A dense model beside a routed one."""

    key: str
    hidden: int
    """Hidden width of its dense layers."""
    parameters: int
    flops_per_token: int
    peak: float | None
    """Bytes on a device in training; None where its width does not divide by the mesh."""
    why: str


def twins(config: Config, vocab_size: int, grid: AbstractMesh) -> Iterator[Twin]:
    """The dense models of equal active and of equal total size, all layers alike."""
    model = config.model
    for key, wanted in (
        ("of_equal_active_size", sum(active_parameters(model, vocab_size).values())),
        ("of_equal_total_size", sum(parameters(model, vocab_size).values())),
    ):
        hidden = dense_hidden(model, vocab_size, wanted, grid.shape["model"])
        dense = dense_model(model, hidden)
        price = cost(dense, vocab_size, config.data.sequence_length)
        try:
            peak = memory(changed(config, {"model": dense}), vocab_size, grid).peak
        except ConfigError:
            peak = None
        why = f"so wide that {model.num_layers} dense layers and all else are {short(wanted)}"
        yield Twin(key, hidden, price.parameters_total, price.flops_per_token, peak, why)


def dense_hidden(model: ModelConfig, vocab_size: int, wanted: int, parts: int) -> int:
    """The hidden width at which the dense model has about as many parameters as wanted."""
    narrow, wide = (
        sum(parameters(dense_model(model, hidden), vocab_size).values())
        for hidden in (parts, 2 * parts)
    )
    each = (wide - narrow) / parts
    return max(1, round((wanted - narrow) / each / parts + 1)) * parts


def dense_model(model: ModelConfig, hidden: int) -> ModelConfig:
    """The model without routing, its dense layers so wide."""
    return changed(model, {"moe.every": 0, "moe.first_dense": 0, "dense_hidden_size": hidden})


def advice(
    config: Config, vocab_size: int, grid: AbstractMesh, kind: str, share_LE: np.ndarray
) -> dict[str, str]:
    """Sentences by what they are about."""
    with jax.sharding.use_abstract_mesh(grid):
        found = {"dispatch": of_dispatch(config, vocab_size)}
        if device_mesh.expert_devices() > 1:
            found["expert_parallel"] = of_form(config, vocab_size)
    router = config.model.moe.built_router
    if not (router.slots or router.experts_choose):
        found["capacity"] = of_capacity(config, grid, share_LE)
        found["group_size"] = of_group(config, share_LE)
    return found | {"mesh": of_mesh(config, vocab_size, grid, kind)}


def of_dispatch(config: Config, vocab_size: int) -> str:
    """The form that `auto` takes on the mesh in use, and why."""
    moe = config.model.moe
    alone = changed(config, {"model.moe.dispatch": "auto"})
    dispatch, _ = dispatch_of(alone)
    S, F, K = moe.group_size, moe.hidden_size, moe.top_k
    padding = moe.num_choices * slots_of(config) / S / K
    reasons = {
        "einsum": f"its products are 2 S / 3 F = {2 * S / 3 / F:.2f} of the experts', and moving"
        f" single rows costs more here",
        "gather": f"its slots are {padding:.2f} times the choices, while one-hot products"
        f" would be {2 * S / 3 / F:.2f} of the experts' (2 S / 3 F)",
        "grouped": f"slots would be {padding:.2f} times the choices, rows are as many as there are",
    }
    taken = f"--model.moe.dispatch {dispatch}: {reasons[dispatch]}."
    return taken if moe.dispatch in ("auto", dispatch) else f"{taken} It is {moe.dispatch} now."


def of_form(config: Config, vocab_size: int) -> str:
    """The form of expert parallelism that moves least on the mesh in use."""
    moved = {}
    for form in NAMES:
        try:
            mesh = {"expert_parallel": form, "receive_factor": None, "chunks": 1}
            other = changed(config, {"mesh": mesh, "model.moe.dispatch": "auto"})
        except ConfigError:
            continue
        step = step_of(other, vocab_size)
        moved[form] = exchange_bytes(other, step, step.form)
    explicit = {form: size for form, size in moved.items() if form != "auto"}
    best = min(explicit, key=explicit.get)
    listed = ", ".join(f"{form} {short(size)}B" for form, size in explicit.items())
    n, K = device_mesh.expert_devices(), config.model.moe.top_k
    slotted = "slots may be dropped" if best == "all_to_all" else "nothing need be dropped"
    return (
        f"--mesh.expert-parallel {best}: it sends least each way out of a device and routed layer"
        f" ({listed}), with {n} devices on the expert axis and {K} choices a token; {slotted}."
    )


def of_capacity(config: Config, grid: AbstractMesh, share_LE: np.ndarray) -> str:
    """The smallest capacity factor that drops little."""
    moe = config.model.moe
    seat = seats(config.model, slots_of(config), share_LE, moe.group_size)
    advised = f"--model.moe.capacity-factor {seat.least_factor:.2f} is the smallest that drops less"
    with jax.sharding.use_abstract_mesh(grid):
        dispatch, _ = dispatch_of(config)
    if moe.capacity_factor is None:
        note = "there is room for all now" + (
            f", in {seat.padding:.1f} times as many slots as choices" * (dispatch != "grouped")
        )
    else:
        note = f"{moe.capacity_factor:g} drops {seat.dropped:.2%}"
    return f"{advised} than {WANTED:.0%} of this load; {note}."


def of_group(config: Config, share_LE: np.ndarray) -> str:
    """What groups of another size would change."""
    moe, data = config.model.moe, config.data
    S, length = moe.group_size, data.sequence_length
    here = seats(config.model, slots_of(config), share_LE, S)
    sizes = [s for s in (2 * S, 4 * S) if (length % s == 0 or s % length == 0)]
    sizes = [s for s in sizes if data.batch_size * length % s == 0]
    if not sizes:
        return f"--model.moe.group-size {S}: the batch has no room for larger groups."
    there = seats(config.model, 1, share_LE, sizes[-1])
    return (
        f"--model.moe.group-size {S}: chance evens out in larger groups, so {sizes[-1]:,} tokens"
        f" would need a factor of {there.least_factor:.2f}, not {here.least_factor:.2f};"
        f" the products of einsum grow with it (2 S / 3 F)."
    )


def of_mesh(config: Config, vocab_size: int, grid: AbstractMesh, kind: str) -> str:
    """Whether the step fits, and else what would."""
    room = DEVICES[kind].bytes
    peak = memory(config, vocab_size, grid).peak
    fitting = [
        name for name, d in DEVICES.items() if d.bytes is not None and peak <= SPARE * d.bytes
    ]
    kinds = f"It would fit {', '.join(fitting)}." if fitting else "It would fit no kind of device."
    if room is None:
        return f"The step takes {short(peak)}B on each device. {kinds}"
    if peak <= SPARE * room:
        return f"The step fits: {short(peak)}B of the {short(room)}B of a {kind}. {kinds}"
    said = f"The step takes {short(peak)}B, more than nine tenths of a {kind}'s {short(room)}B."
    for flags, other, devices in larger(config, grid):
        data = other.data
        if data.eval_batch_size % devices:  # evaluation is to be spread as well
            other = changed(other, {"data.eval_batch_size": data.batch_size})
            flags += f" --data.eval-batch-size {data.batch_size}"
        try:
            mesh_of_other = paper_mesh(other.mesh, devices, kind)
            mesh_fit.check_fits(other, mesh_of_other)
            needed = memory(other, vocab_size, mesh_of_other).peak
        except ConfigError:
            continue
        if needed <= SPARE * room:
            return f"{said} {flags} would: {short(needed)}B."
    return f"{said} {kinds}"


def larger(config: Config, grid: AbstractMesh) -> Iterator[tuple[str, Config, int]]:
    """Changes that save memory, the cheapest first."""
    layouts = {"": config}
    layered = changed(config, {"model.remat": "layer"})
    spread = changed(layered, {"mesh.fsdp": True})
    if config.model.remat != "layer":
        layouts["--model.remat layer"] = layered
    if not config.mesh.fsdp:
        flags = " ".join([*list(layouts)[-1:], "--mesh.fsdp True"]).strip()
        layouts[flags] = spread
    experts = config.model.moe.num_experts
    devices = grid.size
    while devices <= 4096:
        for flags, other in layouts.items():
            if flags or devices > grid.size:
                at = f"--devices {devices} {flags}".strip() if devices > grid.size else flags
                yield at, changed(other, {"mesh.data": None}), devices
        devices *= 2
        for expert in (2**i for i in range(1, 9)):
            if experts % expert == 0 and devices % (expert * spread.mesh.model) == 0:
                try:
                    other = changed(spread, {"mesh.expert": expert, "mesh.data": None})
                except ConfigError:
                    continue
                yield (
                    f"--devices {devices} --mesh.expert {expert} {flags_of(config)}",
                    other,
                    devices,
                )


def flags_of(config: Config) -> str:
    """The flags that save memory on the same devices, as far as they are not there."""
    return " ".join(
        ["--mesh.fsdp True"] * (not config.mesh.fsdp)
        + ["--model.remat layer"] * (config.model.remat != "layer")
    )
