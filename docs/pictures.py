"""What the pictures of the documentation have in common: SVG with words, and pages with tables."""

from collections.abc import Iterable, Sequence
from html import escape

STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1f2328}.end{text-anchor:end}"
    ".small{font-size:11px;fill:#57606a}.middle{text-anchor:middle;font-size:11px;fill:#57606a}"
)


def document(width: float, height: float, parts: Iterable[str]) -> str:
    """An SVG file on white ground."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )


def write(x: float, y: float, words: str, kind: str) -> str:
    """Words at a place; ``kind``: a class of ``STYLE``."""
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def write_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill_page(text: str, name: str, content: str) -> str:
    """A page with other content between the mark of this name and the next end."""
    begin, end = f"<!-- the table of {name} -->", "<!-- its end -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{content}\n{end}{rest.partition(end)[2]}"
