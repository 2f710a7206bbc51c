"""From the sums of steps to the lines of ``metrics.jsonl``; on the host, in float64."""

import math
from typing import Any

import jax
import numpy as np

from moejax import balance
from moejax.train.step import StepReport, Sums, auxiliary_losses

Totals = dict[str, Any]
"""Sums over steps or batches: numbers, and arrays by routed layer (and expert)."""


def totals_of_step(report: StepReport) -> Totals:
    """One training step's sums, fetched from the devices."""
    report = jax.device_get(report)
    totals = totals_of_sums(report.sums, report.balance_loss_L, report.z_loss_L)
    return totals | {"gradient_norm": float(report.gradient_norm)}


def totals_of_batch(sums: Sums) -> Totals:
    """One validation batch's sums, fetched from the devices."""
    sums = jax.device_get(sums)
    # A batch of nothing but padding (the others' uneven end) counts for nothing.
    weight = 1 if float(sums.targets) > 0 else 0
    return {k: v * weight for k, v in totals_of_sums(sums, *auxiliary_losses(sums)).items()}


def totals_of_sums(sums: Sums, balance_L: Any, z_L: Any) -> Totals:
    """Host numbers of one step or batch; ``parts`` counts them."""
    totals = {
        "parts": 1,
        "nats": float(sums.nats),
        "targets": int(sums.targets),
        "text_bytes": int(sums.text_bytes),
    }
    if sums.router is None:
        return totals
    asked_LE = np.asarray(sums.router.asked_GE, np.float64)
    return totals | {
        "asked_LE": asked_LE.astype(np.int64),
        "seated_LE": np.asarray(sums.router.seated_GE).astype(np.int64),
        "routed_L": np.asarray(sums.router.tokens_G, np.float64),
        "entropy_L": np.asarray(sums.router.entropy_G, np.float64),
        "balance_loss": float(np.mean(balance_L)),
        "z_loss": float(np.mean(z_L)),
        "max_violation": float(np.max(balance.max_violation(asked_LE))),
    }


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


def loss_metrics(totals: Totals) -> dict[str, float]:
    """Loss in nats a token, bits a byte of text, and perplexity a token."""
    loss = totals["nats"] / max(1, totals["targets"])
    return {
        "loss": loss,
        "bits_per_byte": totals["nats"] / math.log(2) / max(1, totals["text_bytes"]),
        "perplexity": math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss,
    }


def router_metrics(totals: Totals) -> dict[str, float]:
    """Balance and drops; nothing for a dense model.

    ``balance_loss``, ``z_loss``: mean over steps and routed layers. ``max_violation``: the largest
    over the layers of a batch (Wang et al. 2024, MaxVio_batch), mean over batches.
    ``dropped_fraction``: share of all choices that got no slot. ``dead_experts``: experts, over all
    layers, that nobody asked for in the whole interval. ``router_entropy``: nats a token, mean over
    layers.
    """
    if "asked_LE" not in totals:
        return {}
    asked_LE, seated_LE = totals["asked_LE"], totals["seated_LE"]
    return {
        "balance_loss": totals["balance_loss"] / totals["parts"],
        "z_loss": totals["z_loss"] / totals["parts"],
        "dropped_fraction": float(balance.dropped_fraction(asked_LE, seated_LE)),
        "max_violation": totals["max_violation"] / totals["parts"],
        "dead_experts": int(balance.dead_experts(asked_LE)),
        "router_entropy": float(np.mean(totals["entropy_L"] / np.maximum(totals["routed_L"], 1))),
    }
