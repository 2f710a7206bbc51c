"""`moejax report`: the page of a run, of several runs side by side, or of a change of routing."""

import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from moejax.commands.report_routing import RoutingSettings, compare_routing, is_before_and_after
from moejax.config.checks import check
from moejax.config.need import Need
from moejax.lab.routing_change.change_page import change_html
from moejax.lab.routing_change.findings import change_json, summarize_change
from moejax.lab.study.results_json import to_json
from moejax.lab.study.side_by_side import compare_runs, is_study, read_trained
from moejax.lab.study.study_page import study_html
from moejax.lab.study.tables import make_table, write_markdown
from moejax.runs.metric_lines import null_not_finite
from moejax.runs.pages.report import report_html
from moejax.runtime.atomic_files import write_text
from moejax.runtime.writing import writing_to


@dataclass(frozen=True, kw_only=True)
class ReportSettings(RoutingSettings):
    """Which runs or models, and where the page goes."""

    NEEDS: ClassVar[tuple[Need, ...]] = (
        Need(
            (
                "data",
                "split",
                "text_field",
                "data_directory",
                "sequence_length",
                "batch_size",
                "tokens",
                "dtype",
                "config",
            ),
            lambda s: s.compares_routing,
            "a page of metrics",
            "name two models, BEFORE and AFTER, and for two runs give --routing True, too",
            says="has no effect on",
        ),
    )

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Directories of runs, finished or not, or of studies; or BEFORE and AFTER, two models alike:
    runs, imported models, or checkpoints of Hugging Face."""
    routing: tyro.conf.FlagConversionOff[bool | None] = None
    """Of two: show what their routers do on the same text. By default if AFTER began from BEFORE,
    or one of them is no run, or with --data."""
    output: Path | None = None
    """Where the page is written; by default report.html in RUN, or comparison.html here for
    several, or routing.html here for BEFORE and AFTER."""
    json: bool = False
    """Print the figures as JSON; write only to --output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.runs), "RUN is missing: the directory of a run, such as runs/quickstart.")
        check(
            not self.routing or len(self.runs) == 2,
            f"--routing True compares two models, BEFORE and AFTER, not {len(self.runs)}.",
        )

    @property
    def compares_routing(self) -> bool:
        """Whether the page is about the routing of two models."""
        if self.routing is not None or len(self.runs) != 2:
            return bool(self.routing)
        return self.data is not None or is_before_and_after(*self.runs)


def report(settings: ReportSettings) -> None:
    """Write the page and print the table."""
    output = settings.output
    check(output is None or not output.is_dir(), f"--output {output} is a directory: name a file.")
    there = output is None or output.parent.is_dir()
    check(there, f"--output {output}: there is no directory {output and output.parent}.")
    if settings.compares_routing:
        report_routing(settings)
    else:
        report_runs(settings)


def report_routing(settings: ReportSettings) -> None:
    """The page of two models on the same text."""
    started, output = time.monotonic(), settings.output
    before, after = settings.runs
    found = compare_routing(settings, before, after)
    if output is None and not settings.json:
        output = Path("routing.html")
    if output is not None:
        with writing_to("--output FILE"):
            write_text(output, change_html(found))
    seconds = time.monotonic() - started
    if not settings.json:
        print(summarize_change(found, output, seconds), flush=True)
        return
    figures = change_json(found) | {"seconds": seconds, "page": output and str(output)}
    print(json.dumps(null_not_finite(figures), indent=2), flush=True)


def report_runs(settings: ReportSettings) -> None:
    """The page of one run, or of several side by side."""
    runs, output = settings.runs, settings.output
    command = shlex.join(["moejax", *sys.argv[1:]])
    comparison = compare_runs(runs, command)
    one = len(runs) == 1 and not is_study(runs[0])
    if output is None and not settings.json:
        output = runs[0] / "report.html" if one else Path("comparison.html")
    if output is not None:
        html = report_html(read_trained(runs[0])) if one else study_html(comparison)
        with writing_to("--output FILE"):
            write_text(output, html)
    if settings.json:
        print(json.dumps(to_json(comparison), indent=2), flush=True)
        return
    print(f"{write_markdown(make_table(comparison))}\npage     {output}", flush=True)
