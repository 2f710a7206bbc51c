"""All pages in a browser: nothing goes wrong, no network is asked, and all figures are drawn."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from browser import BROWSER
from test_report import EXPERTS, OTHER_FIGURES, ROUTING_FIGURES, write_load, write_run
from test_routing_change import change
from test_study_verdicts import compare

from moejax.lab.routing_change.change_page import change_html
from moejax.lab.study.side_by_side import compare_runs
from moejax.lab.study.study_page import study_html
from moejax.runs.pages.report import write_report

MAKERS = re.compile(r"https?://[\w.-]+\.(google|googleapis|gvt1)\.com/")
DARK = ("--blink-settings=preferredColorScheme=0",)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome here"),
]


def visit(page: Path, tmp_path: Path, *flags: str) -> tuple[str, list[str], list[str]]:
    """The page after its script has run; what the console says; the addresses that it asked for."""
    requests = tmp_path / "requests.json"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--enable-logging=stderr", f"--log-net-log={requests}", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    text = requests.read_text(encoding="utf-8")
    asked = set(re.findall(r'"(?:url|original_url)":"((?!data:|chrome)[^"]*)"', text))
    # The browser asks its makers for updates, the time and accounts: none of the pages names them.
    return done.stdout, console, sorted(one for one in asked if not MAKERS.match(one))


def figures_of(dom: str) -> dict[str, str]:
    """Each figure by its title; of several with one title, the last."""
    figures = re.findall(r"<figure>(.*?)</figure>", dom, flags=re.S)
    return {re.search(r"<h3>(.*?)</h3>", figure).group(1): figure for figure in figures}


def collapsed(directory: Path) -> Path:
    """A run of which one expert of the first layer has nearly all, and loss has blown up."""
    write_run(directory)
    for i in range(1, 13):
        write_load(directory / "load", i)
    alarm = {"kind": "collapse", "words": "the router of layer 1 is collapsing."}
    bad = {"step": 650, "split": "train", "loss": None, "bits_per_byte": None, "alarms": [alarm]}
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(bad) + "\n")
    return directory


@pytest.mark.parametrize("flags", [(), DARK])
def test_the_report_of_a_run(tmp_path, flags):
    for name, make in (("good", write_run), ("bad", collapsed)):
        (tmp_path / name).mkdir()
        page = write_report(make(tmp_path / name))
        dom, console, asked = visit(page, tmp_path, *flags)
        assert console == [] and asked in ([], [page.as_uri()])
        figures = figures_of(dom)
        assert {*ROUTING_FIGURES, *OTHER_FIGURES} <= set(figures)
        assert all("<svg" in figure for figure in figures.values())
        assert ("is collapsing" in dom) == (name == "bad")
    assert EXPERTS == 8  # what write_load draws


def test_three_runs_side_by_side(tmp_path):
    runs = [tmp_path / name for name in ("one", "two", "three")]
    for run in runs:
        run.mkdir()
        write_run(run, routed=run.name != "three")
    page = tmp_path / "comparison.html"
    page.write_text(study_html(compare_runs(runs, "moejax report")), encoding="utf-8")
    dom, console, asked = visit(page, tmp_path)
    assert console == [] and asked in ([], [page.as_uri()])
    wanted = {"Bits per byte, ranked", "Validation, bits per byte", "Training loss", "one", "two"}
    assert wanted <= set(figures_of(dom)) and "three" not in figures_of(dom)


@pytest.mark.parametrize("flags", [(), DARK])
def test_the_verdicts_of_a_study(tmp_path, flags):
    page = tmp_path / "study.html"
    page.write_text(study_html(compare(margin=0.01)), encoding="utf-8")
    dom, console, asked = visit(page, tmp_path, *flags)
    assert console == [] and asked in ([], [page.as_uri()])
    figures = figures_of(dom)
    assert "<svg" in figures["Bits per byte, against base"]
    assert figures["Bits per byte, all pairs"].count("<tr>") == 6


def test_a_change_of_routing(tmp_path):
    page = tmp_path / "routing.html"
    page.write_text(change_html(change()), encoding="utf-8")
    dom, console, asked = visit(page, tmp_path)
    assert console == [] and asked in ([], [page.as_uri()])
    figures = figures_of(dom)
    assert {"The same choices, %", "Load after", "Layer 3, after"} <= set(figures)
    assert all("<svg" in figure for figure in figures.values())


def test_the_check_finds_errors_and_requests(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<script>nothing.there()</script><img src="http://localhost:9/x.png">')
    _, console, asked = visit(page, tmp_path)
    assert any("nothing is not defined" in line for line in console)
    assert "http://localhost:9/x.png" in asked
