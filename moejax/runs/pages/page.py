"""The frame of a page that stands alone: its style, its hover script, and pieces of HTML.

The page asks nothing of the network, and its content security policy forbids it to.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from moejax.runs.pages.hover_script import SCRIPT
from moejax.runs.pages.page_style import STYLE

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
LONGEST_VALUE = 300
"""Characters of a setting that a page shows."""
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}


def document(title: str, body: str) -> str:
    """A whole page around ``body``."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def text(value: Any) -> str:
    """Any value as text of a page: escaped, its control characters made visible."""
    return escape(str(value).translate(_VISIBLE))


def figure(title: str, chart: str, guide: str = "") -> str:
    """A chart under its title, over the one line that says how to read it."""
    caption = f"<figcaption>{text(guide)}</figcaption>" if guide else ""
    return f"<figure><h3>{text(title)}</h3>{chart}{caption}</figure>"


def section(title: str, figures: Sequence[str], intro: str = "", small: bool = False) -> str:
    """A headed grid of figures, or of ``small`` ones; ``intro`` is HTML."""
    grid = f'<div class="grid{" small" * small}">{"".join(figures)}</div>'
    return f"<section><h2>{text(title)}</h2>{intro}{grid}</section>"


MOST_OPEN_LAYERS = 7
"""Figures of layers shown at once; the others wait behind a click."""


def fold_figures(figures: Sequence[str], most: int, what: str) -> list[str]:
    """The first ``most`` figures, and the others behind a click that says how many more of
    ``what`` there are.
    """
    more = "".join(figures[most:])
    if not more:
        return [*figures]
    summary = f"<summary>{len(figures) - most} more {text(what)}</summary>"
    grid = f'<div class="grid">{more}</div>'
    return [*figures[:most], f'<details class="more">{summary}{grid}</details>']


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Key numbers: (label, value, remark) each."""
    made = "".join(
        f"<div><dt>{text(label)}</dt><dd>{text(value)}</dd>"
        f'<dd class="remark">{text(remark)}</dd></div>'
        for label, value, remark in items
    )
    return f'<dl class="tiles">{made}</dl>'


def table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], best: tuple[int, int] | None = None
) -> str:
    """A table whose first column names its rows and stays in sight when the others scroll; the
    cell ``best`` (row, column) stands out.
    """
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in header)
    body = ""
    for i, row in enumerate(rows):
        cells = "".join(
            f'<td class="best">{text(cell)}</td>' if (i, j) == best else f"<td>{text(cell)}</td>"
            for j, cell in enumerate(row[1:], 1)
        )
        body += f'<tr><th scope="row">{text(row[0])}</th>{cells}</tr>'
    return (
        f'<div class="scroll"><table class="wide"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cut(value: Any) -> str:
    """A value, of a long list its beginning."""
    words = str(value)
    return words if len(words) <= LONGEST_VALUE else f"{words[:LONGEST_VALUE]} ..."


def settings_tables(config: dict[str, Any], at: str = "") -> str:
    """Nested settings as one small table for each level."""
    plain = {name: value for name, value in config.items() if not isinstance(value, dict)}
    rows = "".join(
        f"<tr><th>{text(name)}</th><td>{text(_cut(value))}</td></tr>"
        for name, value in plain.items()
    )
    table = f"<table><caption>{text(at or 'general')}</caption>{rows}</table>" if rows else ""
    return table + "".join(
        settings_tables(value, f"{at}.{name}".lstrip("."))
        for name, value in config.items()
        if isinstance(value, dict)
    )
