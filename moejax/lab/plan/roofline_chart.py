"""The picture of a roofline: the times that each part's limits give it, as bars."""

from html import escape

from moejax.lab.plan.roofline import Roofline, Row

NAMES, WIDTH, RIGHT, TOP, BAR, GAP = 330, 460, 110, 78, 9, 9
LIMITS = ("compute", "memory", "links")
LEAST = 0.002
"""Parts that take a smaller share of the longest are left out."""
STYLE = """
svg{font:13px system-ui,sans-serif;font-variant-numeric:tabular-nums}
text{fill:#1b1f24}.soft{fill:#626b76}.end{text-anchor:end}.name{font-weight:600}
.compute{fill:#2870c9}.memory{fill:#d9580d}.links{fill:#3a9442}.free{opacity:.3}
.rule{stroke:#e3e6ea;stroke-width:1}
"""


def roofline_chart(found: Roofline, title: str) -> str:
    """A standalone SVG. Of each part, the bar that binds it is solid, the others are pale."""
    longest = max(row.least for row in found.rows)
    rows = [row for row in found.rows if row.least > LEAST * longest]
    shapes, at = [], TOP
    for row in rows:
        shape, height = _draw_row(row, at, WIDTH / longest)
        shapes.append(shape)
        at += height
    width, height = NAMES + WIDTH + RIGHT, at + 8
    rule = f'<path class="rule" d="M{NAMES},{TOP - 6}V{height - 8}"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}"><style>{STYLE}</style><rect width="{width}" height="{height}"'
        f' fill="#fff"/>{_draw_head(found, title)}{rule}{"".join(shapes)}</svg>\n'
    )


def _draw_head(found: Roofline, title: str) -> str:
    best, apart = found.mfu(found.overlapped), found.mfu(found.apart)
    step = (
        f"a step takes at least {_time(found.overlapped)} (MFU {best:.1%}) if all is sent behind"
        f" products, {_time(found.apart)} ({apart:.1%}) if nothing is; {found.binds} binds"
    )
    keys = "".join(
        f'<rect class="{limit}" x="{NAMES + 96 * i}" y="52" width="12" height="9"/>'
        f'<text x="{NAMES + 17 + 96 * i}" y="61">{limit}</text>'
        for i, limit in enumerate(LIMITS)
    )
    return (
        f'<text x="10" y="20" class="name">{escape(title)}</text>'
        f'<text x="10" y="40" class="soft">{escape(step)}</text>{keys}'
    )


def _draw_row(row: Row, top: int, scale: float) -> tuple[str, int]:
    """One part, from ``top`` on, ``scale`` units a second; and its height."""
    shown = {limit: row.seconds.get(limit, 0.0) for limit in LIMITS}
    shown = {limit: seconds for limit, seconds in shown.items() if seconds}
    name = escape(row.part.replace("_", " "))
    shapes, at = [f'<text x="{NAMES - 10}" y="{top + 11}" class="end">{name}</text>'], top
    for limit, seconds in shown.items():
        binds = limit == row.binds
        length = max(1.0, seconds * scale)
        shapes.append(
            f'<rect class="{limit}{"" if binds else " free"}" x="{NAMES}" y="{at}"'
            f' width="{length:.1f}" height="{BAR}"/>'
        )
        if binds:
            said = f'x="{NAMES + length + 6:.1f}" y="{at + 9}"'
            shapes.append(f'<text {said} class="soft">{_time(seconds)}</text>')
        at += BAR + 2
    return "".join(shapes), max(18, at - top) + GAP


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
