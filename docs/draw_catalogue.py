"""Draw a catalogue, and write its table into its page: python docs/draw_catalogue.py [NAME ...]

The results are those of docs/studies/NAME; by default of all catalogues that are there.
"""

import math
import sys
from pathlib import Path
from typing import Any

from moejax.study import Results
from pictures import document, fill_page, write, write_table

import moejax

DOCS = Path(__file__).parent
PAGE = DOCS / "catalogue.md"
NAMES = ("catalogue", "catalogue_balance")
MEASURE = "bits_per_byte"

ROW, LEFT, RIGHT, TOP = 18, 190, 350, 30
"""In pixels: the height of a row, and the room for names, for verdicts and above."""
PIXELS, MOST = 1500, 0.25
"""Pixels for a bit per byte, and the largest difference that is drawn."""
TICK = 0.05
COLOURS = {"better": "#1a7f37", "worse": "#c0392b"}
UNDECIDED = "#6e7781"
UNBROKEN = "\N{NO-BREAK SPACE}"


def sort_arms(study: Results) -> list[str]:
    """The best first; last the runs that have no result."""

    def order(arm: str) -> float:
        value = study.raw["runs"][arm]["mean"][MEASURE]
        return math.inf if value is None else float(value)

    return sorted(study.arms, key=order)


def describe_arms(study: Results) -> str:
    """The table in Markdown, a row for each run."""
    header = ("run", "bits per byte", f"against {study.baseline}", "tuned", "max violation")
    header += ("dropped, training", "dropped, validation", "parameters (active)")
    return write_table(header, [_write_row(study, arm) for arm in sort_arms(study)])


def _write_row(study: Results, arm: str) -> tuple[str, ...]:
    of = study.raw["runs"][arm]
    mean, low, high = (of[which][MEASURE] for which in ("mean", "min", "max"))
    words = "baseline" if arm == study.baseline else study.verdicts[arm]["words"]
    verdict, bracket, interval = words.partition("(")
    words = verdict + bracket + interval.replace(" ", UNBROKEN)
    field, value = next(iter(study.chosen[arm].items()))  # others move with the first one
    tuning = study.raw["tuning"][arm]
    setting = f"{field.rpartition('.')[2]} {value:g}"
    dropped = [of["mean"][f"dropped_fraction{at}"] for at in ("", "_validation")]
    violation = of["mean"]["max_violation_validation"]
    total, active = (of["mean"][f"parameters_{which}"] / 1000 for which in ("total", "active"))
    return (
        f"`{arm}`",
        f"{mean:.4f} ({low:.4f}..{high:.4f})",
        words,
        f"{setting} ({tuning['chosen']} of {len(tuning['settings'])})",
        "–" if violation is None else f"{violation:.2f}",
        *("–" if share is None else f"{share:.1%}" for share in dropped),
        f"{total:,.0f}k ({active:,.0f}k)",
    )


def draw(study: Results) -> str:
    """The differences to the baseline, with their intervals, as an SVG picture."""
    arms = sort_arms(study)
    least = TICK * math.floor(min(0, *(v["low"] for v in study.verdicts.values())) / TICK)
    width, bottom = LEFT + (MOST - least) * PIXELS + RIGHT, TOP + ROW * len(arms)
    parts = [write(LEFT, 16, f"bits per byte, less those of {study.baseline}", "small")]
    for tick in range(round(least / TICK), round(MOST / TICK) + 1):
        x = _place(tick * TICK, least)
        colour = "#57606a" if tick == 0 else "#e6e8eb"
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}" stroke="{colour}"/>')
        parts.append(write(x, bottom + 16, f"{tick * TICK:+.2f}" if tick else "0", "middle"))
    for number, arm in enumerate(arms):
        parts += _draw_arm(study, arm, least, TOP + ROW * (number + 0.5))
    return document(width, bottom + 26, parts)


def _place(value: float, least: float) -> float:
    return round(LEFT + (min(value, MOST) - least) * PIXELS, 1)


def _draw_arm(study: Results, arm: str, least: float, y: float) -> list[str]:
    verdict: dict[str, Any] = study.verdicts.get(
        arm, {"kind": "", "words": "baseline", "mean": 0.0}
    )
    colour, middle = COLOURS.get(verdict["kind"], UNDECIDED), verdict["mean"]
    parts = [write(LEFT - 10, y + 4, arm, "end")]
    parts.append(write(_place(MOST, least) + 10, y + 4, verdict["words"], "small"))
    if middle is None:
        return parts
    left, right = (_place(verdict.get(edge, 0.0), least) for edge in ("low", "high"))
    line = f'x1="{left}" x2="{right}" y1="{y}" y2="{y}"'
    parts.append(f'<line {line} stroke="{colour}" stroke-width="2"/>')
    if middle <= MOST:
        parts.append(f'<circle cx="{_place(middle, least)}" cy="{y}" r="4" fill="{colour}"/>')
    return parts


def main(names: list[str]) -> None:
    """Write the pictures, and the page."""
    for name in names or [n for n in NAMES if (DOCS / "studies" / n).is_dir()]:
        study = moejax.study.load(DOCS / "studies" / name)
        (DOCS / f"{name}.svg").write_text(draw(study), encoding="utf-8")
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(fill_page(page, name, describe_arms(study)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
