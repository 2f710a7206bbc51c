"""The result of a run, in words and a few numbers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moejax.config.measure import BITS_PER_BYTE, Measure
from moejax.runs.metric_lines import column, last, number
from moejax.runs.records import Run
from moejax.runtime.number_words import duration, four_digits, short


def verdict(run: Run) -> str:
    """One line in plain words: how good the model is, and how long it trained."""
    lines = run.validation or run.train
    if not lines:
        return "No metrics have been logged yet."
    measure, kind = run.measure, "held-out" if run.validation else "training"
    if math.isfinite(last(lines, measure.key)):
        quality = _describe_quality(lines, measure, kind)
    else:
        quality = f"Diverged: the last loss on {kind} {measure.material} is not finite"
    last_step = max(line["step"] for line in run.train + run.validation)
    if lines[-1]["step"] < last_step:
        quality += f", measured at step {lines[-1]['step']:,.0f},"

    def value(line: dict[str, Any]) -> float:
        return _value_or_infinity(line, measure)

    best = min((line for line in lines if value(line) < math.inf), key=value, default=lines[-1])
    words = f"{quality} after {_describe_effort(run)}."
    if best["step"] != lines[-1]["step"] and run.validation:
        words += f" It was best at step {best['step']:,.0f}, with {_describe_value(best, measure)}."
    return words


def _describe_quality(lines: Sequence[dict[str, Any]], measure: Measure, kind: str) -> str:
    if measure is BITS_PER_BYTE:
        quality = f"{last(lines, measure.key):.4g} bits per byte of {kind} text"
        return quality + f" (perplexity {four_digits(last(lines, 'perplexity'))} per token)"
    images = last(lines, "images") if kind == "held-out" else math.nan
    count = f"{images:,.0f} " if math.isfinite(images) else ""
    return f"{last(lines, 'accuracy'):.2%} of {count}{kind} images right (top-1 accuracy)"


def _describe_value(line: dict[str, Any], measure: Measure) -> str:
    if measure is BITS_PER_BYTE:
        return f"{number(line[measure.key]):.4g} bits per byte"
    return measure.words(number(line[measure.key]))


def list_notes(run: Run) -> list[str]:
    """What a reader should know before trusting the curves."""
    found = []
    known = [line for line in run.train + run.validation if run.measure.key in line]
    bad = [line["step"] for line in known if _value_or_infinity(line, run.measure) == math.inf]
    if bad:
        found.append(
            f"The logged loss was not finite {len(bad)} times, first at step {min(bad):,.0f}."
        )
    skipped = last(run.train, "skipped_updates")
    if skipped > 0:
        found.append(f"{skipped:,.0f} updates were skipped because they were not finite.")
    found += [_describe_alarm(*told) for told in _collect_alarms(run.train).items()]
    dead = last(run.train, "dead_experts")
    if dead > 0:
        experts = "expert was" if dead == 1 else "experts were"
        found.append(f"At the end {dead:,.0f} {experts} dead: chosen by no token.")
    if (run.train or run.validation) and not run.routed:
        found.append("This model is dense: it has no routed layers, so no figures about routing.")
    return found + [f"{damage[0].upper()}{damage[1:]}." for damage in run.damage]


def _collect_alarms(lines: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, str]]]:
    """Steps and words of each kind of alarm that training gave."""
    found: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        for alarm in line.get("alarms") or ():
            found.setdefault(alarm["kind"], []).append((line["step"], alarm["words"]))
    return found


def _describe_alarm(kind: str, told: list[tuple[int, str]]) -> str:
    (step, words), times = told[-1], len(told)
    often = f", told {times} times since step {told[0][0]:,.0f}" if times > 1 else ""
    return f"Alarm ({kind}) at step {step:,.0f}{often}: {words}"


def key_numbers(run: Run) -> list[tuple[str, str, str]]:
    """The few numbers that a reader wants first: (label, value, remark) each."""
    summary = run.summary
    total, active = summary.get("parameters_total"), summary.get("parameters_active")
    unit = run.measure.unit
    flops, (_, speed) = summary.get("flops_per_token"), column(run.train, f"{unit}_per_second")
    right, items = last(run.validation, "accuracy"), []
    if math.isfinite(right):
        items.append(("Top-1 accuracy", f"{right:.2%}", "of held-out images"))
    if isinstance(total, int | float):
        items.append(("Parameters", short(total, "kMBT"), "in total"))
    if isinstance(active, int | float):
        known = total if isinstance(total, int | float) else 0
        share = f"{active / known:.0%} of the total" if known else "a token"
        items.append(("Active parameters", short(active, "kMBT"), share))
    if isinstance(flops, int | float):
        items.append(("FLOPs a token", short(flops), "forward and backward"))
    if np.isfinite(speed).any():
        items.append(
            (f"{unit.title()} a second", short(float(np.nanmedian(speed)), "kMBT"), "median")
        )
    _, used = column(run.train, "mfu")
    if np.isfinite(used).any():
        items.append(("MFU", f"{np.nanmedian(used):.1%}", "of the peak, median"))
    return items + (_routing_numbers(run) if run.routed else [])


def _routing_numbers(run: Run) -> list[tuple[str, str, str]]:
    known = {key: last(run.train, key) for key in ("dropped_fraction", "dead_experts")}
    held_out = last(run.validation, "dropped_fraction")
    remark = "of choices, at the end"
    if math.isfinite(held_out):
        remark = f"of choices; {held_out:.2%} held out"
    experts = f"of {run.load.last_asked_LE.size:,}, at the end" if run.load else "at the end"
    violation = last(run.train, "max_violation")
    items = [
        ("Dropped", f"{known['dropped_fraction']:.2%}", remark),
        ("Dead experts", f"{known['dead_experts']:.0f}", experts),
        ("Max violation", f"{violation:.3g}", "fullest over mean, less 1"),
    ]
    finite = (*known.values(), violation)
    return [item for item, value in zip(items, finite, strict=True) if math.isfinite(value)]


def _value_or_infinity(line: dict[str, Any], measure: Measure) -> float:
    """The measure of a line, or infinity if it is unknown, so that ``min`` works."""
    value = number(line.get(measure.key))
    return value if math.isfinite(value) else math.inf


def _describe_effort(run: Run) -> str:
    steps = max(line["step"] for line in run.train + run.validation)
    count, seconds = last(run.train, run.measure.unit), last(run.train, "seconds")
    parts = [f"{steps:,.0f} steps"]
    parts += [f"{short(count, 'kMBT')} {run.measure.unit}"] if math.isfinite(count) else []
    parts += [f"{duration(seconds)} of training"] if math.isfinite(seconds) else []
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
