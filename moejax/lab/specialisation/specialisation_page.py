"""What the experts of one model take, as one page.

Letters: Y: classes of tokens.
"""

import numpy as np

from moejax.lab.specialisation.association import Association, strongest
from moejax.lab.specialisation.findings import Findings
from moejax.lab.specialisation.snippets import Portrait, Snippet
from moejax.runs.lift import SURE
from moejax.runs.pages import page
from moejax.runs.pages.charts import Series, line_chart
from moejax.runs.pages.heatmaps import lift_heatmap, lift_key

STRONGEST = 16

_LIFT = (
    "Lift is P(expert | class) / P(expert): how much more of a class an expert takes than of all"
    " text (the share that Muennighoff et al. 2024, OLMoE, and Jiang et al. 2024, Mixtral, show in"
    " their sections 5, over the expert's share of all choices)."
)
_PYTHON = (
    "Classes are those of Python's own tokenizer; a token has that of its first byte that is not a"
    " space. Name: a name that is not built in, or follows a dot; line: ends of lines, and the"
    " indentation after them."
)
_TOKENS = "Classes are the most frequent tokens."
_DOMAINS = (
    "A domain is the folder that a file is in (the package of a module). Documents are few and"
    " each is one piece of its domain: chance reaches far. Lift and colours as above."
)
_NULL = (
    "Chance is what is left when the classes are shifted in a circle against the routing, {shifts}"
    f" times; pale cells lie within {SURE:g} standard deviations of it (about 3 in 1,000 others lie"
    " beyond by chance)."
)
_BITS = (
    "Mutual information of expert and class: the bits that one choice tells of the token's class."
    " Shuffled: the same model on pieces with their tokens in random order; what remains there is"
    " told by the token itself, the rest by its context."
)


def specialisation_html(found: Findings) -> str:
    """The page; it stands alone, as the report of a run does. Its size is bounded by the number of
    layers times that of experts in its maps, and by the number of portraits.
    """
    parts = [_head(found), page.tiles(_key_numbers(found)), _information(found)]
    classes = _TOKENS if found.not_python is None else _PYTHON
    intro = f"{classes} {_LIFT} {_NULL.format(shifts=found.shifts)}"
    parts.append(_maps(found, found.classes, "Classes", "class", intro))
    if found.domains is not None:
        parts.append(_maps(found, found.domains, "Domains", "domain", _DOMAINS))
    parts += [_strongest(found), _portraits(found)]
    return page.document(f"{found.name}: specialisation – moejax", "\n".join(parts))


def _head(found: Findings) -> str:
    notes = []
    if found.not_python:
        notes.append(f"Python cannot read {found.not_python} of the files: their class is other.")
    remarks = "".join(f"<li>{page.text(note)}</li>" for note in notes)
    return (
        '<header><div class="mark">moejax specialisation</div>'
        f"<h1>What the experts of {page.text(found.name)} take</h1>"
        f'<p class="verdict">{page.text(_verdict(found))}</p>'
        f'<p class="about">{page.text(f"{found.model} · {found.data}")}</p>'
        + (f'<ul class="notes">{remarks}</ul>' if remarks else "")
        + "</header>"
    )


def _verdict(found: Findings) -> str:
    of = found.classes
    best = int(np.argmax(of.bits_L))
    if of.bits_L[best] < of.chance_L[best] + SURE * of.chance_sd_L[best]:
        return "The routing tells no more of a token's class than chance would."
    kept = of.shuffled_L[best] / of.bits_L[best]
    return (
        f"In layer {found.layers[best]} a choice of expert tells {of.bits_L[best]:.2f} of the"
        f" {of.entropy:.2f} bits of a token's class; {kept:.0%} of that remains when the text is"
        " shuffled, and so comes from the token itself."
    )


def _key_numbers(found: Findings) -> list[tuple[str, str, str]]:
    of, numbers = found.classes, []
    numbers.append(("tokens looked at", f"{found.tokens:,}", f"of {found.documents:,} documents"))
    for what, one in (("class", of), ("domain", found.domains)):
        if one is not None:
            best = int(np.argmax(one.bits_L))
            remark = f"of {one.entropy:.2f}, in layer {found.layers[best]}"
            numbers.append((f"bits of {what}, at most", f"{one.bits_L[best]:.3f}", remark))
    sure = of.sure_LEY.mean()
    numbers.append(("cells beyond chance", f"{sure:.0%}", f"of {of.sure_LEY.size:,}"))
    return numbers


def _information(found: Findings) -> str:
    figures = [_bits(found, found.classes, "class")]
    if found.domains is not None:
        figures.append(_bits(found, found.domains, "domain"))
    intro = f'<p class="intro">{page.text(_BITS)}</p>'
    return page.section("What a choice tells", [*figures, _bits_table(found)], intro)


