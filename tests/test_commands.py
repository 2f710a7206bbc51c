"""The `moejax` command: its table, its help, its version, and the flags of a config."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import moejax
from moejax.commands import generate
from moejax.commands.command_line import explain_no_memory, parse_config
from moejax.commands.eval import EvalSettings
from moejax.commands.main import COMMANDS, Group, find_command, list_commands, main, run
from moejax.commands.report import ReportSettings
from moejax.commands.short_flags import lengthen
from moejax.commands.study import StudySettings
from moejax.config import ConfigError, RunConfig, changed, load_config_file
from moejax.inference.sampling import Sampling

ROOT = Path(__file__).parents[1]
QUICKSTART = ["--config", str(ROOT / "configs/quickstart.py")]


def end(*words: str, capsys) -> tuple[int, str, str]:
    """How a command line ends: exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as error:
        run(list(words))
    out, errors = capsys.readouterr()
    return error.value.code, out, errors


def test_help_lists_every_command_with_its_summary(capsys):
    code, out, _ = end("--help", capsys=capsys)
    said = " ".join(out.split())
    assert code == 0
    for name, summary in list_commands(COMMANDS):
        assert f" {name} {' '.join(summary.split())}" in said, name
    assert end("-h", capsys=capsys)[1] == out
    assert all(len(line) <= 100 for line in out.splitlines())


@pytest.mark.parametrize("group", ["plan", "bench"])
def test_the_help_of_a_group_lists_its_commands(group, capsys):
    code, out, _ = end(group, "--help", capsys=capsys)
    assert code == 0 and out.startswith(f"usage: moejax {group} COMMAND")
    assert all(f"  {name} " in out for name in COMMANDS[group].commands)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["stduy"], "there is no `moejax stduy`. Did you mean `moejax study`?"),
        (["specialization"], "Did you mean `moejax specialisation`?"),
        (["bench", "layers"], "Did you mean `moejax bench layer`?"),
        (["wings"], "there is no `moejax wings`: train, study, report"),
        (["bench"], "`moejax bench` needs a command: layer, compiled"),
        ([], "`moejax` needs a command: train, study"),
    ],
)
def test_a_command_that_does_not_exist_is_answered_with_those_near(words, hint, capsys):
    code, out, errors = end(*words, capsys=capsys)
    assert (code, out) == (2, "") and hint in errors


def test_the_version_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["moejax", "--version"])
    main()
    assert capsys.readouterr().out == f"moejax {moejax.__version__}\n"


def name_commands() -> list[str]:
    """All commands that can be run, those of groups by both words."""
    names = [name for name, _ in list_commands(COMMANDS)]
    return [name for name in names if not isinstance(COMMANDS.get(name), Group)]


@pytest.mark.parametrize("name", name_commands())
def test_every_command_explains_itself(name, capsys):
    command, found, rest = find_command([*name.split(), "--help"])
    assert (found, rest) == (f"moejax {name}", ["--help"])
    file, function = command.function.split(":")
    assert callable(getattr(import_module(f"moejax.commands.{file}"), function))
    code, out, _ = end(*name.split(), "--help", capsys=capsys)
    assert code == 0 and f"moejax {name}" in out


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["report"], "RUN is missing"),
        (["study", "a.py", "--only"], "--only needs the names of runs"),
        (["train"], "--config is missing"),
        (["plan", "compile"], "--config is missing"),
        (["plan", "compile", *QUICKSTART], "--target is missing"),
        (["plan", *QUICKSTART, "--device", "v9"], "--device v9 is not known. There are: "),
    ],
)
def test_what_is_missing_is_named(words, wrong):
    with pytest.raises(ConfigError, match=wrong):
        run(words)


@pytest.mark.parametrize(
    "words", [["study"], ["report", "a", "--jsn"], ["plan", "placement", "--devices", "8"]]
)
def test_wrong_flags_end_with_exit_code_2(words, capsys):
    assert end(*words, capsys=capsys)[:2] == (2, "")


