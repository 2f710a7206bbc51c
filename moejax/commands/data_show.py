"""`moejax data show`: the first rows that a config trains on, as the model sees them."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moejax.commands.command_line import ConfigFile, read_config
from moejax.commands.use_cpu import use_cpu
from moejax.config.checks import check, check_positive
from moejax.data.chat.choose import list_models
from moejax.data.mixed_corpus import batch_corpus, open_corpus, plan_mixture
from moejax.data.pipeline import validation_batches
from moejax.data.seen import Row, list_rows
from moejax.data.tokenizer import load_tokenizer
from moejax.runs.pages.page import document, text
from moejax.runtime.atomic_files import write_text
from moejax.runtime.writing import writing_to

GREEN, DIM, PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"
LEARNED = ("[[", "]]")
"""Around what is learned, where there are no colours."""
_STYLE = """<style>
.row{white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,monospace;
line-height:1.5;border-left:2px solid #8886;padding-left:.8em;margin:.6em 0}
.row .learned{background:#2a9d5c40;border-radius:2px}
.row .read{opacity:.65}
</style>"""


@dataclass(frozen=True, kw_only=True)
class ShowSettings(ConfigFile):
    """What to show."""

    rows: int = 4
    """Rows to show, of the first batch."""
    held_out: bool = False
    """Show what is held out."""
    output: Path | None = None
    """Write a page (HTML) instead."""

    def __post_init__(self) -> None:
        check_positive("", self, "rows")


def show_data(settings: ShowSettings, flags: list[str]) -> None:
    """Print the first rows, or write them as a page."""
    use_cpu()
    config, name = read_config(settings.config, flags, "moejax data show")
    check(
        config.model.material.language,
        f"--model.kind {config.model.kind} sees images: `moejax data show` shows texts.",
    )
    data, path = config.data, settings.output
    check(path is None or not path.is_dir(), f"--output {path} is a directory: name a file.")
    tokenizer = load_tokenizer(data.tokenizer)
    corpus = open_corpus(data, tokenizer, list_models(config))
    if settings.held_out:
        size = data.eval_batch_size
        held = corpus.validation
        batch = next(validation_batches(held, tokenizer, data, batch_size=size, limit=1))
    else:
        plan = plan_mixture(corpus, tokenizer, data, config.run.steps)
        stream = batch_corpus(corpus, tokenizer, data, plan)
        batch = next(stream)
        stream.close()
    batch = {name: x_BN[: settings.rows] for name, x_BN in batch.items()}
    rows = list(list_rows(batch, tokenizer, list(corpus.sources)))
    if path is None:
        print(write_rows(corpus.description, rows, has_colours()), flush=True)
        return
    with writing_to("--output FILE"):
        write_text(path, draw_rows(name, corpus.description, rows))
    print(f"page  {path}", flush=True)


def has_colours() -> bool:
    """Whether the standard output is a terminal on which colours are wanted (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def describe_row(number: int, row: Row) -> str:
    """``row 0: 2 texts in 96 positions, 7 of them padding; 31 targets learned``."""
    texts = f"{len(row.texts)} text{'s' * (len(row.texts) != 1)}"
    source = f" of {row.source}" * bool(row.source)
    words = (
        f"row {number}{source}: {texts} in {row.positions} positions, {row.padding} of them padding"
    )
    return f"{words}; {row.learned} targets learned"


def write_rows(about: str, rows: Sequence[Row], colours: bool) -> str:
    """All rows as text: what is learned is green, or in brackets."""
    key = f"{GREEN}learned{PLAIN}, {DIM}read alone{PLAIN}"
    lines = [f"data  {about}", f"key   {key if colours else '[[learned]], read alone'}"]
    for number, row in enumerate(rows):
        lines += ["", describe_row(number, row)]
        for parts in row.texts:
            lines.append("---")
            if colours:
                made = (f"{GREEN if p.learned else DIM}{p.text}{PLAIN}" for p in parts)
            else:
                made = (p.text.join(LEARNED) if p.learned else p.text for p in parts)
            lines.append("".join(made))
    return "\n".join(lines)


def draw_rows(name: str, about: str, rows: Sequence[Row]) -> str:
    """All rows as a page."""
    body = [_STYLE, f"<h1>What {text(name)} trains on</h1><p>{text(about)}</p>"]
    body.append('<p class="row"><span class="learned">learned</span> read alone</p>')
    for number, row in enumerate(rows):
        body.append(f"<h2>{text(describe_row(number, row))}</h2>")
        for parts in row.texts:
            made = (
                f'<span class="{"learned" if p.learned else "read"}" title="{p.tokens} tokens">'
                f"{text(p.text)}</span>"
                for p in parts
            )
            body.append(f'<div class="row">{"".join(made)}</div>')
    return document(f"{name}: data", "\n".join(body))
