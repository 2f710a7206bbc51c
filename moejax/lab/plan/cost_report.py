"""A plan as sections of lines: as a table, with the arithmetic under each line, and as JSON."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from moejax.config.config import Config
from moejax.lab.plan import words
from moejax.lab.plan.advice import advice, twins
from moejax.lab.plan.devices import DEVICES
from moejax.lab.plan.load import WANTED, drops, seats
from moejax.lab.plan.memory import (
    cache_bytes,
    layer_workspace,
    local_parameters,
    memory,
    parameter_shapes,
    saved_bytes,
    step_of,
)
from moejax.lab.plan.step_flops import dispatch_of, muon_flops, part_flops, slots_of
from moejax.lab.plan.traffic import moves
from moejax.models.counts import active_parameters, cost, forward_flops, parameters
from moejax.runtime import device_mesh
from moejax.runtime.number_words import short as shortened


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be planned."""

    config: Config
    vocab_size: int
    grid: AbstractMesh
    kind: str
    """A name of ``DEVICES``."""
    share_LE: np.ndarray
    """See ``load.load_of``."""
    load: str
    """Where it is from, in words."""
    context: int
    sequences: int


@dataclass(frozen=True)
class Line:
    """One row: its name, what the table shows, what ``--json`` has, where it comes from."""

    key: str
    cells: tuple[str, ...]
    value: Any
    why: str = ""


@dataclass(frozen=True)
class Section:
    """Rows under one title; ``columns`` name the cells."""

    key: str
    title: str
    lines: list[Line]
    columns: tuple[str, ...] = field(default=())


def plan(asked: Asked) -> list[Section]:
    """All that a plan says."""
    made = [of_parameters(asked), of_flops(asked), of_memory(asked), of_inference(asked)]
    made += [of_traffic(asked)]
    router = asked.config.model.moe.built_router
    if asked.config.model.moe.every:
        if not (router.slots or router.experts_choose):
            made.append(of_capacity(asked))
        made.append(of_twins(asked))
        made.append(of_advice(asked))
    return [section for section in made if section.lines]


def of_parameters(asked: Asked) -> Section:
    """Parameters of each part."""
    model, V = asked.config.model, asked.vocab_size
    total, active = parameters(model, V), active_parameters(model, V)
    total, active = (x | {"total": sum(x.values())} for x in (total, active))
    why = words.of_parameters(model, V)
    lines = []
    for part, count in total.items():
        if count:
            cells = (short(count), short(active[part]), f"{count / total['total']:.1%}")
            lines.append(
                Line(part, cells, {"total": count, "active": active[part]}, why.get(part, ""))
            )
    if why.get("active"):
        share = active["total"] / total["total"]
        cells = ("", short(active["total"]), f"{share:.1%}")
        lines.append(Line("active", cells, active["total"], why["active"]))
    return Section("parameters", "Parameters", lines, ("all", "a token meets", "share"))


