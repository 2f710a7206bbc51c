"""The tables of a scaling study, from its data as plain values (``findings_json.to_json``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moejax.config.measure import Measure
from moejax.runtime.number_words import duration, short

TERA = 1e12
DASH = "–"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, and what its columns mean. A cell may have several lines."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: str


def list_tables(data: Mapping[str, Any], measure: Measure) -> list[Table]:
    """All tables that have a row."""
    tables = (
        tell_leads(data),
        tell_predictions(data, measure),
        tell_laws(data),
        tell_advice(data, measure),
        tell_experts(data),
    )
    return [table for table in tables if table.rows]


def tell_leads(data: Mapping[str, Any]) -> Table:
    """Where routed frontiers begin to lie below the dense one."""
    shares = [one["share"] for of in data["leads_from"].values() for one in of.values()]
    dash = " A dash: no training has a second seed, so that nobody knows what a seed makes out."
    return Table(
        title="Where routing pays",
        header=("form, cost", "leads from", "interval", "share"),
        rows=tuple(
            (f"{form}, {name}", write_lead(one, name), write_interval(one, name), _percent(share))
            for name, crossings in data["leads_from"].items()
            for form, one in crossings.items()
            for share in [one["share"]]
        ),
        words="From which cost on the frontier of a routed form lies below the dense one, up to the"
        " largest cost that both have. Interval: 95 % of resampled losses; share: of those, in how"
        " many the routed form is ahead at the end." + (dash if None in shares else ""),
    )


def write_lead(one: Mapping[str, Any], name: str) -> str:
    """From which cost on, in words."""
    return "no costs in common" if one["at"] is None else write_cost(one["at"], name)


def write_cost(value: float | str, name: str) -> str:
    """A cost in words, also 0, and "never", which an infinite one is among plain values."""
    if isinstance(value, str):
        return value
    if value == 0:
        return "all costs"
    return duration(value) if name == "seconds" else f"{value / TERA:.2g} TFLOP"


def write_interval(one: Mapping[str, Any], name: str) -> str:
    """An interval of costs in words; a dash if there is none."""
    if one["low"] is None:
        return DASH
    ends = [write_cost(one[end], name) for end in ("low", "high")]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def tell_predictions(data: Mapping[str, Any], measure: Measure) -> Table:
    """What is held out: predicted, and what it came to."""
    return Table(
        title="Predicted, then trained",
        header=("held out", "predicted", "interval", "measured", "error", "inside"),
        rows=tuple(_write_prediction(one, measure) for one in data["held_out"]),
        words="Trainings that no law was fitted to: what the law says, the interval of 95 % for one"
        " training, and what came out.",
    )


def _write_prediction(one: Mapping[str, Any], measure: Measure) -> tuple[str, ...]:
    predicted, loss = one["predicted"], one["loss"]
    low, high = predicted["low"], predicted["high"]
    return (
        f"{one['shape']}, {one['steps']:,} steps",
        measure.digits(predicted["loss"]),
        f"{measure.digits(low)} to {measure.digits(high)}",
        *(
            ("not trained", DASH, DASH)
            if loss is None
            else (
                measure.digits(loss),
                f"{one['error']:+.1%}",
                "yes" if low <= loss <= high else "no",
            )
        ),
    )


def tell_laws(data: Mapping[str, Any]) -> Table:
    """The coefficients of the laws, or why there are none."""
    return Table(
        title="Laws",
        header=("law", "trainings", "error", "coefficients, and their intervals"),
        rows=tuple(_write_law(name, fit) for name, fit in data["fits"].items()),
        words="Krajewski et al. 2024: L = c + (g / G^gamma + a) / N^alpha + b / D^beta. Clark et"
        " al. 2022: log10 L = a log10 N + b log10 E' + c log10 N log10 E' + d, E' between E_start"
        " and E_max. N: parameters that a token meets, without embedding and routers; D: tokens; E:"
        " experts over those that a token meets; G: those that it meets. Intervals: 95 % of a"
        f" residual bootstrap. {' '.join(data['notes'])}".rstrip(),
    )


def _write_law(name: str, fit: Mapping[str, Any]) -> tuple[str, ...]:
    if not fit["fitted"]:
        return name, DASH, DASH, f"not fitted: {fit['why']}".replace(": ", ":\n")
    parts = [
        f"{part} {_three(value)} ({write_ends(*fit['intervals'][part])})"
        for part, value in fit["coefficients"].items()
    ]
    return name, f"{fit['trainings']}", f"{fit['error']:.2%}", "\n".join(parts)


def write_ends(low: float, high: float) -> str:
    """The interval of a coefficient; one that the law takes from another has none."""
    return "given" if low == high else f"{_three(low)} to {_three(high)}"


def _three(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1e6 else f"{value:.2e}"


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{value:.0%}"


def tell_advice(data: Mapping[str, Any], measure: Measure) -> Table:
    """What to train at a budget."""
    return Table(
        title="What to train at a budget",
        header=("budget", "shape", "steps", measure.name, "sure", "routed", "routed to dense"),
        rows=tuple(
            (
                duration(one["budget"]),
                one["shape"],
                f"{one['steps']:,}" + " (longer than trained)" * (not one["inside"]),
                measure.digits(one["loss"]),
                _percent(one["sure"]),
                _percent(one["routed"]),
                "{:+.1%} to {:+.1%}".format(*one["gain"]),
            )
            for one in data["advice"]
        ),
        words="What the laws take of the shapes that were trained, by the times of their steps."
        " Sure: the share of the bootstrap's draws that take it; routed: those that take any routed"
        " shape; last, the best routed loss over the best dense one, less 1. Beyond the budgets"
        " that were trained it is an extrapolation.",
    )


def tell_experts(data: Mapping[str, Any]) -> Table:
    """What more experts give, in loss and in time."""
    found = [one for of in data["experts"].values() for one in of]
    expansions = sorted({E for one in found for E in one["expansions"]})
    ends = "; ".join(
        f"{name}: more experts help up to {_size(one['parameters'])} N ({_size(one['low'])} to"
        f" {_size(one['high'])})"
        for name, one in data["cutoffs"].items()
    )
    return Table(
        title="How many experts",
        header=("size", *(f"E {E:g}" for E in expansions), "best E"),
        rows=tuple(_write_experts(one, expansions) for one in found),
        words="By the law of Clark et al. at one number of tokens, and so at equal FLOPs: the loss"
        " over that of the dense twin, less 1, with the interval of 95 %, and how many times larger"
        " a dense model of that loss is. Not decided: the interval of the best has 0 in it. In"
        " time: what a step takes over a dense one, and the loss over that of a dense model that is"
        f" trained for the same time, by the law of dense models. {ends}.",
    )


def _write_experts(one: Mapping[str, Any], expansions: Sequence[float]) -> tuple[str, ...]:
    kept = {E: _write_gain(one, i) for i, E in enumerate(one["expansions"])}
    sure = one["gains"][one["expansions"].index(one["best"])][2] < 0
    return (
        f"{one['size']}, {one['tokens']:,} tokens",
        *(kept.get(E, DASH) for E in expansions),
        f"{one['best']:g}" if sure else "not decided",
    )


def _write_gain(one: Mapping[str, Any], i: int) -> str:
    """What an expansion gives, in lines."""
    lines = [_gain(one["gains"][i]), f"as {one['effective'][i]:.2f} N"]
    if one["timed_gains"][i][0] is not None:
        lines.append(f"in time {one['prices'][i]:.2f}x: {_gain(one['timed_gains'][i])}")
    return "\n".join(lines)


def _gain(gain: Sequence[float]) -> str:
    return "{:+.1%} ({:+.1%} to {:+.1%})".format(*gain)


def _size(value: float | None) -> str:
    """A number of parameters; null is one that is not finite."""
    if value is None or value > 1e15:
        return "any"
    return "none" if value < 1 else short(value)
