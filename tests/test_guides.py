"""What the documentation says is so: files and links exist, commands parse, code runs."""

import ast
import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moejax.hf
from moejax.commands.command_line import override, parse_config, parse_known, parse_settings
from moejax.commands.main import find_command
from moejax.commands.short_flags import lengthen
from moejax.config import Config, ModelConfig, MoEConfig, flatten, load_config_file, to_dict
from moejax.models.by_kind import build
from moejax.routing.routers import ROUTERS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/guides").glob("*.md")),
]
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}


def code_blocks(text: str) -> list[str]:
    """The indented and the fenced blocks of a page, Python left out."""
    blocks = re.findall(r"^ *```(\S*).*?\n(.*?)^ *```$", text, re.S | re.M)
    fenced = [block for language, block in blocks if language in ("", "text", "bash")]
    rest = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.S | re.M)
    return fenced + re.findall(r"(?:^ {4,}.*\n)+", rest, re.M)


def commands(text: str) -> list[list[str]]:
    """The words of each `moejax ...` and `python train.py ...` in the blocks of a page."""
    found = []
    for block in code_blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&", line.split(" #")[0].split(" > ")[0]):
                words = shlex.split(part, comments=True)
                while words and (words[0] == "srun" or re.fullmatch(r"[A-Z_]+=.*", words[0])):
                    words = words[1:]
                if words[:1] == ["moejax"] or words[:2] == ["python", "train.py"]:
                    found.append(words)
    return found


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with what the commands of the documentation name."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    router = re.search(r"```python\n(.*?)```", TEXTS["README.md"], re.S)[1]
    (tmp_path / "configs/top_p.py").write_text(router)
    (tmp_path / "models/olmoe").mkdir(parents=True)
    quickstart = to_dict(load_config_file(ROOT / "configs/quickstart.py"))
    (tmp_path / "models/olmoe/config.json").write_text(json.dumps(quickstart))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    ROUTERS.pop("top_p", None)


def test_the_readme_fits_on_few_screens():
    assert len(TEXTS["README.md"].splitlines()) <= 160


@pytest.mark.parametrize("page", TEXTS)
def test_files_that_a_page_names_exist(page):
    names = r"(?:moejax|configs|docs|tests|notebooks)/[\w./*-]*\w\.(?:py|md|ipynb|png|svg)"
    named = set(re.findall(rf"(?<![\w/.]){names}", TEXTS[page]))
    named |= {name + "/" for name in re.findall(r"`((?:moejax/)[\w/]+)/`", TEXTS[page])}
    own = {"configs/top_p.py", "configs/studies/mine.py", "configs/studies/learning_rate.py"}
    missing = [name for name in named - own if not list(ROOT.glob(name))]
    assert not missing


