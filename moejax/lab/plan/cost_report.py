"""A plan as a table and as JSON."""

from typing import Any

import jax

from moejax.lab.plan.sections import PlanRequest, Section
from moejax.lab.plan.step_sizes import choose_dispatch
from moejax.models.counts import cost
from moejax.runtime import device_mesh


def to_json(request: PlanRequest, sections: list[Section]) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    config = request.config
    price = cost(config.model, request.vocab_size, config.data.sequence_length)
    with jax.sharding.use_abstract_mesh(request.grid):
        forms = choose_dispatch(config) if config.model.moe.every else None
        tokens = device_mesh.token_devices()
    return {
        "parameters_total": price.parameters_total,
        "parameters_active": price.parameters_active,
        "flops_per_token": price.flops_per_token,
        "mesh": dict(request.grid.shape),
        "device": request.kind,
        "token_devices": tokens,
        "vocab_size": request.vocab_size,
        "dispatch": forms and forms[0],
        "expert_parallel": forms and forms[1],
    } | {section.key: {line.key: line.value for line in section.lines} for section in sections}


def table(request: PlanRequest, sections: list[Section], explain: bool) -> str:
    """The plan as text; with ``explain``, each line is followed by its arithmetic."""
    out = [describe_devices(request)]
    for section in sections:
        out += ["", *_lay_out(section, explain)]
    return "\n".join(out)


def describe_devices(request: PlanRequest) -> str:
    """The devices and the batch, in words."""
    axes = " x ".join(f"{axis} {size}" for axis, size in request.grid.shape.items())
    batch = request.config.data.batch_size
    length = request.config.data.sequence_length
    return (
        f"{request.grid.size} x {request.kind} ({axes}), {batch:,} sequences of {length:,} a step"
    )


def _lay_out(section: Section, explain: bool) -> list[str]:
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
