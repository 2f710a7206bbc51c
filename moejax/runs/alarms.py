"""Alarms: what goes wrong in a run, in plain words, with what usually helps.

An alarm depends only on the lines of training metrics and on the load of the last intervals, so
that a resumed run raises the same alarms as one that was never stopped.

Letters: I: intervals.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moejax.config.config import Config
from moejax.runs.metric_lines import number
from moejax.runtime.number_words import count

PATIENCE = 3
"""For so many intervals in a row balance or drops must be bad: every router begins unevenly."""
SILENCE = 10
"""For so many intervals an alarm of the same kind is not repeated."""
STARVED = 0.01
"""An expert with less than this part of its fair share counts as dead."""
FEWEST_CHOICES = 100
"""Mean choices of an expert in an interval, below which no expert is called dead."""
FEWEST_EFFECTIVE = 0.75
"""A router has collapsed if its effective experts are less than this part of all experts."""
MOST_DROPPED = 0.2
"""Largest share of dropped choices without an alarm."""
FALLS = 0.8
"""Drops that fall below this part of themselves within ``PATIENCE`` intervals need no alarm."""
MOST_LOGITS = 10.0
"""How far the root mean squared log-sum-exp of the router's logits may be above that of zeros."""
SPIKE = 0.3
"""Nats a token: a loss so far above the lowest one is a spike, if the loss hardly moves."""


@dataclass(frozen=True)
class Recent:
    """What alarms look at: all lines of metrics so far, and the loads of the last intervals."""

    lines: Sequence[dict[str, Any]]
    asked_ILE: Sequence[np.ndarray]
    """Choices of each expert [layers, experts] in the last ``PATIENCE`` intervals."""
    layers: Sequence[int]
    """Index in the model of each routed layer."""

    def lasts(self, condition: Callable[[dict[str, Any]], bool]) -> bool:
        """Whether the condition holds in each of the last ``PATIENCE`` intervals."""
        lines = self.lines[-PATIENCE:]
        return len(lines) == PATIENCE and all(condition(line) for line in lines)


def find_alarms(recent: Recent, config: Config) -> list[dict[str, str]]:
    """The alarms of the last interval: ``kind``, and ``words`` for people."""
    told = {
        alarm["kind"]
        for line in recent.lines[-1 - SILENCE : -1]
        for alarm in line.get("alarms", ())
    }
    found = ((kind, of(recent, config)) for kind, of in KINDS.items() if kind not in told)
    return [{"kind": kind, "words": words} for kind, words in found if words]


def effective_experts(asked_LE: np.ndarray) -> np.ndarray:
    """For each layer, exp of the entropy of the load, divided by the number of experts: 1 if all
    experts have the same load, 1 / E if one has all of it, and 1 without any load.
    """
    total_L1 = asked_LE.sum(-1, keepdims=True)
    share_LE = np.divide(asked_LE, total_L1, out=np.zeros(asked_LE.shape), where=total_L1 > 0)
    entropy_L = -(share_LE * np.log(np.where(share_LE > 0, share_LE, 1))).sum(-1)
    return np.where(total_L1[:, 0] > 0, np.exp(entropy_L) / asked_LE.shape[-1], 1.0)


def find_dead(asked_LE: np.ndarray) -> np.ndarray:
    """Which experts had almost no choices; none, if there were too few choices to tell."""
    fair_L1 = asked_LE.mean(-1, keepdims=True)
    return (asked_LE < STARVED * fair_L1) & (fair_L1 >= FEWEST_CHOICES)


def _tell_dead(recent: Recent, config: Config) -> str | None:
    if len(recent.asked_ILE) < PATIENCE:
        return None
    dead_LE = np.all([find_dead(asked_LE) for asked_LE in recent.asked_ILE], axis=0)
    if not dead_LE.any():
        return None
    where = [
        f"layer {recent.layers[i]}: {_list_experts(np.flatnonzero(dead_LE[i]).tolist())}"
        for i in np.flatnonzero(dead_LE.any(1))[:4]
    ]
    more = dead_LE.any(1).sum() - len(where)
    where += [f"and in {more} more layers"] if more else []
    experts = "1 expert is" if dead_LE.sum() == 1 else f"{dead_LE.sum()} experts are"
    places = "; ".join(where)
    return f"{experts} dead, chosen by next to no token ({places}). {_advise_balance(config)}"


def _list_experts(experts: Sequence[int], most: int = 6) -> str:
    more = f" and {len(experts) - most} more" if len(experts) > most else ""
    return ", ".join(map(str, experts[:most])) + more