def test_files_in_the_drawing_exist():
    drawing = (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")
    named = re.findall(r'class="file"[^>]*>([^<]+)<', drawing)
    assert len(named) > 15
    assert not [n for n in named if not ((ROOT / "moejax" / n).exists() or (ROOT / n).exists())]


@pytest.mark.parametrize("page", TEXTS)
def test_links_inside_the_documentation_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if target.startswith("http") or target.endswith("lesson.ipynb"):
            continue
        file, _, heading = target.partition("#")
        there = (ROOT / page).parent / file if file else ROOT / page
        assert there.is_file(), target
        titles = re.findall(r"^#+ (.*)$", there.read_text("utf-8") if heading else "", re.M)
        anchors = [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]
        assert not heading or heading in anchors, target


@pytest.mark.parametrize("page", TEXTS)
def test_settings_that_a_page_names_exist(page):
    known = {name.replace("_", "-") for name in flatten(to_dict(Config()))}
    sections = "model|data|optim|mesh|distributed|run|moe|balance"
    for name in re.findall(rf"--(?:{sections})\.[\w.*-]*", TEXTS[page]):
        start = lengthen([name])[0].removeprefix("--").rstrip(".*")
        assert start in known or any(k.startswith(start + ".") for k in known), name


def parse_words(words: list[str]) -> object:
    """The settings of a command line, parsed by the command that it names and not run."""
    if words[0] == "python":
        return parse_config(words[2:], "python train.py")
    command, name, rest = find_command(words[1:])
    file, function = command.function.split(":")
    takes = get_type_hints(getattr(import_module(f"moejax.commands.{file}"), function))
    if "words" in takes:
        return parse_config(rest, name)
    if "flags" not in takes:
        return parse_settings(takes["settings"], rest, name, command.summary)
    settings, flags = parse_known(takes["settings"], rest, name, command.summary)
    config = Config() if settings.config is None else load_config_file(settings.config)
    return settings, override(config, flags, name)


@pytest.mark.parametrize("page", [name for name in TEXTS if commands(TEXTS[name])])
def test_commands_that_a_page_shows_are_understood(page, workplace):
    for words in commands(TEXTS[page]):
        assert parse_words(words) is not None


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_begins_with_what_it_is_for_and_a_command(guide):
    title, purpose, block = guide.read_text(encoding="utf-8").split("\n\n")[:3]
    assert title.startswith("# ") and purpose.startswith("This guide") and purpose.endswith(".")
    assert block.startswith("    ") and (commands(block + "\n") or "jupyter" in block)


def python_blocks(page: str) -> str:
    """All Python of a page, one after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", TEXTS[page], re.S))


def run_page(page: str, **given) -> dict:
    """Run the Python of a page in an empty module; what it defined."""
    names = dict(given)
    exec(compile(python_blocks(page), page, "exec"), names)
    return names


def test_the_python_of_adding_a_router_answers_what_it_says(workplace):
    names = run_page("docs/guides/adding_a_router.md")
    choice = names["choice"]
    assert choice.expert_GSK.tolist() == [[[0, 1], [0, 2]]]
    np.testing.assert_allclose(choice.weight_GSK, [[[0.78, 0.22], [0.67, 0.33]]], atol=5e-3)
    seated = names["seat"](choice.expert_GSK, names["inputs"].real_GS, 3, 1)
    assert seated.tolist() == [[[0, 0], [-1, 0]]]


@pytest.mark.slow
def test_the_python_of_adding_a_model_learns(workplace):
    names = run_page("docs/guides/adding_a_model.md")
    assert names["logits"].shape == (2, 8, 5)
    assert 0.5 < float(names["loss"]) < 4


@pytest.mark.slow
def test_the_python_of_across_devices_gives_what_there_is_without_replicas(workplace):
    names = run_page("docs/guides/devices.md")
    expected, _ = names["model"].apply({"params": names["params"]}, names["batch"], False)
    np.testing.assert_allclose(names["logits"], expected, atol=1e-4)


def test_the_python_of_adding_a_data_set_gives_batches(workplace):
    names = run_page("docs/guides/adding_a_data_set.md")
    assert names["batches"][0]["inputs"].shape == (4, 64)
    assert len(Path("notes.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_the_study_of_comparing_configs_is_complete(workplace):
    study = run_page("docs/guides/comparing_configs.md")["get_study"]()
    rates = {name: config.optim.learning_rate for name, config in study.runs.items()}
    assert rates == {"3e-3": 3e-3, "1e-2": 1e-2}


def test_the_python_of_large_studies_tunes_and_reads(workplace, capsys):
    folder, row = Path("studies/routers"), {"setting": {"optim.learning_rate": 0.02}}
    row |= {"seed": 1, "bits_per_byte": 2.5, "processor_seconds": 30}
    folder.mkdir(parents=True)
    runs = {"top_k": {"mean": {"bits_per_byte": 2.5}, "seeds": [row]}}
    about = {"title": "t", "question": "q", "command": "c", "baseline": None, "runs": runs}
    (folder / "results.json").write_text(json.dumps(about))
    study = run_page("docs/guides/large_studies.md")["get_study"]()
    assert [len(study.settings_of(name)) for name in study.runs] == [3, 3, 3]
    assert capsys.readouterr().out == "1 {'optim.learning_rate': 0.02} 2.5 30\n"


def test_the_python_of_released_models_reads_and_writes(workplace):
    model = ModelConfig(
        num_layers=1, width=16, num_heads=2, qk_norm=False, moe=MoEConfig(hidden_size=8)
    )
    tokens_BN = jnp.ones((1, 128), jnp.int32)
    batch = {"inputs": tokens_BN, "segments": tokens_BN, "positions": jnp.arange(128)[None]}
    params = jax.jit(lambda: build(model, 256).init(jax.random.key(0), batch, False)["params"])()
    moejax.hf.save("path/to/OLMoE-1B-7B", model, params, None)
    names = run_page("docs/guides/released_models.md", tokens_BN=tokens_BN)
    assert names["logits_BNV"].shape == (1, 128, 256)
    assert Path("path/to/new/config.json").is_file()


def test_rarer_letters_are_explained_at_the_head_of_the_file_that_uses_them():
    main = set(re.findall(r"\| ([A-Z]) \|", TEXTS["docs/architecture.md"]))
    assert len(main) == 14
    for file in sorted((ROOT / "moejax").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        suffixes = re.findall(r"\b[a-z][a-z0-9_]*_([A-Z0-9]*[A-Z][A-Z0-9]*)\b", text)
        used = {letter for letter in "".join(suffixes) if letter.isalpha()}
        head = (ast.get_docstring(ast.parse(text)) or "").partition("Letters:")[2]
        assert used - main <= set(re.findall(r"\b([A-Z]):", head)), file


def test_the_guide_of_serving_names_all_that_there_is():
    """Families in its table; fields that are refused or pass; metrics; flags of limits."""
    from moejax.hf.families import FAMILIES
    from moejax.inference.server import asked, chat, completions, fields, metrics
    from moejax.inference.server.limits import Limits

    page = TEXTS["docs/serving.md"]
    tables = (asked._NOT_SUPPORTED, chat._NOT_SUPPORTED, completions._NOT_SUPPORTED)
    named = {*FAMILIES, *fields.LABELS, *(name for table in tables for name in table)}
    named |= metrics._GAUGES.keys() | metrics._HISTOGRAMS.keys()
    named |= {f"{name}_total" for name in metrics._COUNTERS}
    assert not [name for name in named if f"`{name}" not in page]
    flags = [f"`--{name}" for name in vars(Limits())]
    assert all(flag.replace("_", "-") in page for flag in flags)
