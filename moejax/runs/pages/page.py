"""The frame of a page that stands alone: its style, its hover script, and pieces of HTML.

The page asks nothing of the network, and its content security policy forbids it to.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
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


def folded(figures: Sequence[str], most: int, what: str) -> list[str]:
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


def settings_tables(config: dict[str, Any], at: str = "") -> str:
    """Nested settings as one small table for each level."""
    plain = {name: value for name, value in config.items() if not isinstance(value, dict)}
    rows = "".join(
        f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in plain.items()
    )
    table = f"<table><caption>{text(at or 'general')}</caption>{rows}</table>" if rows else ""
    return table + "".join(
        settings_tables(value, f"{at}.{name}".lstrip("."))
        for name, value in config.items()
        if isinstance(value, dict)
    )


STYLE = """
:root{--page:#f6f7f8;--card:#fff;--ink:#1b1f24;--soft:#626b76;--rule:#e3e6ea;--cursor:#8b949e;
--c0:#2870c9;--c1:#d9580d;--c2:#0f8a77;--c3:#8250df;--c4:#bf3989;--c5:#9a6700;--c6:#57606a;
--c7:#1a7f37;--bad:#cf222e;--note:#fff5e0;--note-ink:#6b4a00;--empty:#be1894}
@media(prefers-color-scheme:dark){:root{--page:#0e1116;--card:#161b22;--ink:#e6e9ee;--soft:#97a0ab;
--rule:#2a313a;--cursor:#7d8590;--c0:#5aa2ff;--c1:#ff9250;--c2:#3fc4ae;--c3:#b796ff;--c4:#f277bd;
--c5:#dcab3e;--c6:#9aa4af;--c7:#56d364;--bad:#ff6b63;--note:#2b2312;--note-ink:#f0d493}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);-webkit-text-size-adjust:100%;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:36px 20px 64px}
h1{font-size:28px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:18px;margin:40px 0 10px}
h3{font-size:14px;margin:0 0 2px;font-weight:600}
p{margin:0 0 10px;max-width:76ch}
.mark{color:var(--soft);font-size:13px;margin-bottom:4px}
.verdict{font-size:17px;margin:0 0 4px}
.about{max-width:none;color:var(--soft);font-size:13px;overflow-wrap:anywhere}
.notes{list-style:none;margin:16px 0 0;padding:10px 14px;border-radius:8px;background:var(--note);
color:var(--note-ink);font-size:14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:1px;
margin:24px 0 0;background:var(--card);border:1px solid var(--rule);border-radius:10px;
overflow:hidden}
.tiles div{outline:1px solid var(--rule);padding:11px 14px}
dt,.remark{color:var(--soft);font-size:12px;line-height:1.4}
dd{margin:0;font-size:20px;font-weight:600;font-variant-numeric:tabular-nums;line-height:1.35}
dd.remark{font-size:12px;font-weight:400}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:16px}
.grid>figure:only-child{max-width:552px}
.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
figure{margin:0;padding:14px 14px 12px;background:var(--card);border:1px solid var(--rule);
border-radius:10px;min-width:0}
figcaption,.intro{color:var(--soft);font-size:13px;line-height:1.45}
figcaption{margin-top:6px}
.legend{display:flex;flex-wrap:wrap;gap:0 14px;font-size:12.5px;color:var(--soft);
min-height:20px;margin-bottom:4px;font-variant-numeric:tabular-nums}
.legend b{color:var(--ink);font-weight:600}
.legend i{font-style:normal;color:var(--bad)}
.legend .at{order:9;margin-left:auto}
.at:not(:empty)+.rest{display:none}
.key::before{content:"";display:inline-block;width:12px;height:3px;border-radius:2px;
background:currentColor;margin-right:6px;vertical-align:middle}
.key.dashed::before{height:0;border-top:1.5px dashed;background:none;border-radius:0}
.key.d1::before{background:repeating-linear-gradient(90deg,currentColor 0 5px,transparent 5px 7px)}
.key.d2::before{background:repeating-linear-gradient(90deg,currentColor 0 2px,transparent 2px 5px)}
.key{white-space:nowrap}
.key.c0::before{color:var(--c0)}.key.c1::before{color:var(--c1)}.key.c2::before{color:var(--c2)}
.key.c3::before{color:var(--c3)}.key.c4::before{color:var(--c4)}.key.c5::before{color:var(--c5)}
.key.c6::before{color:var(--c6)}.key.c7::before{color:var(--c7)}
svg{display:block;width:100%;height:auto;touch-action:pan-y}
svg text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}
svg .word{fill:var(--ink)}
.end{text-anchor:end}.mid{text-anchor:middle}
svg path{fill:none}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}
.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}.c6{stroke:var(--c6)}.c7{stroke:var(--c7)}
.line{stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}
.line.d1{stroke-dasharray:6 4}.line.d2{stroke-dasharray:1 4}
.dots{stroke-width:6;stroke-linecap:round}
svg .band{stroke:none;opacity:.18}
svg .band.c0{fill:var(--c0)}svg .band.c1{fill:var(--c1)}svg .band.c2{fill:var(--c2)}
svg .band.c3{fill:var(--c3)}svg .band.c4{fill:var(--c4)}svg .band.c5{fill:var(--c5)}
svg .band.c6{fill:var(--c6)}svg .band.c7{fill:var(--c7)}
.rules{stroke:var(--rule)}
.gaps{stroke:var(--card);stroke-width:1.5}
.borders{stroke:var(--cursor)}
.border{fill:none;stroke:var(--rule)}
.guide{stroke:var(--soft);stroke-width:1;stroke-dasharray:4 4}
.bad{stroke:var(--bad);stroke-width:1.5}
.cursor{stroke:var(--cursor);visibility:hidden}
image{image-rendering:pixelated}
.scale{display:flex;gap:16px;max-width:420px;font-size:12px;color:var(--soft);margin:0 0 12px}
.scale>:last-child{flex:1}
.scale svg{height:12px;border:1px solid var(--rule);border-radius:3px}
.scale>div>div{display:flex;justify-content:space-between}
.none-key::before{content:"";display:block;height:12px;border-radius:3px;background:var(--empty)}
.none-key{white-space:nowrap;min-width:56px}
.more{grid-column:1/-1}
.more[open]>summary{margin-bottom:14px}
pre+details{margin-top:14px}
summary{cursor:pointer;font-weight:600}
pre{margin:0;padding:14px;background:var(--card);border:1px solid var(--rule);border-radius:10px;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
pre b{color:var(--c1)}
.snips{list-style:none;margin:8px 0 0;padding:0;white-space:break-spaces;overflow-wrap:anywhere;
font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.snips li{border-top:1px solid var(--rule);padding:4px 0;color:var(--soft)}
.snips u{color:var(--ink);text-decoration-color:var(--c1);text-underline-offset:2px}
.snips b{color:var(--card);background:var(--c1);border-radius:2px}
.snips.row li{display:inline-block;border:0;margin-right:14px}
.snips i{color:var(--ink);font-style:normal}
.settings{columns:320px;column-gap:28px;margin-top:10px}
table{width:100%;border-collapse:collapse;font-size:13px;margin:0 0 18px;break-inside:avoid}
caption{text-align:left;font-weight:600;padding:4px 0}
th,td{text-align:left;font-weight:400;padding:3px 0;border-top:1px solid var(--rule);
vertical-align:top}
th{color:var(--soft);width:50%;padding-right:10px}
td{overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:10px;
background:linear-gradient(var(--card),var(--card)) 100% 0/32px 100% no-repeat local,
linear-gradient(270deg,var(--rule),transparent) 100% 0/24px 100% no-repeat,var(--card)}
.wide{margin:0}
.wide th,.wide td{padding:7px 9px;text-align:right;width:auto;overflow-wrap:normal}
.wide td{white-space:pre}
.wide thead th{border-top:0;vertical-align:bottom;line-height:1.3}
.wide th:first-child{text-align:left;position:sticky;left:0;background:var(--card);
padding-left:14px;box-shadow:1px 0 var(--rule)}
.wide tbody th{color:var(--ink);font-weight:600}
@media(min-width:600px){.wide tbody th{white-space:nowrap}}
.best{font-weight:600}
.scroll+.intro{margin-top:10px}
header pre{margin-top:14px}
.none{color:var(--soft)}
.small svg text{font-size:15px}
@media(max-width:600px){main{padding:22px 14px 48px}svg text{font-size:14.5px}h1{font-size:24px}
.tiles{grid-template-columns:repeat(2,1fr)}
.tiles div:last-child:nth-child(odd){grid-column:1/-1}figure{padding:12px 10px}}
@media print{body{background:#fff}figure{break-inside:avoid}}
"""

SCRIPT = """
for (const chart of document.querySelectorAll('.chart')) {
  const data = JSON.parse(chart.dataset.chart), svg = chart.querySelector('svg');
  const at = chart.querySelector('.at'), cursor = chart.querySelector('.cursor');
  const values = [...chart.querySelectorAll('.key b')], rest = values.map(b => b.textContent);
  let pixels;
  const readLines = x => {
    let step = null;
    data.lines.forEach(([xs, ys], i) => {
      let k = 0;
      xs.forEach((v, j) => { if (Math.abs(v - x) < Math.abs(xs[k] - x)) k = j; });
      if (i === 0) step = xs[k];
      values[i].textContent = ys[k] === null ? 'not finite' : ys[k].toLocaleString('en',
        Math.abs(ys[k]) < 1000 ? {maximumSignificantDigits: 4} : {});
    });
    at.textContent = data.columns + ' ' + step.toLocaleString('en');
    return data.left + data.plot * (step - data.x[0]) / (data.x[1] - data.x[0]);
  };
  const readCells = (share, y) => {
    const [columns, rows] = data.cells;
    if (!pixels) {
      const canvas = document.createElement('canvas'), pen = canvas.getContext('2d');
      [canvas.width, canvas.height] = data.cells;
      pen.drawImage(svg.querySelector('image'), 0, 0, columns, rows);
      pixels = pen.getImageData(0, 0, columns, rows).data;
    }
    const i = Math.min(columns - 1, Math.floor(share * columns));
    const j = Math.max(0, Math.min(rows - 1, Math.floor((y - data.top_edge) / data.height * rows)));
    const [red, , blue, alpha] = pixels.slice(4 * (j * columns + i));
    const chance = data.kind === 'lift' && alpha % 2;
    const octaves = 2 * Math.pow(alpha * (chance ? 4 : 1) / 255, 4 / 3) * (red < blue ? -1 : 1);
    const value = data.kind === 'share' ? (100 * data.top * alpha / 255).toPrecision(2) + '%'
      : data.kind === 'ratio' && alpha === 254 ? 'no token'
      : 'about ' + Math.pow(2, octaves).toPrecision(2) + '×' + (chance ? ', chance' : '');
    const x = Math.round(data.x[0] + (i + .5) / columns * (data.x[1] - data.x[0]));
    at.textContent = `${data.rows[0]} ${data.rows[j + 1]}, ${data.columns} ${
      data.names ? data.names[i] : x.toLocaleString('en')}: ${value}`;
    return data.left + data.plot * (i + .5) / columns;
  };
  const move = event => {
    const point = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse());
    const share = Math.max(0, Math.min(1, (point.x - data.left) / data.plot));
    const x = data.lines ? readLines(data.x[0] + share * (data.x[1] - data.x[0]))
      : readCells(share, point.y);
    cursor.setAttribute('x1', x);
    cursor.setAttribute('x2', x);
    cursor.style.visibility = 'visible';
  };
  svg.addEventListener('pointermove', move);
  svg.addEventListener('pointerdown', move);
  svg.addEventListener('pointerleave', () => {
    values.forEach((b, i) => { b.textContent = rest[i]; });
    at.textContent = '';
    cursor.style.visibility = 'hidden';
  });
}
"""
