"""Advice on a config: what to change and what to keep, with the reason for each."""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import AbstractMesh

from moejax.config.change import changed
from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.lab.plan.devices import DEVICES, paper_mesh
from moejax.lab.plan.expected_drops import WANTED, forecast_seats
from moejax.lab.plan.memory import plan_memory
from moejax.lab.plan.step_sizes import choose_dispatch, count_slots, size_step
from moejax.lab.plan.traffic import COLLECTIVES_BY_FORM, exchange_bytes
from moejax.runtime import device_fit, device_mesh
from moejax.runtime.number_words import short

SPARE = 0.9
"""The part of a device's memory that a plan may fill. The rest is for the compiler, and for the
error of the estimate."""


def advise(
    config: Config, vocab_size: int, grid: AbstractMesh, kind: str, share_LE: np.ndarray
) -> dict[str, str]:
    """One piece of advice for each subject."""
    with jax.sharding.use_abstract_mesh(grid):
        found = {"dispatch": advise_dispatch(config, vocab_size)}
        if device_mesh.expert_devices() > 1:
            found["expert_parallel"] = advise_expert_parallel(config, vocab_size)
    router = config.model.moe.built_router
    if not (router.slots or router.experts_choose):
        found["capacity"] = advise_capacity(config, grid, share_LE)
        found["group_size"] = advise_group_size(config, share_LE)
    return found | {"mesh": advise_mesh(config, vocab_size, grid, kind)}


def advise_dispatch(config: Config, vocab_size: int) -> str:
    """The form of dispatch that `auto` chooses on the mesh in use, and why."""
    moe = config.model.moe
    alone = changed(config, {"model.moe.dispatch": "auto"})
    dispatch, _ = choose_dispatch(alone)
    S, F, K = moe.group_size, moe.hidden_size, moe.top_k
    padding = moe.num_choices * count_slots(config) / S / K
    reasons = {
        "einsum": f"its products are 2 S / 3 F = {2 * S / 3 / F:.2f} of the experts', and moving"
        f" single rows costs more here",
        "gather": f"its slots are {padding:.2f} times the choices, while one-hot products"
        f" would be {2 * S / 3 / F:.2f} of the experts' (2 S / 3 F)",
        "grouped": f"slots would be {padding:.2f} times the choices, rows are as many as there are",
    }
    taken = f"--model.moe.dispatch {dispatch}: {reasons[dispatch]}."
    return taken if moe.dispatch in ("auto", dispatch) else f"{taken} It is {moe.dispatch} now."


def advise_expert_parallel(config: Config, vocab_size: int) -> str:
    """The form of expert parallelism that sends the fewest bytes on the mesh in use."""
    moved = {}
    for form in COLLECTIVES_BY_FORM:
        try:
            mesh = {"expert_parallel": form, "receive_factor": None, "chunks": 1}
            other = changed(config, {"mesh": mesh, "model.moe.dispatch": "auto"})
        except ConfigError:
            continue
        step = size_step(other, vocab_size)
        moved[form] = exchange_bytes(other, step, step.form)
    explicit = {form: size for form, size in moved.items() if form != "auto"}
    best = min(explicit, key=lambda form: explicit[form])
    listed = ", ".join(f"{form} {short(size)}B" for form, size in explicit.items())
    n, K = device_mesh.expert_devices(), config.model.moe.top_k
    slotted = "slots may be dropped" if best == "all_to_all" else "nothing need be dropped"
    return (
        f"--mesh.expert-parallel {best}: it sends least each way out of a device and routed layer"
        f" ({listed}), with {n} devices on the expert axis and {K} choices a token; {slotted}."
    )


def advise_capacity(config: Config, grid: AbstractMesh, share_LE: np.ndarray) -> str:
    """The smallest capacity factor that drops few choices."""
    moe = config.model.moe
    if moe.group_size == 1:
        return (
            "--model.moe.group-size 1: each expert has a slot for each token, so nothing is"
            " dropped, whatever the capacity factor."
        )
    seat = forecast_seats(config.model, count_slots(config), share_LE, moe.group_size)
    advised = f"--model.moe.capacity-factor {seat.least_factor:.2f} is the smallest that drops less"
    with jax.sharding.use_abstract_mesh(grid):
        dispatch, _ = choose_dispatch(config)
    if moe.capacity_factor is None:
        note = "there is room for all now" + (
            f", in {seat.padding:.1f} times as many slots as choices" * (dispatch != "grouped")
        )
    else:
        note = f"{moe.capacity_factor:g} drops {seat.dropped:.2%}"
    return f"{advised} than {WANTED:.0%} of this load; {note}."


