"""`moejax specialisation`: what each expert of a trained model takes."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from moejax.commands.model_settings import (
    TextSettings,
    check_batch,
    open_language_model,
    open_settings_text,
)
from moejax.config.checks import check, check_positive
from moejax.data.check_tokens import check_known
from moejax.inference.inference_config import inference_config
from moejax.lab.specialisation.collect_choices import check_routed
from moejax.lab.specialisation.compare_choices import compare_with_classes
from moejax.lab.specialisation.findings import findings_json, summarize
from moejax.lab.specialisation.sample import check_tokens, draw_sample
from moejax.lab.specialisation.specialisation_page import specialisation_html
from moejax.runs.metric_lines import null_not_finite
from moejax.runtime.atomic_files import write_text
from moejax.runtime.writing import writing_to


@dataclass(frozen=True, kw_only=True)
class SpecialisationSettings(TextSettings):
    """The settings of `moejax specialisation`."""

    batch_size: int | None = 16
    """Sequences in a batch, over all devices."""
    tokens: int = 65_536
    """Tokens to look at, spread evenly over all documents."""
    shifts: int = 100
    """Shifts of the classes against the routing, which say what chance gives."""
    output: Path | None = None
    """The page; by default specialisation.html in the model's directory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("", self, "tokens", "shifts")
        check(self.shifts >= 10, f"--shifts {self.shifts} give no spread: take 10 or more.")
        check_tokens(self.tokens)


def specialisation(settings: SpecialisationSettings) -> None:
    """Look at the routing, write the page and print a summary."""
    started = time.monotonic()
    path = settings.output or settings.path / "specialisation.html"
    model, mesh = open_language_model(settings)
    check_routed(model.config, settings.path)
    check(path.parent.is_dir(), f"--output {path}: there is no directory {path.parent}.")
    check(not path.is_dir(), f"--output {path} is a directory: name a file.")
    config, length = inference_config(model.config), settings.length(model)
    rows = settings.batch_size or 16
    check_batch(config, length, rows, mesh)
    documents, about = open_settings_text(settings, model)
    whole = min(config.moe.group_size, length)
    assert model.tokenizer is not None  # as in every language model that is opened here
    sample = draw_sample(documents, model.tokenizer, length, settings.tokens, whole)
    check_known(sample.inputs_BN, model.vocab_size, model.tokenizer)
    found = compare_with_classes(
        model,
        config,
        mesh,
        sample,
        name=settings.path.resolve().name,
        data=about,
        rows=rows,
        shifts=settings.shifts,
    )
    with writing_to("--output FILE"):
        write_text(path, specialisation_html(found))
    seconds = time.monotonic() - started
    figures = findings_json(found) | {"seconds": seconds, "page": str(path)}
    text = (
        json.dumps(null_not_finite(figures), indent=2)
        if settings.json
        else summarize(found, path, seconds)
    )
    print(text, flush=True)
