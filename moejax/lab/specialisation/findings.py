"""What the experts of one model take: the findings, as JSON, and in a few words.

Letters: Y: classes of tokens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moejax.lab.specialisation.association import Association, strongest_cells
from moejax.lab.specialisation.snippets import Portrait
from moejax.runtime.number_words import duration

STRONGEST = 12
"""Cells that the summary lists."""


@dataclass(frozen=True, eq=False)
class Findings:
    """All that the page shows; L are the routed layers."""

    name: str
    model: str
    data: str
    layers: tuple[int, ...]
    """Their numbers in the model."""
    experts: tuple[str, ...]
    tokens: int
    documents: int
    not_python: int | None
    shifts: int
    classes: Association
    domains: Association | None
    portraits: tuple[Portrait, ...]


def findings_json(found: Findings) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "model": found.model,
        "data": found.data,
        "tokens": found.tokens,
        "documents": found.documents,
        "not_python": found.not_python,
        "shifts": found.shifts,
        "layers": found.layers,
        "experts": found.experts,
        "classes": association_json(found.classes),
        "domains": found.domains and association_json(found.domains),
    }


def association_json(association: Association) -> dict[str, Any]:
    """The figures of one kind of class; lists are by layer, expert and class."""
    return {
        "names": association.names,
        "entropy": association.entropy,
        "bits": association.bits_L.tolist(),
        "bits_shuffled": association.shuffled_L.tolist(),
        "bits_by_chance": association.chance_L.tolist(),
        "bits_by_chance_sd": association.chance_sd_L.tolist(),
        "choices": association.counts_LEY.tolist(),
        "lift": association.lift_LEY.tolist(),
        "z": association.z_LEY.tolist(),
    }


def summarize(found: Findings, page: Path, seconds: float) -> str:
    """The findings in a few lines, with the place of the page and the time that it all took."""
    lines = [
        f"model      {found.model}",
        f"text       {found.data}",
        f"           {found.tokens:,} tokens of {found.documents:,} documents, in"
        f" {duration(seconds)}",
    ]
    for what, one in (("class", found.classes), ("domain", found.domains)):
        if one is None:
            continue
        lines.append(f"{what:10} takes {one.entropy:.3f} bits to tell; a choice tells of them")
        for i, layer in enumerate(found.layers):
            lines.append(
                f"  layer {layer:<3} {one.bits_L[i]:.4f}, shuffled {one.shuffled_L[i]:.4f},"
                f" chance {one.chance_L[i]:.4f} ± {one.chance_sd_L[i]:.4f}"
            )
    lines.append("strongest")
    for cell in strongest_cells(found.classes, STRONGEST):
        lines.append(
            f"  layer {found.layers[cell.layer]:<3} expert {found.experts[cell.expert]:3}"
            f" {found.classes.names[cell.label]:10} {cell.lift:.2f}x, z {cell.z:.0f};"
            f" {cell.of_class:.0%} of the class, {cell.of_expert:.0%} of the expert"
        )
    return "\n".join([*lines, f"page       {page}"])