def of_flops(asked: Asked) -> Section:
    """FLOPs of a token by part, and of a step on one device."""
    config, V = asked.config, asked.vocab_size
    length = config.data.sequence_length
    why = words.of_flops(config.model, length)
    lines = []
    for part, flops in forward_flops(config.model, V, length).items():
        if flops:
            value = {"forward": flops, "training": 3 * flops}
            lines.append(Line(part, (short(flops), short(3 * flops)), value, why[part]))
    price = cost(config.model, V, length).flops_per_token
    lines.append(
        Line(
            "a_token",
            (short(price / 3), short(price)),
            {"forward": price // 3, "training": price},
            "training: once forward, twice backward (gradients of both factors of a product)",
        )
    )
    params = parameter_shapes(config, V)
    with jax.sharding.use_abstract_mesh(asked.grid):
        step = part_flops(config, V)
        muon = muon_flops(params, config.optim)
    step |= {"muon": muon} if muon else {}
    total = sum(step.values())
    tokens = config.data.batch_size * length
    listed = ", ".join(f"{short(flops)} {part}" for part, flops in step.items())
    plain = tokens * price / asked.grid.size
    more = "empty slots, dispatch, recomputation, the optimizer, what devices compute alike"
    reason = (
        f"{listed}; {tokens:,} tokens x {short(price)} / {asked.grid.size} devices are"
        f" {short(plain)}, {more} the rest"
    )
    value = {"total": total, "over_plain": total / plain} | step
    lines.append(Line("a_step_on_a_device", ("", short(total)), value, reason))
    return Section("flops", "FLOPs", lines, ("forward", "training"))


def of_memory(asked: Asked) -> Section:
    """What lies in a device's memory."""
    config, device = asked.config, DEVICES[asked.kind]
    found = memory(config, asked.vocab_size, asked.grid)
    with jax.sharding.use_abstract_mesh(asked.grid):
        step = step_of(config, asked.vocab_size)
    lines = [
        Line(name.replace(", ", "_"), (gigabytes(size),), size, words.MEMORY.get(name, ""))
        for name, size in found.state.items()
    ]
    moment = found.moments[found.peak_moment]
    for name, size in moment.items():
        key = name.replace(", ", "_").replace(" ", "_")
        lines.append(Line(key, (gigabytes(size),), size, words.MEMORY.get(name, "")))
    of = f" of {gigabytes(device.bytes)}" if device.bytes else ""
    others = ", ".join(
        f"{gigabytes(sum(has.values()))} at the {name}" for name, has in found.moments.items()
    )
    reason = f"the largest moment is the {found.peak_moment}; beside the state: {others}"
    fits = None if device.bytes is None else found.peak <= device.bytes
    lines.append(Line("peak", (gigabytes(found.peak) + of,), found.peak, reason))
    if fits is not None:
        lines.append(
            Line(
                "fits",
                ("yes" if fits else "no",),
                fits,
                f"a {asked.kind} grants {device.bytes / 1e9:.1f} GB",
            )
        )
    for remat, name in (
        ("none", "saved_if_all_is_kept"),
        ("layer", "saved_if_layers_are_recomputed"),
    ):
        size = saved_bytes(config, step, remat)
        why = (
            "what autodiff asks of the layers, as it says itself"
            if remat == "none"
            else f"{config.model.num_layers} layers x {step.T:,} tokens x {step.D:,}"
            f" x {step.itemsize} bytes;"
            f" and {gigabytes(sum(layer_workspace(config, step).values()))} for the one in work"
        )
        lines.append(Line(name, (gigabytes(size),), size, why))
    return Section("memory", "Memory of a device in training", lines)


def of_inference(asked: Asked) -> Section:
    """What text costs."""
    config = asked.config
    size = cache_bytes(config, asked.sequences, asked.context, asked.grid)
    shapes = parameter_shapes(config, asked.vocab_size)
    local = local_parameters(config, shapes, asked.grid)
    numbers, itemsize = sum(p.gathered for p in local), 2
    each = size / asked.sequences / asked.context
    lines = [
        Line(
            "weights_in_16_bits",
            (gigabytes(itemsize * numbers),),
            itemsize * numbers,
            f"{short(numbers)} parameters on a device, without FSDP, in 2 bytes",
        ),
        Line(
            "kv_cache",
            (gigabytes(size),),
            size,
            f"{asked.sequences:,} x {asked.context:,} positions x {short(each)}B a position,"
            f" in {config.model.dtype} (--sequences, --context)",
        ),
    ]
    return Section("inference", "Memory of a device when it writes text", lines)


def of_traffic(asked: Asked) -> Section:
    """What leaves a device in a step."""
    config = asked.config
    shapes = parameter_shapes(config, asked.vocab_size)
    local = local_parameters(config, shapes, asked.grid)
    with jax.sharding.use_abstract_mesh(asked.grid):
        found = moves(config, step_of(config, asked.vocab_size), local)
    lines = [
        Line(
            f"{move.name}: {move.what}",
            (f"{move.count:,}", gigabytes(move.bytes), gigabytes(move.count * move.bytes)),
            {"count": move.count, "bytes_each": move.bytes, "bytes": move.count * move.bytes},
            f"{move.count:,} in a step, each {move.bytes:,.0f} bytes out of a device",
        )
        for move in found
    ]
    if lines:
        total = sum(move.count * move.bytes for move in found)
        lines.append(Line("all", ("", "", gigabytes(total)), total))
    return Section("moved", "Sent by a device in a step", lines, ("number", "each", "all"))


def of_capacity(asked: Asked) -> Section:
    """Slots, and what they drop."""
    model, moe = asked.config.model, asked.config.model.moe
    group, K, E = moe.group_size, moe.top_k, moe.num_choices
    slots = slots_of(asked.config)
    seat = seats(model, slots, asked.share_LE, group)
    fair = group * K / E
    busiest = float(asked.share_LE.max() * E)
    lines = [
        Line(
            "load",
            (asked.load,),
            asked.load,
            "tokens of a group choose independently with its shares",
        ),
        Line("busiest_expert", (f"{busiest:.2f} of its share",), busiest),
        Line(
            "slots",
            (f"{slots:,} an expert and group",),
            slots,
            f"{group:,} tokens x {K} choices / {E} experts are {fair:g} at an even load, times"
            f" --model.moe.capacity-factor {moe.capacity_factor}, rounded up",
        ),
        Line("slots_over_choices", (f"{seat.padding:.2f}",), seat.padding, f"{slots:,} / {fair:g}"),
        Line(
            "expected_drops",
            (f"{seat.dropped:.2%}",),
            seat.dropped,
            f"sum over experts of E[max(X - {slots}, 0)], X binomial of {group:,} tokens, over"
            f" {group * K:,} choices",
        ),
        Line(
            "factor_for_1_per_cent",
            (f"{seat.least_factor:.2f} ({seat.least_slots:,} slots)",),
            {"factor": seat.least_factor, "slots": seat.least_slots},
            f"the smallest that drops less than {WANTED:.0%} of this load",
        ),
    ]
    for other in sorted({group // 4, group // 2, group * 2, group * 4}):
        if (
            other * K >= E
            and other <= asked.config.data.batch_size * asked.config.data.sequence_length
        ):
            there = int(min(other, np.ceil(seat.padding * other * K / E * (1 - 1e-9))))
            lost = float(drops(asked.share_LE, other, K)[there])
            cell = (f"{lost:.2%} dropped",)
            lines.append(Line(f"groups_of_{other}", cell, lost, f"with {there:,} slots"))
    return Section("capacity", "Capacity", lines)


def of_twins(asked: Asked) -> Section:
    """The dense models beside it."""
    lines = [
        Line(
            twin.key,
            (
                f"{twin.hidden:,}",
                short(twin.parameters),
                short(twin.flops_per_token),
                "-" if twin.peak is None else gigabytes(twin.peak),
            ),
            {
                "hidden": twin.hidden,
                "parameters": twin.parameters,
                "flops_per_token": twin.flops_per_token,
                "peak_bytes": twin.peak,
            },
            twin.why,
        )
        for twin in twins(asked.config, asked.vocab_size, asked.grid)
    ]
    columns = ("hidden width", "parameters", "FLOPs a token", "peak of a device")
    return Section("dense", "Beside dense models", lines, columns)


def of_advice(asked: Asked) -> Section:
    """What to do, each with its reason."""
    found = advice(asked.config, asked.vocab_size, asked.grid, asked.kind, asked.share_LE)
    lines = [Line(key, (said,), said) for key, said in found.items()]
    return Section("advice", "Advice", lines)


def short(value: float) -> str:
    """As ``units.short``, for larger numbers as well."""
    return shortened(value, "kMGTPE")


def gigabytes(size: float) -> str:
    """A number of bytes, as people read it."""
    text = short(size)
    number = text.rstrip("kMGTPE")
    return f"{number} {text[len(number) :]}B"


def to_json(asked: Asked, sections: list[Section]) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    config = asked.config
    price = cost(config.model, asked.vocab_size, config.data.sequence_length)
    with jax.sharding.use_abstract_mesh(asked.grid):
        forms = dispatch_of(config) if config.model.moe.every else None
        tokens = device_mesh.token_devices()
    return {
        "parameters_total": price.parameters_total,
        "parameters_active": price.parameters_active,
        "flops_per_token": price.flops_per_token,
        "mesh": dict(asked.grid.shape),
        "device": asked.kind,
        "token_devices": tokens,
        "vocab_size": asked.vocab_size,
        "dispatch": forms and forms[0],
        "expert_parallel": forms and forms[1],
    } | {section.key: {line.key: line.value for line in section.lines} for section in sections}


def table(asked: Asked, sections: list[Section], explain: bool) -> str:
    """The plan as text; with ``explain``, the arithmetic is under each line."""
    axes = " x ".join(f"{axis} {size}" for axis, size in asked.grid.shape.items())
    batch = asked.config.data.batch_size
    length = asked.config.data.sequence_length
    out = [f"{asked.grid.size} x {asked.kind} ({axes}), {batch:,} sequences of {length:,} a step"]
    for section in sections:
        out += ["", *_laid_out(section, explain)]
    return "\n".join(out)


def _laid_out(section: Section, explain: bool) -> list[str]:
    names = [line.key.replace("_", " ") for line in section.lines]
    if section.key == "advice":
        return [section.title, *(f"  {line.cells[0]}" for line in section.lines)]
    rows = [section.columns, *(line.cells for line in section.lines)]
    columns = max(map(len, rows))
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(columns)]
    first = max(len(section.title), *(len(name) + 2 for name in names)) + 2
    several = columns > 1

    def row(name: str, cells: tuple[str, ...]) -> str:
        laid = [c.rjust(w) if several else c for c, w in zip(cells, widths, strict=False)]
        return (name.ljust(first) + "  ".join(laid)).rstrip()

    out = [row(section.title, section.columns)]
    for name, line in zip(names, section.lines, strict=True):
        out.append(row(f"  {name}", line.cells))
        if explain and line.why:
            out.append(f"      = {line.why}")
    return out