def _tell_collapse(recent: Recent, config: Config) -> str | None:
    if len(recent.asked_ILE) < PATIENCE:
        return None
    part_IL = np.array([effective_experts(asked_LE) for asked_LE in recent.asked_ILE])
    worst = int(part_IL.max(0).argmin())  # the one that was never better
    if part_IL[:, worst].max() >= FEWEST_EFFECTIVE:
        return None
    experts = recent.asked_ILE[-1].shape[1]
    used = part_IL[-1, worst] * experts
    return (
        f"the router of layer {recent.layers[worst]} is collapsing: its load is as uneven as if"
        f" {used:.3g} of {experts} experts did all. {_advise_balance(config)}"
    )


def _advise_balance(config: Config) -> str:
    """What helps against uneven load, given the balancing in use."""
    moe, at = config.model.moe, "--model.moe.balance"
    if not moe.built_router.learned:
        return f"--model.moe.router {moe.router} does not learn: another router would."
    if moe.balance.bias_update != "none":
        rate = f"{at}.bias-rate (now {moe.balance.bias_rate:g})"
        return f"A larger {rate} would even it out faster, or {at}.loss-weight 0.01 beside it."
    if not moe.balance.loss_weight:
        return f"Nothing balances it: {at}.loss-weight 0.01, or {at}.bias-update sign."
    return (
        f"Usually a larger {at}.loss-weight helps (now {moe.balance.loss_weight:g}), or"
        f" {at}.bias-update sign."
    )


def _tell_drops(recent: Recent, config: Config) -> str | None:
    if not recent.lasts(lambda line: number(line.get("dropped_fraction")) > MOST_DROPPED):
        return None
    first, *_, share = (line["dropped_fraction"] for line in recent.lines[-PATIENCE:])
    if share < FALLS * first:
        return None
    factor = config.model.moe.capacity_factor
    flag, larger = "--model.moe.capacity-factor", max(1.25, 1.25 * (factor or 1))
    return (
        f"{share:.0%} of all choices are dropped. There is more room with {flag} {larger:.3g} (now"
        f" {factor}), or None, which drops nothing; an even load needs less."
    )


def _tell_logits(recent: Recent, config: Config) -> str | None:
    z_loss = number(recent.lines[-1].get("z_loss"))
    size, still = math.sqrt(max(z_loss, 0.0)), math.log(config.model.moe.num_choices)
    if not size > still + MOST_LOGITS:
        return None
    return (
        f"router logits grow: their log-sum-exp is about {size:.3g}, and {still:.2g} where none is"
        f" preferred. --model.moe.balance.z-loss-weight 0.001 holds them back (now"
        f" {config.model.moe.balance.z_loss_weight:g}), or a lower --optim.router-learning-rate."
    )


def _tell_spike(recent: Recent, config: Config) -> str | None:
    losses = np.array([number(line.get("loss")) for line in recent.lines])
    now, before = losses[-1], losses[:-1][np.isfinite(losses[:-1])]
    if not before.size or not math.isfinite(now):
        return None
    moves = np.abs(np.diff(before[-SILENCE:]))
    usual = float(np.median(moves)) if moves.size else 0.0
    if now <= before.min() + max(SPIKE, 6 * usual):
        return None
    return (
        f"the loss has jumped to {now:.4g} nats a token, from {before.min():.4g} at best."
        f" {_advise_calm(config)}"
    )


def _advise_calm(config: Config) -> str:
    optim = config.optim
    return (
        f"Usually a lower --optim.learning-rate helps (now {optim.learning_rate:g}), a longer"
        f" --optim.warmup-fraction (now {optim.warmup_fraction:g}) or a smaller --optim.clip-norm"
        f" (now {'None' if optim.clip_norm is None else f'{optim.clip_norm:g}'})."
    )


def _tell_not_finite(recent: Recent, config: Config) -> str | None:
    line, *earlier = reversed(recent.lines)
    skipped = line.get("skipped_updates", 0)
    skipped -= earlier[0].get("skipped_updates", 0) if earlier else 0
    tokens = line.get("bad_logits", 0)
    found = [f"{count(skipped, 'update', 'was', 'were')} skipped"] if skipped > 0 else []
    found += [f"{count(tokens, 'token')} had router logits"] if tokens > 0 else []
    return f"{' and '.join(found)} that were not finite. {_advise_calm(config)}" if found else None


KINDS: dict[str, Callable[[Recent, Config], str | None]] = {
    "dead experts": _tell_dead,
    "collapse": _tell_collapse,
    "drops": _tell_drops,
    "router logits": _tell_logits,
    "loss spike": _tell_spike,
    "not finite": _tell_not_finite,
}
"""The kinds of alarm; each function returns the words of its alarm, or None."""
