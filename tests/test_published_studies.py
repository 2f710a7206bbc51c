"""The studies whose results are in the documentation: the study file still describes what was
trained, settings were chosen fairly, and each figure of a table is in the results.
"""

import re
import runpy
import tarfile
from pathlib import Path

import pytest

import moejax
from moejax.config.change import changed
from moejax.config.files import read_config_json
from moejax.config.idle import FILLED
from moejax.lab.study.definition import load_study_file
from moejax.lab.study.identity import digest_training
from moejax.lab.study.trials import DIVERGED, Plan
from moejax.lab.study.write_comparison import differing_settings
from moejax.routing.routers import ROUTERS
from moejax.runs.records import read_run

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "docs/studies").glob("*/results.json"))
NAMES = [file.parent.name for file in RESULTS]


@pytest.fixture(scope="module", params=NAMES)
def published(request):
    """The results of a study, and the study as its file has it today."""
    file = ROOT / f"configs/studies/{request.param}.py"
    return moejax.study.load(ROOT / "docs/studies" / request.param), load_study_file(file)


def test_there_are_published_studies():
    assert "quickstart_pays" in NAMES


def test_the_file_has_the_runs_and_settings_that_were_trained(published):
    results, study = published
    assert results.arms == tuple(study.runs)
    chosen = {
        name: study.config_of(
            name, study.settings_of(name)[results.raw["tuning"][name]["chosen"] - 1]
        )
        for name in study.runs
    }
    now = differing_settings(chosen)
    assert {field: now[field] for field in results.raw["settings"]} == results.raw["settings"]
    assert set(now) == set(results.raw["settings"])


def test_settings_were_chosen_fairly(published):
    """As many for each run, none of them the last that was tried, by a seed that does not judge."""
    results, study = published
    tuning = {name: of for name, of in results.raw["tuning"].items() if not of["taken_from"]}
    assert len({len(of["settings"]) for of in tuning.values()}) == 1
    for name, of in tuning.items():
        tried = [row["setting"] for row in of["settings"]]
        assert tried == [dict(one) for one in study.settings_of(name)]
        measured = [row[results.measure] for row in of["settings"]]
        least = min(value for value in measured if value is not None)
        assert measured.index(least) + 1 == of["chosen"]
        assert {row["seed"] for row in of["settings"]} == {study.tune_seed}
        assert study.tune_seed not in {row["seed"] for row in results.of(name)}
    assert results.edges == {}


def test_every_row_has_finished_or_diverged_and_says_how_to_make_it_again(published):
    results, study = published
    for row in [*results.rows, *results.tuning_rows]:
        assert row["status"] in ("finished", "diverged"), row["directory"]
        assert re.fullmatch(
            r"moejax study configs/studies/\w+\.py --only [\w.-]+ --seed \d+( --setting \d+)?",
            row["command"],
        )
        assert row["curve"]["step"][-1] == study.runs[row["arm"]].run.steps


