"""What the experts of one model take, as one page.

Letters: Y: classes of tokens.
"""

from collections.abc import Sequence

import numpy as np

from moejax.lab.specialisation.association import Association, Counted, strongest_cells
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
    """The page, which stands alone like the report of a run. Its size is bounded by the number of
    layers times experts, and by the number of portraits.
    """
    parts = [_header(found), page.tiles(_key_numbers(found)), _information_section(found)]
    classes = describe_classes(python=found.not_python is not None)
    intro = f"{classes} {_LIFT} {_NULL.format(shifts=found.shifts)}"
    parts.append(_map_section(found, found.classes, "Classes", "class", intro))
    if found.domains is not None:
        parts.append(_map_section(found, found.domains, "Domains", "domain", _DOMAINS))
    parts += [_strongest_section(found), _portrait_section(found)]
    return page.document(f"{found.name}: specialisation – moejax", "\n".join(parts))


def describe_classes(python: bool) -> str:
    """What the classes of tokens are, for the reader of a page."""
    return _PYTHON if python else _TOKENS


def _header(found: Findings) -> str:
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
    classes = found.classes
    best = int(np.argmax(classes.bits_L))
    if classes.bits_L[best] < classes.chance_L[best] + SURE * classes.chance_sd_L[best]:
        return "The routing tells no more of a token's class than chance would."
    kept = classes.shuffled_L[best] / classes.bits_L[best]
    return (
        f"In layer {found.layers[best]} a choice of expert tells {classes.bits_L[best]:.2f} of the"
        f" {classes.entropy:.2f} bits of a token's class; {kept:.0%} of that remains when the text"
        " is shuffled, and so comes from the token itself."
    )


def _key_numbers(found: Findings) -> list[tuple[str, str, str]]:
    classes, numbers = found.classes, []
    numbers.append(("tokens looked at", f"{found.tokens:,}", f"of {found.documents:,} documents"))
    for what, one in (("class", classes), ("domain", found.domains)):
        if one is not None:
            best = int(np.argmax(one.bits_L))
            remark = f"of {one.entropy:.2f}, in layer {found.layers[best]}"
            numbers.append((f"bits of {what}, at most", f"{one.bits_L[best]:.3f}", remark))
    sure = classes.sure_LEY.mean()
    numbers.append(("cells beyond chance", f"{sure:.0%}", f"of {classes.sure_LEY.size:,}"))
    return numbers


def _information_section(found: Findings) -> str:
    figures = [_draw_bits(found, found.classes, "class")]
    if found.domains is not None:
        figures.append(_draw_bits(found, found.domains, "domain"))
    intro = f'<p class="intro">{page.text(_BITS)}</p>'
    return page.section("What a choice tells", [*figures, _bits_table(found)], intro)


def _draw_bits(found: Findings, association: Association, what: str) -> str:
    layer_L = np.array(found.layers, float)
    lines = (
        ("text", association.bits_L),
        ("shuffled", association.shuffled_L),
        ("chance", association.chance_L),
    )
    series = [
        Series(name, layer_L, bits_L, color, dots=True)
        for (name, bits_L), color in zip(lines, (0, 1, 6), strict=True)
    ]
    guide = (
        f"By layer, of {association.entropy:.2f} bits in all. The gap between text and shuffled is"
        " what context adds; near chance, the routing knows nothing of it."
    )
    chart = line_chart(series, include=(0.0,), x_name="layer")
    return page.figure(f"Bits of the {what} of a token", chart, guide)


def _bits_table(found: Findings) -> str:
    both = [("class", found.classes), ("domain", found.domains)]
    kinds = [(what, one) for what, one in both if one is not None]
    header = ["layer"] + [
        f"{what}{column}" for what, _ in kinds for column in ("", ", shuffled", ", chance")
    ]
    rows = [
        [f"layer {layer}"]
        + [
            cell
            for _, one in kinds
            for cell in (
                f"{one.bits_L[i]:.4f}",
                f"{one.shuffled_L[i]:.4f}",
                f"{one.chance_L[i]:.4f} ± {one.chance_sd_L[i]:.4f}",
            )
        ]
        for i, layer in enumerate(found.layers)
    ]
    return (
        '<details class="more"><summary>The figures, in bits</summary>'
        f"{page.table(header, rows)}</details>"
    )


