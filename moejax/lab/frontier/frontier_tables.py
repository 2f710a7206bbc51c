"""The tables of a scaling study, as sections of its page; empty ones are left out."""

import math
from collections.abc import Sequence
from typing import Any

from moejax.config.measure import Measure
from moejax.lab.frontier.advice import Experts
from moejax.lab.frontier.findings import Found
from moejax.lab.frontier.fitting import Fit, Unfitted
from moejax.lab.frontier.hulls import Crossing
from moejax.runs.pages import page
from moejax.runtime.number_words import duration, short

TERA = 1e12


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], words: str) -> str:
    if not rows:
        return ""
    intro = f'<p class="intro">{page.text(words)}</p>'
    return f"<section><h2>{page.text(title)}</h2>{page.table(header, rows)}{intro}</section>"


def tell_leads(found: Found) -> str:
    """Where routed frontiers begin to lie below the dense one."""
    rows = [
        (f"{form}, {name}", write_lead(one, name), write_interval(one, name), _percent(one.share))
        for name, crossings in found.crossings.items()
        for form, one in crossings.items()
    ]
    words = (
        "From which cost on the frontier of a routed form lies below the dense one, up to the"
        " largest cost that both have. Interval: 95 % of resampled losses; share: of those, in how"
        " many the routed form is ahead at the end. A dash: no training has a second seed, so that"
        " nobody knows what a seed makes out."
    )
    return _section(
        "Where routing pays", ("form, cost", "leads from", "interval", "share"), rows, words
    )


def write_lead(one: Crossing, name: str) -> str:
    """From which cost on, in words."""
    if math.isnan(one.at):
        return "no costs in common"
    return write_cost(one.at, name)


def write_cost(value: float, name: str) -> str:
    """A cost in words, also 0 and infinity of ``find_lead``."""
    if value == 0:
        return "all costs"
    if value == math.inf:
        return "never"
    return duration(value) if name == "seconds" else f"{value / TERA:.2g} TFLOP"


def write_interval(one: Crossing, name: str) -> str:
    """An interval of costs in words; a dash if there is none."""
    if math.isnan(one.low):
        return "–"
    ends = [write_cost(value, name) for value in (one.low, one.high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def tell_predictions(found: Found, measure: Measure) -> str:
    """What is held out: predicted, and what it came to."""
    rows = [
        (
            f"{one.shape}, {one.steps:,} steps",
            measure.digits(one.predicted.loss),
            f"{measure.digits(one.predicted.low)} to {measure.digits(one.predicted.high)}",
            "not trained" if one.loss is None else measure.digits(one.loss),
            "–" if one.error is None else f"{one.error:+.1%}",
            _inside(one.loss, one.predicted.low, one.predicted.high),
        )
        for one in found.held_out
    ]
    words = (
        "Trainings that no law was fitted to: what the law says, the interval of 95 % for one"
        " training, and what came out."
    )
    header = ("held out", "predicted", "interval", "measured", "error", "inside")
    return _section("Predicted, then trained", header, rows, words)


def _inside(loss: float | None, low: float, high: float) -> str:
    return "–" if loss is None else "yes" if low <= loss <= high else "no"


def tell_laws(found: Found) -> str:
    """The coefficients of the laws, or why there are none."""
    rows = []
    for name, fit in found.fits.items():
        if isinstance(fit, Unfitted):
            rows.append((name, "–", "–", f"not fitted: {fit.why}".replace(": ", ":\n")))
            continue
        parts = [
            f"{part} {_three(value)} ({write_ends(fit, part)})"
            for part, value in fit.coefficients.items()
        ]
        rows.append((name, f"{len(fit.rows)}", f"{fit.error:.2%}", "\n".join(parts)))
    words = (
        "Krajewski et al. 2024: L = c + (g / G^gamma + a) / N^alpha + b / D^beta. Clark et al."
        " 2022: log10 L = a log10 N + b log10 E' + c log10 N log10 E' + d, E' between E_start and"
        " E_max. N: parameters that a token meets, without embedding and routers; D: tokens; E:"
        " experts over those that a token meets; G: those that it meets. Intervals: 95 % of a"
        f" residual bootstrap. {' '.join(found.notes)}"
    )
    header = ("law", "trainings", "error", "coefficients, and their intervals")
    return _section("Laws", header, rows, words)


def write_ends(fit: Fit, part: str) -> str:
    """The interval of a coefficient; one that the law takes from another has none."""
    low, high = fit.intervals[part]
    return "given" if low == high else f"{_three(low)} to {_three(high)}"


def _three(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1e6 else f"{value:.2e}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0%}"


def tell_advice(found: Found, measure: Measure) -> str:
    """What to train at a budget."""
    rows = [
        (
            duration(one.budget),
            one.shape,
            f"{one.steps:,}" + " (longer than trained)" * (not one.inside),
            measure.digits(one.loss),
            _percent(one.sure),
            _percent(one.routed),
            f"{one.gain[0]:+.1%} to {one.gain[1]:+.1%}",
        )
        for one in found.choices
    ]
    words = (
        "What the laws take of the shapes that were trained, by the times of their steps. Sure: the"
        " share of the bootstrap's draws that take it; routed: those that take any routed shape;"
        " last, the best routed loss over the best dense one, less 1. Beyond the budgets that were"
        " trained it is an extrapolation."
    )
    header = ("budget", "shape", "steps", measure.name, "sure", "routed", "routed to dense")
    return _section("What to train at a budget", header, rows, words)


def tell_experts(found: Found) -> str:
    """What more experts give, in loss and in time."""
    rows = []
    for of in found.experts.values():
        for one in of:
            kept = {E: _write_gain(one, i) for i, E in enumerate(one.expansions)}
            sure = one.gains[one.expansions.index(one.best)][2] < 0
            best = f"{one.best:g}" if sure else "not decided"
            rows.append((f"{one.size}, {one.tokens:,} tokens", kept, best))
    expansions = sorted({E for _, kept, _ in rows for E in kept})
    table = [(name, *(kept.get(E, "–") for E in expansions), best) for name, kept, best in rows]
    ends = "; ".join(
        f"{name}: more experts help up to {_size(at)} N ({_size(low)} to {_size(high)})"
        for name, (at, low, high) in found.cutoffs.items()
    )
    words = (
        "By the law of Clark et al. at one number of tokens, and so at equal FLOPs: the loss over"
        " that of the dense twin, less 1, with the interval of 95 %, and how many times larger a"
        " dense model of that loss is. Not decided: the interval of the best has 0 in it. In time:"
        " what a step takes over a dense one, and the loss over that of a dense model that is"
        f" trained for the same time, by the law of dense models. {ends}."
    )
    header = ("size", *(f"E {E:g}" for E in expansions), "best E")
    return _section("How many experts", header, table, words)


def _write_gain(one: Experts, i: int) -> str:
    """What an expansion gives, in lines."""
    lines = [_gain(one.gains[i]), f"as {one.effective[i]:.2f} N"]
    if not math.isnan(one.timed_gains[i][0]):
        lines.append(f"in time {one.prices[i]:.2f}x: {_gain(one.timed_gains[i])}")
    return "\n".join(lines)


def _gain(gain: tuple[float, float, float]) -> str:
    at, low, high = gain
    return f"{at:+.1%} ({low:+.1%} to {high:+.1%})"


def _size(value: float) -> str:
    if value > 1e15:
        return "any"
    return "none" if value < 1 else short(value)
