"""Numbers and times as short texts for people."""

import math
from collections.abc import Sequence


def short(value: float, units: str = "kMGT") -> str:
    """A number in about four characters: 950, 12.4k, 3.21M."""
    if not math.isfinite(value):
        return "not finite"
    value = float(f"{value:.3g}")
    power = min(int(math.log10(max(abs(value), 1)) // 3), len(units))
    return f"{value / 1000**power:.3g}{units[power - 1] if power else ''}"


def count(number: float, noun: str, one: str = "", many: str = "") -> str:
    """A number of things, with the verb for one or for many: `1 update was`, `3 updates were`."""
    verb = one if number == 1 else many
    return f"{number:,.0f} {noun}{'s' * (number != 1)}{' ' * bool(verb)}{verb}"


def four_digits(value: float) -> str:
    """A number to four significant digits, with commas between thousands."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """A time span in its two largest units: `12.5 s`, `3 min 12 s`, `5 h 40 min`."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 1:
        return f"{int(hours):,} h {int(minutes) % 60} min"
    return f"{int(minutes)} min {int(seconds) % 60} s" if minutes >= 1 else f"{seconds:.3g} s"


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The shortest labels that tell the ticks apart, all with the same number of decimals."""
    largest = max(map(abs, ticks), default=0.0)
    if largest >= 10_000:
        labels = [short(tick) for tick in ticks]
        return labels if len(set(labels)) == len(labels) else [f"{tick:,.0f}" for tick in ticks]
    if 0 < largest < 1e-3:
        return [f"{tick:.3g}".replace("e-0", "e-") for tick in ticks]
    digits = next((d for d in range(6) if all(abs(round(t, d) - t) < 1e-9 for t in ticks)), 6)
    log = len(ticks) > 1 and max(ticks) / (min(ticks) or math.inf) > 15
    return [four_digits(t) if log else f"{t:,.{digits}f}" for t in ticks]