def advise_group_size(config: Config, share_LE: np.ndarray) -> str:
    """What a larger group size would change."""
    moe, data = config.model.moe, config.data
    S, length = moe.group_size, data.sequence_length
    here = forecast_seats(config.model, count_slots(config), share_LE, S)
    sizes = [s for s in (2 * S, 4 * S) if (length % s == 0 or s % length == 0)]
    sizes = [s for s in sizes if data.batch_size * length % s == 0]
    if not sizes:
        return f"--model.moe.group-size {S}: the batch has no room for larger groups."
    there = forecast_seats(config.model, 1, share_LE, sizes[-1])
    if there.least_factor >= here.least_factor:
        return (
            f"--model.moe.group-size {S}: larger groups need no smaller capacity factor; keep it."
        )
    return (
        f"--model.moe.group-size {sizes[-1]} --model.moe.capacity-factor {there.least_factor:.2f}"
        f" would drop as little as {S} and {here.least_factor:.2f}, as chance evens out in larger"
        f" groups; the products of einsum grow with them (2 S / 3 F)."
    )


def advise_mesh(config: Config, vocab_size: int, grid: AbstractMesh, kind: str) -> str:
    """Whether the step fits into memory; if not, which change makes it fit."""
    room = DEVICES[kind].bytes
    peak = plan_memory(config, vocab_size, grid).peak
    fitting = [
        name for name, d in DEVICES.items() if d.bytes is not None and peak <= SPARE * d.bytes
    ]
    kinds = f"It would fit {', '.join(fitting)}." if fitting else "It would fit no kind of device."
    if room is None:
        return f"The step takes {short(peak)}B on each device. {kinds}"
    if peak <= SPARE * room:
        return f"The step fits: {short(peak)}B of the {short(room)}B of a {kind}. {kinds}"
    said = f"The step takes {short(peak)}B, more than nine tenths of a {kind}'s {short(room)}B."
    for flags, other, devices in roomier_configs(config, grid):
        data = other.data
        if data.eval_batch_size % devices:  # evaluation is to be spread as well
            other = changed(other, {"data.eval_batch_size": data.batch_size})
            flags += f" --data.eval-batch-size {data.batch_size}"
        try:
            mesh_of_other = paper_mesh(other.mesh, devices, kind)
            device_fit.check_fits(other, mesh_of_other)
            needed = plan_memory(other, vocab_size, mesh_of_other).peak
        except ConfigError:
            continue
        if needed <= SPARE * room:
            return f"{said} {flags} would: {short(needed)}B."
    return f"{said} {kinds}"


def roomier_configs(config: Config, grid: AbstractMesh) -> Iterator[tuple[str, Config, int]]:
    """Changes that save memory, the cheapest first: the flags, the changed config, the devices."""
    layouts = {"": config}
    if config.model.remat == "none":
        layouts["--model.remat attention"] = changed(config, {"model.remat": "attention"})
        layouts["--model.remat experts"] = changed(config, {"model.remat": "experts"})
    layered = changed(config, {"model.remat": "layer"})
    spread = changed(layered, {"mesh": {"fsdp": True, "zero1": False}})
    last = "--model.remat layer" if config.model.remat != "layer" else ""
    layouts[last] = layered
    if not config.mesh.spreads:
        layouts[f"{last} --mesh.zero1 True".strip()] = changed(layered, {"mesh.zero1": True})
    last = missing_memory_flags(config)
    layouts[last] = spread
    if config.optim.moments == "float32":
        shorter = changed(spread, {"optim.moments": "bfloat16"})
        layouts[f"{last} --optim.moments bfloat16".strip()] = shorter
    experts = config.model.moe.num_experts
    devices = grid.size
    free = "" if config.mesh.data is None else "--mesh.data None"  # as large as the devices ask
    while devices <= 4096:
        for flags, other in layouts.items():
            if flags or devices > grid.size:
                at = _join(f"--devices {devices}", free, flags) if devices > grid.size else flags
                yield at, changed(other, {"mesh.data": None}), devices
        devices *= 2
        for expert in (2**i for i in range(1, 9)):
            beside = spread.mesh.model * spread.mesh.context
            if experts % expert == 0 and devices % (expert * beside) == 0:
                try:
                    other = changed(spread, {"mesh.expert": expert, "mesh.data": None})
                except ConfigError:
                    continue
                at = f"--devices {devices} --mesh.expert {expert}"
                yield _join(at, free, missing_memory_flags(config)), other, devices


def _join(*flags: str) -> str:
    return " ".join(one for one in flags if one)


def missing_memory_flags(config: Config) -> str:
    """The flags that save memory on the same devices and are not yet set."""
    return " ".join(
        ["--model.remat layer"] * (config.model.remat != "layer")
        + ["--mesh.zero1 False"] * config.mesh.zero1
        + ["--mesh.fsdp True"] * (not config.mesh.fsdp)
    )
