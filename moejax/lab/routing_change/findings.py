"""The change of a model's routing, as JSON, and in a few words.

Letters: Y: classes of tokens.
"""

from pathlib import Path
from typing import Any

from moejax.lab.routing_change.change import Change, Side
from moejax.runtime.number_words import duration


def change_json(found: Change) -> dict[str, Any]:
    """What `--json` prints; lists are by layer, then by expert or class."""
    return {
        "data": found.data,
        "tokens": found.tokens,
        "documents": found.documents,
        "layers": found.layers,
        "experts": found.experts,
        "classes": found.classes,
        "entropy": found.entropy,
        "before": side_json(found.before),
        "after": side_json(found.after),
        "agreement": found.agreement_L.tolist(),
        "agreement_by_chance": found.chance_L.tolist(),
        "agreement_of_expert": found.kept_of_expert_LE.tolist(),
        "agreement_of_class": found.kept_of_class_LY.tolist(),
    }


def side_json(side: Side) -> dict[str, Any]:
    """The figures of one of the two models."""
    return {
        "model": side.description,
        "load": side.load_LE.tolist(),
        "max_violation": side.violation_L.tolist(),
        "dead_experts": side.dead,
        "choices": side.counts_LEY.tolist(),
        "bits": side.bits_L.tolist(),
        "bits_by_chance": side.chance_L.tolist(),
    }


def summarize_change(found: Change, page: Path | None, seconds: float) -> str:
    """The findings in a few lines, with the place of the page and the time that it all took."""
    before, after = found.before, found.after
    lines = [
        f"before     {before.description}",
        f"after      {after.description}",
        f"text       {found.data}",
        f"           {found.tokens:,} tokens of {count_documents(found)}, in {duration(seconds)}",
        f"the same   {found.agreement:.1%} of the choices, {found.chance:.1%} by chance",
    ]
    for i, layer in enumerate(found.layers):
        lines.append(
            f"  layer {layer:<3} {found.agreement_L[i]:.1%} the same; max violation"
            f" {before.violation_L[i]:.2f} before, {after.violation_L[i]:.2f} after; bits of class"
            f" {before.bits_L[i]:.3f} before, {after.bits_L[i]:.3f} after"
        )
    lines.append(f"dead       {before.dead} experts before, {after.dead} after")
    return "\n".join([*lines, f"page       {page}"])


def count_documents(found: Change) -> str:
    """How many documents the tokens are of, in words."""
    return f"{found.documents:,} document{'s' * (found.documents != 1)}"
