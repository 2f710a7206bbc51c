"""The style sheet of all pages."""

COLOURS = """
:root{--page:#f6f7f8;--card:#fff;--ink:#1b1f24;--soft:#626b76;--rule:#e3e6ea;--cursor:#8b949e;
--c0:#2870c9;--c1:#d9580d;--c2:#0f8a77;--c3:#8250df;--c4:#bf3989;--c5:#9a6700;--c6:#57606a;
--c7:#1a7f37;--bad:#cf222e;--note:#fff5e0;--note-ink:#6b4a00;--empty:#be1894}
@media(prefers-color-scheme:dark){:root{--page:#0e1116;--card:#161b22;--ink:#e6e9ee;--soft:#97a0ab;
--rule:#2a313a;--cursor:#7d8590;--c0:#5aa2ff;--c1:#ff9250;--c2:#3fc4ae;--c3:#b796ff;--c4:#f277bd;
--c5:#dcab3e;--c6:#9aa4af;--c7:#56d364;--bad:#ff6b63;--note:#2b2312;--note-ink:#f0d493}}
"""
"""Of all pages, also of those that a server shows."""

STYLE = (
    COLOURS
    + """
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
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,360px),1fr));gap:16px}
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
.key.spots::before{width:7px;height:7px;border-radius:50%}
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
.v0{background:color-mix(in srgb,var(--c0) 20%,transparent)}
.v1{background:color-mix(in srgb,var(--c1) 24%,transparent)}
.v2{background:color-mix(in srgb,var(--c2) 24%,transparent)}
figure:has(.pairs){grid-column:1/-1}
.pairs td{color:var(--soft)}.pairs td[class]{color:var(--ink)}
.scroll+.intro{margin-top:10px}
header pre{margin-top:14px}
.none{color:var(--soft)}
.small svg text{font-size:15px}
@media(max-width:600px){main{padding:22px 14px 48px}svg text{font-size:14.5px}h1{font-size:24px}
.tiles{grid-template-columns:repeat(2,1fr)}
.tiles div:last-child:nth-child(odd){grid-column:1/-1}figure{padding:12px 10px}}
@media print{body{background:#fff}figure{break-inside:avoid}}
"""
)
