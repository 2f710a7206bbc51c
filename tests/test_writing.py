"""Full and read-only disks, and a standard output that takes nothing or not every letter."""

import errno
import io
import json
import os
import stat
import sys
from pathlib import Path

import hf_models
import pytest
from test_report import write_run
from test_study import Trainer

from moejax.commands import command_line, main, specialisation
from moejax.commands.export import ExportSettings, export_model
from moejax.commands.import_ import ImportSettings, import_model
from moejax.config import MeshConfig, changed, to_dict
from moejax.config.errors import CheckpointError, RunError
from moejax.hf.writing import UNFINISHED, new_directory
from moejax.inference.opening import open_model
from moejax.lab.bench import scaling
from moejax.runs.metric_lines import append_line
from moejax.runtime import atomic_files, device_mesh
from moejax.runtime.new_folders import lock_folder, make_folders
from moejax.runtime.writing import explain
from moejax.train import training

STUDY = """
from moejax import Config, Study
def get_study():
    return Study(title="Two “letters”", question="Why?", runs={"a": Config(), "b": Config()})
"""


class Exited(Exception):
    """Instead of ``os._exit``."""


@pytest.fixture(autouse=True)
def no_exit(monkeypatch):
    """The end of a command does not end the tests."""

    def exit_at_once(code: int):
        raise Exited(code)

    monkeypatch.setattr(command_line.os, "_exit", exit_at_once)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a run, a released model and its import, a study; commands run in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "twin"):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name)
    (tmp_path / "study.py").write_text(STUDY)
    monkeypatch.setattr(training, "train", Trainer())
    monkeypatch.setattr(scaling, "measure_point", lambda shape, rounds: pytest.fail("measured"))
    monkeypatch.setattr(specialisation, "open_language_model", lambda settings: pytest.fail("read"))
    return tmp_path


def end_of(words: list[str], monkeypatch) -> int:
    """The exit code of `moejax WORDS`."""
    monkeypatch.setattr(sys, "argv", ["moejax", *words])
    try:
        main.main()
    except Exited as exited:
        return exited.args[0]
    except SystemExit as exited:
        return exited.code or 0
    return 0