def test_several_runs_and_names_are_taken(monkeypatch):
    seen = []

    def see_report(settings: ReportSettings) -> None:
        seen.append(settings)

    def see_study(settings: StudySettings) -> None:
        seen.append(settings)

    monkeypatch.setattr("moejax.commands.report.report", see_report)
    monkeypatch.setattr("moejax.commands.study.study", see_study)
    run(["report", "a", "b", "--json"])
    run(["study", "mine.py", "--only", "one", "two"])
    assert seen == [
        ReportSettings(runs=(Path("a"), Path("b")), json=True),
        StudySettings(file=Path("mine.py"), only=("one", "two")),
    ]


def test_a_config_is_changed_by_flags_long_and_short():
    flags = ["--moe.top-k", "4", "--balance.loss-weight=0.5", "--run.steps", "7"]
    config, name = parse_config([*QUICKSTART, *flags], "moejax train")
    wanted = {"model.moe.top_k": 4, "model.moe.balance.loss_weight": 0.5, "run.steps": 7}
    assert (config, name) == (changed(load_config_file(QUICKSTART[1]), wanted), "quickstart")


def test_the_flags_of_a_config_are_explained_once(capsys):
    code, out, _ = end("train", "--help", capsys=capsys)
    assert code == 0 and "--model.moe.top-k" in out
    assert out.count("--moe.top-k 2") == 1


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("--moe.top-k 2", "--model.moe.top-k 2"),
        ("--moe.top_k=2", "--model.moe.top-k=2"),
        ("--balance.loss-weight 0", "--model.moe.balance.loss-weight 0"),
        ("--moe.balance.scope batch", "--model.moe.balance.scope batch"),
        ("--moe.top-k 2 --model.moe.top-k 2", "--model.moe.top-k 2"),
        ("--model.moe.top-k=2 --moe.top-k 2", "--model.moe.top-k=2"),
        ("--run.steps 3 --mesh.expert 2", "--run.steps 3 --mesh.expert 2"),
        ("-h", "-h"),
        ("word --moe.every -1", "word --model.moe.every -1"),
    ],
)
def test_short_flags_stand_for_long_ones(words, meant):
    assert lengthen(words.split()) == meant.split()


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("--moe.top-k 2", "--model.moe.top-k 4"),
        ("--model.moe.top-k 4", "--moe.top-k 2"),
        ("--moe.balance.loss-weight 0", "--balance.loss-weight 1"),
    ],
)
def test_two_names_with_two_values_are_refused(one, two):
    with pytest.raises(ConfigError, match=f"^{one} and {two} give one setting two values"):
        lengthen([*one.split(), "--run.steps", "3", *two.split()])


def test_the_help_of_the_command_imports_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['moejax', '--help']\n"
        "from moejax.commands.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*(m for m in ('jax', 'numpy', 'tyro', 'argparse') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RunConfig(steps=10**20), "--run.steps must be at most 2,147,483,647"),
        (lambda: RunConfig(sample_tokens=10**12), "--run.sample-tokens must be at most"),
        (lambda: Sampling(tokens=10**12), "--tokens must be at most 2,147,483,647"),
        (lambda: EvalSettings(path=Path("a"), batch_size=10**12), "--batch-size must be at most"),
    ],
)
def test_numbers_that_no_index_holds_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("file", ["/dev/zero", "pipe", "large", "folder"])
def test_a_file_of_prompts_has_an_end(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "MOST_PROMPT_BYTES", 100)
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("large").write_text("x" * 101)
    settings = generate.GenerateSettings(path=Path("a"), prompt_file=file)
    with pytest.raises(ConfigError, match=f"--prompt-file {file} cannot be read: "):
        generate.collect_prompts(settings)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 116. TiB"), "memory is not enough: Unable to allocate"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\n---"), "5 bytes. A"),
        (RuntimeError("something else"), None),
    ],
)
def test_too_little_memory_ends_in_one_message(error, words):
    said = explain_no_memory(error)
    assert said is None if words is None else words in str(said)
