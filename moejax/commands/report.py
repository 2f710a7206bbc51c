"""`moejax report`: the page of a run, or of several runs side by side."""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from moejax.config.checks import check
from moejax.lab.study.results import to_json
from moejax.lab.study.side_by_side import compare_runs, read_trained
from moejax.lab.study.study_page import study_html
from moejax.lab.study.tables import make_table, write_markdown
from moejax.runs.pages.report import report_html
from moejax.runtime.atomic_files import write_text
from moejax.runtime.writing import writing_to


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Which runs, and where the page goes."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Directories of runs, finished or not."""
    output: Path | None = None
    """Where the page is written; by default report.html in RUN, or comparison.html here for
    several."""
    json: bool = False
    """Print the figures as JSON; write only to --output."""

    def __post_init__(self) -> None:
        check(bool(self.runs), "RUN is missing: the directory of a run, such as runs/quickstart.")


def report(settings: ReportSettings) -> None:
    """Write the page and print the table."""
    runs, output = settings.runs, settings.output
    check(output is None or not output.is_dir(), f"--output {output} is a directory: name a file.")
    command = shlex.join(["moejax", *sys.argv[1:]])
    comparison = compare_runs(runs, command)
    if output is None and not settings.json:
        output = runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html")
    if output is not None:
        there = output.parent.is_dir()
        check(there, f"--output {output}: there is no directory {output.parent}.")
        one = len(runs) == 1
        html = report_html(read_trained(runs[0])) if one else study_html(comparison)
        with writing_to("--output FILE"):
            write_text(output, html)
    if settings.json:
        print(json.dumps(to_json(comparison), indent=2), flush=True)
        return
    print(f"{write_markdown(make_table(comparison))}\npage     {output}", flush=True)
