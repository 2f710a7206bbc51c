"""All sections of a plan, from the parameters to the advice."""

import jax
import numpy as np

from moejax.config.model import Remat
from moejax.lab.plan.advice import advise
from moejax.lab.plan.dense_twins import dense_twins
from moejax.lab.plan.device_parameters import (
    local_parameters,
    parameter_shapes,
    trained_shapes,
)
from moejax.lab.plan.devices import DEVICES
from moejax.lab.plan.expected_drops import WANTED, expected_drops, forecast_seats
from moejax.lab.plan.explanations import MEMORY_REASONS, explain_flops, explain_parameters
from moejax.lab.plan.layer_bytes import layer_workspace
from moejax.lab.plan.memory import cache_bytes, plan_memory
from moejax.lab.plan.residuals import saved_bytes
from moejax.lab.plan.roofline_section import list_roofline
from moejax.lab.plan.sections import Line, PlanRequest, Section, gigabytes, short
from moejax.lab.plan.step_flops import muon_flops, part_flops
from moejax.lab.plan.step_sizes import choose_attention, count_slots, size_step
from moejax.lab.plan.traffic import list_moves
from moejax.models.attend.of_model import has_attention
from moejax.models.counts import active_parameters, cost, forward_flops, parameters


def make_plan(request: PlanRequest) -> list[Section]:
    """All sections of a plan that have something to say."""
    costs = (list_parameters, list_flops, list_memory, list_inference, list_traffic)
    made = [list_section(request) for list_section in costs] + list_roofline(request)
    router = request.config.model.moe.built_router
    if request.config.model.moe.every:
        if not (router.slots or router.experts_choose):
            made.append(list_capacity(request))
        made.append(list_twins(request))
        made.append(list_advice(request))
    return [section for section in made if section.lines]


def list_parameters(request: PlanRequest) -> Section:
    """The parameters of each part."""
    model, V = request.config.model, request.vocab_size
    total, active = parameters(model, V), active_parameters(model, V)
    total, active = (x | {"total": sum(x.values())} for x in (total, active))
    why = explain_parameters(model, V)
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


def list_flops(request: PlanRequest) -> Section:
    """The FLOPs of a token by part, and those of a step on one device."""
    config, V = request.config, request.vocab_size
    length = config.data.sequence_length
    why = explain_flops(config.model, length)
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
    params = trained_shapes(config, parameter_shapes(config, V))
    with jax.sharding.use_abstract_mesh(request.grid):
        step = part_flops(config, V)
        muon = muon_flops(params, config.optim)
    step |= {"muon": muon} if muon else {}
    total = sum(step.values())
    tokens = config.data.batch_size * length
    listed = ", ".join(f"{short(flops)} {part}" for part, flops in step.items())
    plain = tokens * price / request.grid.size
    more = "empty slots, dispatch, recomputation, the optimizer, what devices compute alike"
    reason = (
        f"{listed}; {tokens:,} tokens x {short(price)} / {request.grid.size} devices are"
        f" {short(plain)}, {more} the rest"
    )
    value = {"total": total, "over_plain": total / plain} | step
    lines.append(Line("a_step_on_a_device", ("", short(total)), value, reason))
    return Section("flops", "FLOPs", lines, ("forward", "training"))


