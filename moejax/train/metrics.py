"""From the sums of steps to the lines of ``metrics.jsonl``; on the host, in float64."""

import math
from typing import Any

import jax
import numpy as np

from moejax.moe import balance
from moejax.train.step import BatchReport, ClassCounts, StepReport

Totals = dict[str, Any]
"""Sums over steps or batches: numbers, and arrays by routed layer (and expert)."""


def totals_of_step(report: StepReport) -> Totals:
    """One training step's sums, fetched from the devices. Those of a skipped step count for
    nothing: one of them would make a whole interval's means infinite. Skipped steps are counted,
    and so are their tokens with bad logits.
    """
    fetched = jax.device_get(_wanted(report.batch) | {"gradient_norm": report.gradient_norm})
    totals = _totals(fetched) | {"gradient_norm": float(fetched["gradient_norm"])}
    if math.isfinite(totals["nats"]) and math.isfinite(totals["gradient_norm"]):
        return totals
    kept = {"bad_L": totals["bad_L"]} if "bad_L" in totals else {}
    nothing = {k: np.zeros_like(v) if isinstance(v, np.ndarray) else 0 for k, v in totals.items()}
    return nothing | kept


def totals_of_batch(report: BatchReport) -> Totals:
    """One batch's sums, fetched from the devices; ``parts`` counts batches."""
    return _totals(jax.device_get(_wanted(report)))


def _wanted(report: BatchReport) -> dict[str, jax.Array]:
    """What is looked at: each array costs a moment of every step to fetch."""
    sums, router = report.sums, report.sums.router
    wanted = {"nats": sums.nats, "targets": sums.targets}
    counted = {"text_bytes": sums.text_bytes, "correct": sums.correct}
    wanted |= {name: count for name, count in counted.items() if count is not None}
    if router is None:
        return wanted
    optional = {"sent_LQ": router.sent_BQ, "asked_LW": router.asked_BW}
    optional["seated_LW"] = router.seated_BW
    wanted |= {name: sums for name, sums in optional.items() if sums is not None}
    return wanted | {
        "asked_LE": router.asked_BE,
        "seated_LE": router.seated_BE,
        "routed_L": router.tokens_B,
        "bad_L": router.bad_B,
        "entropy_L": router.entropy_B,
        "log_z_squared_L": router.log_z_squared_B,
        "max_violation": report.max_violation,
        **report.losses,
    }


def _totals(fetched: dict[str, np.ndarray]) -> Totals:
    """Fetched values in the types that add up exactly."""
    counts = {"asked_LE", "seated_LE", "asked_LW", "seated_LW", "bad_L"}
    totals: Totals = {"parts": 1}
    for name, value in fetched.items():
        if name in ("targets", "text_bytes", "correct"):
            totals[name] = int(value)
        elif name in counts:
            totals[name] = np.rint(value).astype(np.int64)
        else:
            totals[name] = value.astype(np.float64) if value.ndim else float(value)
    return totals


def add(one: Totals | None, other: Totals) -> Totals:
    """The totals of both."""
    return other if one is None else {name: one[name] + other[name] for name in one}


def to_json(totals: Totals | None) -> dict | None:
    """Totals as JSON, exactly."""
    if totals is None:
        return None
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in totals.items()}


def from_json(totals: dict | None) -> Totals | None:
    """The inverse of ``to_json``."""
    if totals is None:
        return None
    return {k: np.asarray(v) if isinstance(v, list) else v for k, v in totals.items()}


def add_counts(
    one: dict[str, np.ndarray] | None, counts: ClassCounts | None
) -> dict[str, np.ndarray] | None:
    """Counts by class of one more batch of images; None for text."""
    if counts is None:
        return None
    fetched = {
        k: np.rint(v).astype(np.int64)
        for k, v in vars(jax.device_get(counts)).items()
        if v is not None
    }
    return fetched if one is None else {name: one[name] + fetched[name] for name in fetched}


def loss_metrics(totals: Totals) -> dict[str, float]:
    """Loss in nats a target. Of text, bits a byte and perplexity a token; of images, the share that
    was sorted right (top-1 accuracy) and wrong. NaN if all was skipped.
    """
    of_images = "correct" in totals
    names = ("accuracy", "error_rate") if of_images else ("bits_per_byte", "perplexity")
    loss = totals["nats"] / totals["targets"] if totals["targets"] else math.nan
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


def size(totals: Totals) -> dict[str, int]:
    """How much was evaluated."""
    if "correct" in totals:
        return {"images": totals["targets"]}
    return {"text_bytes": totals["text_bytes"]}


def in_words(line: dict[str, Any]) -> str:
    """The quality in a line of validation."""
    if "accuracy" in line:
        return f"{line['accuracy']:.2%} of {line['images']:,} images right, loss {line['loss']:.4f}"
    bits, perplexity = line["bits_per_byte"], line["perplexity"]
    return f"{bits:.4f} bits/byte, perplexity {perplexity:.3f} a token"


def right(line: dict[str, Any]) -> str:
    """How many images were sorted right: ``98.06% (353 of 360 images)``."""
    count = round(line["accuracy"] * line["images"])
    return f"{line['accuracy']:.2%} ({count:,} of {line['images']:,} images)"


def result_in_words(line: dict[str, Any]) -> str:
    """The last line that a training prints."""
    if "accuracy" in line:
        return f"validation accuracy: {right(line)}"
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
    ``dead_experts``: experts, over all layers, that nobody asked for in the whole interval.
    ``router_entropy``: nats a token, mean over layers. ``experts_per_token``: choices of experts
    that compute (the first ``num_experts``), before capacity. ``bad_logits``: tokens, over all
    layers, that no expert saw because a logit was not finite. ``expert_groups_per_token``, where
    experts have groups: in how many of them a token's choices lie, mean over layers.
    """
    if "asked_LE" not in totals:
        return {}
    asked_LE, seated_LE, parts = totals["asked_LE"], totals["seated_LE"], max(1, totals["parts"])
    tokens_L = np.maximum(totals["routed_L"], 1)
    groups = {}
    if "sent_LQ" in totals:
        groups["expert_groups_per_token"] = float(np.mean(totals["sent_LQ"].sum(1) / tokens_L))
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