def lift_figure(
    title: str,
    counted: Counted,
    index: int,
    classes: Sequence[str],
    experts: Sequence[str],
    what: str,
) -> str:
    """A map of what the experts of one routed layer take, by ``what`` kind of class."""
    chart = lift_heatmap(
        counted.lift_LEY[index].T,
        counted.sure_LEY[index].T,
        classes,
        experts,
        "expert",
        what,
        f"{counted.bits_L[index]:.3f} bits",
    )
    guide = f"One column per expert: orange takes more of a {what} than its share, blue less."
    return page.figure(title, chart, guide)


def _map_section(
    found: Findings, association: Association, title: str, what: str, intro: str
) -> str:
    figures = [
        lift_figure(f"Layer {layer}", association, i, association.names, found.experts, what)
        for i, layer in enumerate(found.layers)
    ]
    words = f'<p class="intro">{page.text(intro)}</p>'
    shown = page.fold_figures(figures, page.MOST_OPEN_LAYERS, "layers")
    return page.section(title, shown, words + lift_key())


def _strongest_section(found: Findings) -> str:
    classes = found.classes
    header = ("expert", "class", "lift", "z", "of the class", "of the expert", "bits")
    rows = [
        (
            f"layer {found.layers[cell.layer]}, expert {found.experts[cell.expert]}",
            classes.names[cell.label],
            f"{cell.lift:.2f}×",
            f"{cell.z:.1f}",
            f"{cell.of_class:.1%}",
            f"{cell.of_expert:.1%}",
            f"{cell.bits:.4f}",
        )
        for cell in strongest_cells(classes, STRONGEST)
    ]
    intro = (
        '<p class="intro">The cells that add most to the mutual information. Of the class: the'
        " share of its choices that the expert has; of the expert: the share of its choices that"
        " the class has.</p>"
    )
    if not rows:
        return ""
    return f"<section><h2>Strongest</h2>{page.table(header, rows)}{intro}</section>"


def _portrait_section(found: Findings) -> str:
    intro = (
        '<p class="intro">For each expert: the classes that it surely takes more of than its'
        " share; its most frequent tokens, with the share of their occurrences that it takes"
        " (vocabulary specialisation in OLMoE); and places in the text, from these classes. Marked"
        " is the token in question, underlined are others that the expert takes. White space is"
        f" shown as ␣ ⏎ ⇥.{_describe_left_out(found)}</p>"
    )
    layers = [
        f'<details class="more"{" open" * (i == 0)}><summary>Layer {layer}</summary>'
        f'<div class="grid">{"".join(_draw_portrait(found, one) for one in here)}</div></details>'
        for i, layer in enumerate(found.layers)
        if (here := [one for one in found.portraits if one.layer == i])
    ]
    return page.section("Experts", layers, intro)


def _describe_left_out(found: Findings) -> str:
    every, shown = len(found.layers) * len(found.experts), len(found.portraits)
    if shown == every:
        return ""
    return (
        f" Of {every:,} experts, the {shown:,} are shown that add most to the mutual information of"
        " their layer."
    )


def _draw_portrait(found: Findings, one: Portrait) -> str:
    share = one.choices / max(1, found.tokens)
    classes = (
        ", ".join(f"{name} {lift:.1f}×" for name, lift in one.classes) or "no class stands out"
    )
    tokens = "".join(f"<li><i>{page.text(token)}</i> {part:.0%}</li>" for token, part in one.tokens)
    places = "".join(f"<li>{_draw_snippet(parts)}</li>" for parts in one.snippets)
    body = f'<ul class="snips row">{tokens}</ul><ul class="snips">{places}</ul>'
    guide = f"Chosen by {share:.1%} of the tokens; {one.bits:.4f} bits of the layer's."
    return page.figure(f"Expert {found.experts[one.expert]}: {classes}", body, guide)


def _draw_snippet(parts: Snippet) -> str:
    marks = {0: "{}", 1: "<u>{}</u>", 2: "<b>{}</b>"}
    return "".join(marks[kind].format(page.text(_on_one_line(text, kind))) for text, kind in parts)


def _on_one_line(text: str, kind: int) -> str:
    """The text on one line; the white space of the marked token is made visible."""
    text = text.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
    return text.replace(" ", "␣") if kind == 2 else text