def list_memory(request: PlanRequest) -> Section:
    """What lies in a device's memory during training."""
    config, device = request.config, DEVICES[request.kind]
    found = plan_memory(config, request.vocab_size, request.grid)
    with jax.sharding.use_abstract_mesh(request.grid):
        step = size_step(config, request.vocab_size)
    lines = [
        Line(name.replace(", ", "_"), (gigabytes(size),), size, MEMORY_REASONS.get(name, ""))
        for name, size in found.state.items()
    ]
    moment = found.moments[found.peak_moment]
    for name, size in moment.items():
        key = name.replace(", ", "_").replace(" ", "_")
        lines.append(Line(key, (gigabytes(size),), size, MEMORY_REASONS.get(name, "")))
    of = f" of {gigabytes(device.bytes)}" if device.bytes else ""
    others = ", ".join(
        f"{gigabytes(sum(has.values()))} at the {name}" for name, has in found.moments.items()
    )
    reason = f"the largest moment is the {found.peak_moment}; beside the state: {others}"
    lines.append(Line("peak", (gigabytes(found.peak) + of,), found.peak, reason))
    if device.bytes is not None:
        fits = found.peak <= device.bytes
        lines.append(
            Line(
                "fits",
                ("yes" if fits else "no",),
                fits,
                f"a {request.kind} grants {device.bytes / 1e9:.1f} GB",
            )
        )
    for name, size in found.host.items():
        key = name.replace(", ", "_").replace(" ", "_")
        lines.append(Line(key, (gigabytes(size),), size, "not in the device's memory"))
    policies: dict[str, Remat] = {
        "saved_if_all_is_kept": "none",
        "saved_if_attention_is_recomputed": "attention",
        "saved_if_feed_forward_networks_are_recomputed": "experts",
        "saved_if_layers_are_recomputed": "layer",
    }
    for name, remat in policies.items():
        size = saved_bytes(config, step, remat)
        why = (
            "what autodiff asks of the layers, as it says itself"
            if remat != "layer" or config.model.remat_keep
            else f"{len(config.model.routed_blocks)} layers x {step.T:,} tokens x {step.D:,}"
            f" x {step.itemsize} bytes;"
            f" and {gigabytes(sum(layer_workspace(config, step).values()))} for the one in work"
        )
        lines.append(Line(name, (gigabytes(size),), size, why))
    if has_attention(config.model):
        with jax.sharding.use_abstract_mesh(request.grid):
            form, why = choose_attention(config)
        lines.append(Line("attention_form", (f"{form} ({why})",), form))
    return Section("memory", "Memory of a device in training", lines)


def list_inference(request: PlanRequest) -> Section:
    """The memory that writing text takes on a device."""
    config = request.config
    size = cache_bytes(config, request.sequences, request.context, request.grid)
    shapes = parameter_shapes(config, request.vocab_size)
    local = local_parameters(config, shapes, request.grid)
    numbers, itemsize = sum(p.gathered for p in local), 2
    each = size / request.sequences / request.context
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
            f"{request.sequences:,} x {request.context:,} positions x {short(each)}B a position,"
            f" in {config.model.dtype} (--sequences, --context)"
            + ", with memories in float32"
            * ("delta" in config.model.attention_kinds),
        ),
    ]
    return Section("inference", "Memory of a device when it writes text", lines)


def list_traffic(request: PlanRequest) -> Section:
    """What a device sends in a step."""
    config = request.config
    shapes = parameter_shapes(config, request.vocab_size)
    local = local_parameters(config, shapes, request.grid)
    with jax.sharding.use_abstract_mesh(request.grid):
        found = list_moves(config, size_step(config, request.vocab_size), local)
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


def list_capacity(request: PlanRequest) -> Section:
    """The slots of an expert, and the share of choices that finds none."""
    model, moe = request.config.model, request.config.model.moe
    group, K, E = moe.group_size, moe.top_k, moe.num_choices
    slots = count_slots(request.config)
    seat = forecast_seats(model, slots, request.share_LE, group)
    fair = group * K / E
    busiest = float(request.share_LE.max() * E)
    lines = [
        Line(
            "load",
            (request.load,),
            request.load,
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
            and other <= request.config.data.batch_size * request.config.data.sequence_length
        ):
            there = int(min(other, np.ceil(seat.padding * other * K / E * (1 - 1e-9))))
            lost = float(expected_drops(request.share_LE, other, K)[there])
            cell = (f"{lost:.2%} dropped",)
            lines.append(Line(f"groups_of_{other}", cell, lost, f"with {there:,} slots"))
    return Section("capacity", "Capacity", lines)


def list_twins(request: PlanRequest) -> Section:
    """The dense models of equal active and of equal total size."""
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
        for twin in dense_twins(request.config, request.vocab_size, request.grid)
    ]
    columns = ("hidden width", "parameters", "FLOPs a token", "peak of a device")
    return Section("dense", "Beside dense models", lines, columns)


def list_advice(request: PlanRequest) -> Section:
    """Advice, with the reason for each."""
    config, V = request.config, request.vocab_size
    found = advise(config, V, request.grid, request.kind, request.share_LE)
    lines = [Line(key, (said,), said) for key, said in found.items()]
    return Section("advice", "Advice", lines)