def _bits(found: Findings, of: Association, what: str) -> str:
    layer_L = np.array(found.layers, float)
    lines = (("text", of.bits_L), ("shuffled", of.shuffled_L), ("chance", of.chance_L))
    series = [
        Series(name, layer_L, bits_L, color, dots=True)
        for (name, bits_L), color in zip(lines, (0, 1, 6), strict=True)
    ]
    guide = (
        f"By layer, of {of.entropy:.2f} bits in all. The gap between text and shuffled is what"
        " context adds; near chance, the routing knows nothing of it."
    )
    chart = line_chart(series, include=(0.0,), x_name="layer")
    return page.figure(f"Bits of the {what} of a token", chart, guide)


def _bits_table(found: Findings) -> str:
    kinds = [("class", found.classes), ("domain", found.domains)]
    kinds = [(what, of) for what, of in kinds if of is not None]
    header = ["layer"] + [
        f"{what}{column}" for what, _ in kinds for column in ("", ", shuffled", ", chance")
    ]
    rows = [
        [f"layer {layer}"]
        + [
            cell
            for _, of in kinds
            for cell in (
                f"{of.bits_L[i]:.4f}",
                f"{of.shuffled_L[i]:.4f}",
                f"{of.chance_L[i]:.4f} ± {of.chance_sd_L[i]:.4f}",
            )
        ]
        for i, layer in enumerate(found.layers)
    ]
    return (
        '<details class="more"><summary>The figures, in bits</summary>'
        f"{page.table(header, rows)}</details>"
    )


def _maps(found: Findings, of: Association, title: str, what: str, intro: str) -> str:
    guide = f"One column per expert: orange takes more of a {what} than its share, blue less."
    figures = [
        page.figure(
            f"Layer {layer}",
            lift_heatmap(
                of.lift_LEY[i].T, of.sure_LEY[i].T, of.names, found.experts, "expert", what,
                f"{of.bits_L[i]:.3f} bits",
            ),
            guide,
        )
        for i, layer in enumerate(found.layers)
    ]  # fmt: skip
    words = f'<p class="intro">{page.text(intro)}</p>'
    shown = page.fold_figures(figures, page.MOST_OPEN_LAYERS, "layers")
    return page.section(title, shown, words + lift_key())


def _strongest(found: Findings) -> str:
    of = found.classes
    header = ("expert", "class", "lift", "z", "of the class", "of the expert", "bits")
    rows = [
        (
            f"layer {found.layers[cell.layer]}, expert {found.experts[cell.expert]}",
            of.names[cell.label],
            f"{cell.lift:.2f}×",
            f"{cell.z:.1f}",
            f"{cell.of_class:.1%}",
            f"{cell.of_expert:.1%}",
            f"{cell.bits:.4f}",
        )
        for cell in strongest(of, STRONGEST)
    ]
    intro = (
        '<p class="intro">The cells that add most to the mutual information. Of the class: the'
        " share of its choices that the expert has; of the expert: the share of its choices that"
        " the class has.</p>"
    )
    if not rows:
        return ""
    return f"<section><h2>Strongest</h2>{page.table(header, rows)}{intro}</section>"


def _portraits(found: Findings) -> str:
    intro = (
        '<p class="intro">For each expert: the classes that it surely takes more of than its'
        " share; its most frequent tokens, with the share of their occurrences that it takes"
        " (vocabulary specialisation in OLMoE); and places in the text, from these classes. Marked"
        " is the token in question, underlined are others that the expert takes. White space is"
        f" shown as ␣ ⏎ ⇥.{_left_out(found)}</p>"
    )
    layers = [
        f'<details class="more"{" open" * (i == 0)}><summary>Layer {layer}</summary>'
        f'<div class="grid">{"".join(_portrait(found, one) for one in here)}</div></details>'
        for i, layer in enumerate(found.layers)
        if (here := [one for one in found.portraits if one.layer == i])
    ]
    return page.section("Experts", layers, intro)


def _left_out(found: Findings) -> str:
    every, shown = len(found.layers) * len(found.experts), len(found.portraits)
    if shown == every:
        return ""
    return (
        f" Of {every:,} experts, the {shown:,} are shown that add most to the mutual information of"
        " their layer."
    )


def _portrait(found: Findings, one: Portrait) -> str:
    share = one.choices / max(1, found.tokens)
    classes = (
        ", ".join(f"{name} {lift:.1f}×" for name, lift in one.classes) or "no class stands out"
    )
    tokens = "".join(f"<li><i>{page.text(token)}</i> {part:.0%}</li>" for token, part in one.tokens)
    places = "".join(f"<li>{_snippet(parts)}</li>" for parts in one.snippets)
    body = f'<ul class="snips row">{tokens}</ul><ul class="snips">{places}</ul>'
    guide = f"Chosen by {share:.1%} of the tokens; {one.bits:.4f} bits of the layer's."
    return page.figure(f"Expert {found.experts[one.expert]}: {classes}", body, guide)


def _snippet(parts: Snippet) -> str:
    marks = {0: "{}", 1: "<u>{}</u>", 2: "<b>{}</b>"}
    return "".join(marks[kind].format(page.text(_flat(text, kind))) for text, kind in parts)


def _flat(text: str, kind: int) -> str:
    """On one line; the white space of what is marked can be seen."""
    text = text.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
    return text.replace(" ", "␣") if kind == 2 else text