def test_the_figures_of_the_documentation_are_those_of_the_results(published):
    """A row of a table begins with the name of a run; its measure follows, and its verdict, where
    there is a baseline.
    """
    results, _ = published
    command = "    " + results.command.split(" --")[0]
    pages = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))]
    text = next(text for text in pages if re.search(rf"^{re.escape(command)}\b", text, re.M))
    section = re.split(rf"^{re.escape(command)}\b", text, maxsplit=1, flags=re.M)[1]
    found = {}
    for line in section.split("\n## ")[0].splitlines():
        name = re.match(r"\| `?([\w.-]+)", line)
        if name and name[1] in results.arms:
            cells = line.replace("\N{NO-BREAK SPACE}", " ").split("|")[2:4]
            found[name[1]] = [cell.strip(" *†") for cell in cells]
    assert set(found) == set(results.arms)
    for name, (measured, verdict) in found.items():
        edges = (results.raw["runs"][name][of][results.measure] for of in ("mean", "min", "max"))
        assert measured == "{:.4f} ({:.4f}..{:.4f})".format(*edges), name
        if results.baseline:
            words = results.verdicts[name]["words"] if name != results.baseline else "baseline"
            assert verdict == words, name


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("catalogue")])
def test_the_page_and_the_picture_of_a_catalogue_are_drawn_from_its_results(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    drawn = runpy.run_path(str(ROOT / "docs/draw_catalogue.py"))
    results = moejax.study.load(ROOT / "docs/studies" / name)
    page = (ROOT / "docs/catalogue.md").read_text(encoding="utf-8")
    assert drawn["fill_page"](page, name, drawn["describe_arms"](results)) == page
    picture = (ROOT / f"docs/{name}.svg").read_text(encoding="utf-8")
    assert drawn["draw"](results) == picture


def test_the_page_and_the_picture_of_the_frontier_are_drawn_from_its_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    drawn = runpy.run_path(str(ROOT / "docs/draw_frontier.py"))
    page = (ROOT / "docs/frontier.md").read_text(encoding="utf-8")
    assert drawn["fill"](page) == page
    assert drawn["draw_results"]() == (ROOT / "docs/frontier.svg").read_text(encoding="utf-8")


ARCHIVES = sorted((ROOT / "docs/studies").glob("*/trained.tar.xz"))


COMPLETE = [archive for archive in ARCHIVES if (archive.parent / "results.json").exists()]


def name_study(archive: Path) -> str:
    return archive.parent.name


@pytest.fixture(params=ARCHIVES, ids=name_study)
def packed(request, tmp_path):
    """The folder of an archive, and the trainings in it, read: none has a path of a machine."""
    with tarfile.open(request.param) as opened:
        opened.extractall(tmp_path, filter="data")
    runs = {place.name: read_run(place) for place in sorted((tmp_path / "trained").iterdir())}
    for name, run in runs.items():
        assert not run.damage
        assert run.config["run"]["directory"] == f"studies/trained/{name}"
        assert not {"folder", "command"} & set(run.summary)
    return request.param.parent, runs


def test_trainings_are_packed():
    assert ROOT / "docs/studies/catalogue/trained.tar.xz" in COMPLETE


@pytest.mark.parametrize("packed", COMPLETE, ids=name_study, indirect=True)
def test_what_is_packed_is_what_the_results_are_of(packed):
    """Each training of the results, with the same figures."""
    directory, runs = packed
    results = moejax.study.load(directory)
    rows = [*results.rows, *results.tuning_rows]
    assert {Path(row["place"]).name for row in rows} == set(runs)
    for row in (row for row in rows if row["status"] == "finished"):
        run = runs[Path(row["place"]).name]
        assert (run.directory / "report.html").exists()
        assert run.config["run"]["directory"] == row["place"]
        assert run.validation[-1][results.measure] == row[results.measure]
        assert run.config["run"]["seed"] == row["seed"]


@pytest.mark.slow
def test_what_is_packed_is_what_the_study_wants(packed):
    """Trainings of its runs, its settings and its seeds, to the last step."""
    directory, runs = packed
    study = load_study_file(ROOT / f"configs/studies/{directory.name}.py")
    plan = Plan(study=study, store=Path(), identify=lambda config: digest_training(config, ""))
    wanted = {
        plan.trial(name, seed, number + 1).directory.name
        for name in study.runs
        for seed in (*study.seeds_for(name), study.tune_seed)
        for number in range(len(study.settings_of(name)))
    }
    for run in runs.values():
        config = read_config_json(run.directory / "config.json")
        config = changed(config, dict.fromkeys(FILLED))  # what the training has found out
        assert digest_training(config, "") in wanted, run.directory.name
        if not (run.directory / DIVERGED).exists():
            assert (run.directory / "report.html").exists()
            assert run.validation[-1]["step"] == config.run.steps


def test_the_catalogue_takes_a_router_of_ones_own(tmp_path, monkeypatch):
    """By the file of its page; all else stays what is packed."""
    router = (ROOT / "README.md").read_text().split("## To add a router")[1]
    own = (ROOT / "docs/catalogue.md").read_text().split("configs/studies/mine.py")[1]
    for file, text in (("top_p.py", router), ("mine.py", own)):
        code = re.search(r"```python\n(.*?)```", text, re.S)[1]
        (tmp_path / file).write_text(code.replace("configs/top_p.py", f"{tmp_path}/top_p.py"))
    monkeypatch.chdir(ROOT)
    study, catalogue = map(load_study_file, (tmp_path / "mine.py", "configs/studies/catalogue.py"))
    del ROUTERS["top_p"]
    assert study.runs == catalogue.runs | {"top_p": study.runs["top_p"]}
    assert study.runs["top_p"].model.moe.router == "top_p"
    assert study.settings_of("top_p") == study.settings_of("top_k")


def test_ways_to_balance_begin_from_the_best_rates_of_their_router():
    chosen = moejax.study.load(ROOT / "docs/studies/catalogue").chosen["top_k"]
    study = load_study_file(ROOT / "configs/studies/catalogue_balance.py")
    loss = study.runs[study.baseline]
    assert chosen == {name: getattr(loss.optim, name.split(".")[1]) for name in chosen}