def refuse_writing(monkeypatch, number: int, first: str) -> None:
    """No file whose name begins with ``first`` can be written: some bytes go in, then no more."""

    class Full(io.FileIO):
        def write(self, content):
            super().write(content[: len(content) // 2])
            raise OSError(number, "no more")

    def open_some(file, mode):
        name = Path(file).name.removeprefix(".")
        return Full(file, mode) if name.startswith(first) else open(file, mode)

    monkeypatch.setattr(atomic_files, "open", open_some, raising=False)


WRITING = {
    "report": (["report", "run"], "run/report.html", "--output FILE"),
    "comparison": (["report", "run", "twin"], "comparison.html", "--output FILE"),
    "output": (["report", "run", "--output", "twin/x.html"], "twin/x.html", "--output FILE"),
    "study": (["study", "study.py"], "studies/study/study.html", "--directory DIR"),
    "results": (["study", "study.py"], "studies/study/results.json", "--directory DIR"),
    "its runs": (["study", "study.py"], "metrics.jsonl", "--store DIR"),
    "import": (["import", "model", "new"], "new/.unfinished/config.json", "another new directory"),
    "upcycle": (
        ["upcycle", "dense", "new"],
        "new/.unfinished/config.json",
        "another new directory",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("case", WRITING)
def test_a_file_that_cannot_be_written_is_named(place, monkeypatch, capsys, case, number):
    words, file, elsewhere = WRITING[case]
    hf_models.write(place / "model", "mixtral")
    hf_models.write(place / "dense", "qwen3")
    good = place / file
    if "new" not in words:
        good.parent.mkdir(parents=True, exist_ok=True)
        kept = '{"step": 1, "split": "other"}\n' if good.suffix == ".jsonl" else "as it was"
        good.write_text(kept)
    before = {path for path in place.rglob("*") if path.name != ".lock"}
    with monkeypatch.context() as patched:
        refuse_writing(patched, number, good.name)
        assert end_of(words, patched) == 2
    (error,) = capsys.readouterr().err.splitlines()[-1:]
    assert error.startswith("error: cannot ") and f"{file}: no more" in error
    assert elsewhere in error and "Traceback" not in error
    after = set(place.rglob("*"))
    assert before <= after and not [path for path in after if path.name.endswith(".writing")]
    if "new" in words:
        assert after == before  # the same command can be given again
    elif good.suffix != ".jsonl":
        assert good.read_text() == "as it was"


@pytest.mark.parametrize(
    ("number", "name", "words"),
    [
        (errno.ENOSPC, "x", "cannot write x: no. Make room on that disk, or leave it."),
        (errno.EDQUOT, "x", "cannot write x: no. Make room on that disk, or leave it."),
        (errno.EROFS, "x", "cannot write x: no. Allow writing there, or leave it."),
        (errno.EACCES, "x", "cannot read or write x: no. Allow it, or leave it."),
        (errno.EIO, "x", "cannot read or write x: no."),
        (errno.EIO, None, "cannot read or write a file: no."),
    ],
)
def test_the_message_says_what_to_do(number, name, words):
    assert explain(OSError(number, "no", name), ", or leave it") == words


def test_a_copy_that_fails_names_the_file_that_it_makes():
    error = OSError(errno.ENOSPC, "full", "from", None, "to")
    assert explain(error) == "cannot write to: full. Make room on that disk."


def test_a_folder_that_was_there_is_left_empty(tmp_path):
    """And no link out of it is followed."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "new").mkdir()
    refused = pytest.raises(RunError, match="cannot write .*new/.*/x: full. Make room")
    with refused, new_directory(tmp_path / "new") as place:
        make_folders(place / "a" / "b")
        (place / "link").symlink_to(tmp_path / "kept")
        raise OSError(errno.ENOSPC, "full", str(place / "x"))
    assert list((tmp_path / "new").iterdir()) == [] and (tmp_path / "kept" / "file").exists()


def test_what_a_killed_command_left_goes_at_the_next_try(tmp_path, capsys):
    """Nothing else goes, and not while that command still runs."""
    new = tmp_path / "new"
    (new / UNFINISHED / "model").mkdir(parents=True)
    (new / UNFINISHED / "model" / "half").write_text("x")
    held = lock_folder(new / UNFINISHED)
    with pytest.raises(CheckpointError, match="another command is writing to"), new_directory(new):
        pass
    os.close(held)
    with pytest.raises(RunError, match="is unfinished: give the command that was to write it"):
        open_model(new, mesh=device_mesh.make_mesh(MeshConfig()), layout=MeshConfig())
    with new_directory(new) as place:
        assert list(place.iterdir()) == []
        (place / "config.json").write_text("whole")
        assert not (new / "config.json").exists()
    assert [path.name for path in new.iterdir()] == ["config.json"]
    assert f"removing what an interrupted command left in {new}" in capsys.readouterr().err
    (new / UNFINISHED).mkdir()
    with pytest.raises(CheckpointError, match=r"is not empty \(config.json\)"), new_directory(new):
        pass
    assert (new / "config.json").read_text() == "whole"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_that_a_library_writes_have_the_rights_of_all_others(umask, tmp_path):
    before = os.umask(umask)
    try:
        source = hf_models.write(tmp_path / "in", "llama")
        import_model(ImportSettings(source=source, target=tmp_path / "imported"))
        export_model(ExportSettings(source=tmp_path / "imported", target=tmp_path / "out"))
    finally:
        os.umask(before)
    for folder in (tmp_path / "imported", tmp_path / "out"):
        for path in folder.rglob("*"):
            wanted = (0o777 if path.is_dir() else 0o666) & ~umask
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_lines_of_metrics_name_their_file(tmp_path, monkeypatch):
    refuse_writing(monkeypatch, errno.ENOSPC, "metrics")
    with pytest.raises(OSError, match="metrics.jsonl"):
        append_line(tmp_path / "metrics.jsonl", {"step": 1})


PRINTING = {
    "help": ["--help"],
    "help of a command": ["report", "--help"],
    "version": ["--version"],
    "report": ["report", "run"],
    "figures": ["report", "run", "--json"],
    "study": ["study", "study.py"],
    "plan": ["plan"],
}
OUTPUTS = {"ascii": 0, "latin-1": 0, "closed": 0, "full": 2, "pipe": 1}


class Pipe(io.RawIOBase):
    """Nobody reads it."""

    def writable(self) -> bool:
        return True

    def write(self, _) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def open_output(kind: str):
    """A standard output."""
    if kind == "closed":
        return None
    if kind == "full":
        return open("/dev/full", "w")
    if kind == "pipe":
        return io.TextIOWrapper(io.BufferedWriter(Pipe()))
    return io.TextIOWrapper(io.BytesIO(), encoding=kind)


@pytest.mark.slow
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("case", PRINTING)
def test_any_standard_output_will_do(place, monkeypatch, capsys, output, case):
    words = PRINTING[case]
    if words[0] == "plan":
        (place / "mine.py").write_text("from moejax import Config\nget_config = Config\n")
        words = ["plan", "--config", "mine.py", *words[1:]]
    monkeypatch.setattr(sys, "stdout", open_output(output))
    assert end_of(words, monkeypatch) == OUTPUTS[output]
    errors = capsys.readouterr().err.splitlines()
    want = ["error: cannot write to the standard output: No space left on device."]
    assert errors == (want if output == "full" else [])


def test_letters_that_the_output_lacks_are_question_marks(place, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    (place / "run" / "summary.json").write_text(json.dumps({"name": "é"}))
    (place / "run").rename(place / "ünder")
    assert end_of(["report", "ünder"], monkeypatch) == 0
    assert b"page     ?nder/report.html" in written.getvalue()


@pytest.mark.slow
def test_a_run_prints_to_any_output(tiny, tmp_path, monkeypatch):
    """Its folder and its text have letters that the output lacks."""
    monkeypatch.chdir(tmp_path)
    for name in ("é.txt", "held_out.txt"):
        (tmp_path / name).write_text("“Où sont les clés ?” " * 400, encoding="utf-8")
    data = {"source": "files", "files": "é.txt", "validation_files": "held_out.txt"}
    config = changed(tiny, {"data": data, "run": {"steps": 2, "directory": "rün"}})
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    for words in (
        ["train", "--config", "config.json"],
        ["generate", "rün", "--prompt", "“é", "--tokens", "4"],
        ["eval", "rün"],
        ["specialisation", "rün", "--tokens", "2000"],
        ["export", "rün", "öut"],
        ["report", "rün"],
    ):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
        assert end_of(words, monkeypatch) == 0, words
        assert b"?" in written.getvalue(), words


def test_a_pipe_or_a_device_is_written_to_and_not_replaced(tmp_path):
    """`--output /dev/full`, typed by root, once put a page in the place of the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic_files.write_text(pipe, "a page")
        assert os.read(reading, 100) == b"a page"
    finally:
        os.close(reading)
    assert pipe.is_fifo()
