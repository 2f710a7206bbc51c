"""From sums over steps or batches to the lines of ``metrics.jsonl``, and these in words.

Letters: J: sources of a mixture; P: modules that predict further tokens; Q: groups of experts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moejax.moe import balance
from moejax.train.totals import Totals


def loss_metrics(totals: Totals) -> dict[str, float]:
    """Loss in nats a target. Of text, bits a byte and perplexity a token; of images, the share that
    is classified right (top-1 accuracy) and wrong. NaN if every step was skipped. ``head_z_loss``:
    the mean of log^2 Z over targets, Z the sum of the exponentials of the head's logits; without
    its weight.
    """
    found = _measure_loss(totals)
    if "log_z_squared" in totals:  # not in what earlier versions have stored
        found["head_z_loss"] = _divide(totals["log_z_squared"], totals["targets"])
    return found


def _divide(total: float, count: float) -> float:
    return total / count if count else math.nan


def _measure_loss(totals: Totals) -> dict[str, float]:
    of_images = "correct" in totals
    names = ("accuracy", "error_rate") if of_images else ("bits_per_byte", "perplexity")
    loss = _divide(totals["nats"], totals["targets"])
    if not math.isfinite(loss):
        return dict.fromkeys(("loss", *names), math.nan)
    if of_images:
        right = totals["correct"] / totals["targets"]
        return {"loss": loss, "accuracy": right, "error_rate": 1 - right}
    return {
        "loss": loss,
        "bits_per_byte": totals["nats"] / math.log(2) / max(1, totals["text_bytes"]),
        "perplexity": math.exp(min(loss, 700.0)),
    }


def ahead_metrics(totals: Totals) -> dict[str, float]:
    """Of each module that predicts a further token, by its number: ``next_1_loss``, in nats a
    target, without its weight. In evaluations ``next_1_accepted``, too: the share of the targets
    for which its most probable token is that of the model itself, which has seen the tokens
    between; NaN for none.
    """
    found = {}
    for number, targets in enumerate(totals.get("ahead_targets_P", ()), start=1):
        for name, sums in (("loss", "ahead_nats_P"), ("accepted", "ahead_accepted_P")):
            if sums in totals:
                share = totals[sums][number - 1] / targets if targets else math.nan
                found[f"next_{number}_{name}"] = float(share)
    return found


def share_metrics(totals: Totals, names: Sequence[str]) -> dict[str, float]:
    """Of a mixture: the share of each source in the sequences that were trained on, as
    ``share/NAME``; NaN if every step was skipped.
    """
    if "rows_J" not in totals:
        return {}
    whole = totals["rows_J"].sum()
    return {
        f"share/{name}": _divide(float(rows), float(whole))
        for name, rows in zip(names, totals["rows_J"], strict=True)
    }


def source_metrics(totals: Mapping[str, Totals | None]) -> dict[str, float]:
    """The losses of each source of a mixture, from its totals by name: ``loss/NAME``,
    ``bits_per_byte/NAME``; nothing without a mixture.
    """
    return {
        f"{key}/{name}": value
        for name, own in totals.items()
        if name and own is not None
        for key, value in _measure_loss(own).items()
        if key != "perplexity"
    }


def describe_sources(line: dict[str, Any]) -> str:
    """What a line tells of the sources of a mixture, in words: ``code 70.0 %``; empty without."""
    found = []
    for key, value in line.items():
        metric, _, name = key.partition("/")
        if metric == "share":
            found.append(f"{name} {value:.1%}")
        elif metric == "bits_per_byte" and name:
            found.append(f"{name} {value:.4f} bits/byte")
    return ", ".join(found)


def count_evaluated(totals: Totals) -> dict[str, int]:
    """How many images, or bytes of text, were evaluated."""
    if "correct" in totals:
        return {"images": totals["targets"]}
    return {"text_bytes": totals["text_bytes"]}


def describe_quality(line: dict[str, Any]) -> str:
    """The quality that a line of validation tells, in words."""
    if "accuracy" in line:
        return f"{line['accuracy']:.2%} of {line['images']:,} images right, loss {line['loss']:.4f}"
    bits, perplexity = line["bits_per_byte"], line["perplexity"]
    return f"{bits:.4f} bits/byte, perplexity {perplexity:.3f} a token"


def describe_accuracy(line: dict[str, Any]) -> str:
    """How many images were classified right: ``98.06% (353 of 360 images)``."""
    count = round(line["accuracy"] * line["images"])
    return f"{line['accuracy']:.2%} ({count:,} of {line['images']:,} images)"


def describe_result(line: dict[str, Any]) -> str:
    """The last line that a training prints."""
    if "accuracy" in line:
        return f"validation accuracy: {describe_accuracy(line)}"
    return (
        f"validation bits per byte: {line['bits_per_byte']:.4f}"
        f" ({line['text_bytes']:,} bytes held out, perplexity {line['perplexity']:.3f} a token)"
    )


def router_metrics(totals: Totals, num_experts: int) -> dict[str, float]:
    """Balance and drops; nothing for a dense model.

    ``balance_loss``, ``z_loss`` and the other losses in use: without their weights, mean over steps
    and routed layers. ``max_violation``: largest load over the mean, less 1, of each batch, mean
    over layers and batches; ``max_violation_global``: of all of them together (Wang et al. 2024,
    MaxVio_batch and MaxVio_global). ``dropped_fraction``: share of all choices that got no slot.
    ``dead_experts``: experts, over all layers, that no token asked for in the whole interval.
    ``router_entropy``: nats a token, mean over layers. ``experts_per_token``: choices of experts
    that compute (the first ``num_experts``), before capacity. ``bad_logits``: tokens, over all
    layers, that no expert saw because a logit was not finite. ``expert_groups_per_token``, where
    experts have groups: in how many of them a token's choices lie, mean over layers. Of a router
    with ReLUs that a loss closes: ``sparsity``, the share of scores that are 0, and
    ``sparsity_weight``, the loss's coefficient, mean over steps, where it moves.
    """
    if "asked_LE" not in totals:
        return {}
    asked_LE, seated_LE, parts = totals["asked_LE"], totals["seated_LE"], max(1, totals["parts"])
    tokens_L = np.maximum(totals["routed_L"], 1)
    groups: dict[str, float] = {}
    if "sent_LQ" in totals:
        groups["expert_groups_per_token"] = float(np.mean(totals["sent_LQ"].sum(1) / tokens_L))
    if "open_LE" in totals:
        open_LE = totals["open_LE"]
        groups["sparsity"] = 1 - float(np.mean(open_LE / tokens_L[:, None]))
    if "sparsity_weight" in totals:
        groups["sparsity_weight"] = totals["sparsity_weight"] / parts
    return {
        **groups,
        **{name: total / parts for name, total in totals.items() if name.endswith("_loss")},
        "dropped_fraction": balance.dropped_fraction(asked_LE, seated_LE),
        "max_violation": totals["max_violation"] / parts,
        "max_violation_global": float(balance.max_violation(asked_LE).mean()),
        "dead_experts": balance.dead_experts(asked_LE),
        "router_entropy": float(np.mean(totals["entropy_L"] / tokens_L)),
        "experts_per_token": float(np.mean(asked_LE[:, :num_experts].sum(1) / tokens_L)),
        "bad_logits": int(totals["bad_L"].sum()),
    }
