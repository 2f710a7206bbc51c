"""Local files as documents: which, in which order, on which side, and what can go wrong."""

import os
import shutil

import pytest

from moejax.config import ConfigError, DataConfig
from moejax.data.sources import open_documents, open_text
from moejax.data.text_files import TextFiles


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text)


def open_files(pattern, **settings):
    return open_documents(DataConfig(source="files", files=str(pattern), **settings))


def names(documents):
    return [os.path.basename(path) for path in documents.paths]


def test_glob_is_sorted_recursive_and_binary_safe(tmp_path):
    write(tmp_path / "books", b=b"\xff\xfd\r\n", a=b"first", empty=b"")
    write(tmp_path / "books" / "more", c=b"third")
    write(tmp_path / "held", v=b"held out")
    corpus = open_files(
        tmp_path / "books" / "**" / "*.txt", validation_files=str(tmp_path / "held" / "*")
    )
    assert names(corpus.train) == ["a.txt", "b.txt", "c.txt"]
    assert corpus.train[1] == b"\xff\xfd\r\n"
    assert corpus.validation[0] == b"held out"
    assert "3 documents (14 B) to train on, 1 document (8 B) held out" in corpus.description


def test_hold_out_is_stable_and_moves_with_the_folder(tmp_path):
    write(tmp_path / "here", **{f"f{i:03}": b"text" for i in range(200)})
    corpus = open_files(tmp_path / "here" / "*.txt", validation_percent=10)
    held_out = names(corpus.validation)
    assert 8 < len(held_out) < 35
    assert not set(held_out) & set(names(corpus.train))
    assert len(held_out) + len(corpus.train) == 200
    write(tmp_path / "here", added=b"text")
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = open_files(tmp_path / "there" / "*.txt", validation_percent=10)
    assert set(held_out) <= set(names(moved.validation)) <= {*held_out, "added.txt"}


def test_held_out_files_are_not_trained_on(tmp_path):
    write(tmp_path, a=b"a", b=b"b", c=b"c")
    corpus = open_files(tmp_path / "*.txt", validation_files=str(tmp_path / "b.txt"))
    assert names(corpus.train) == ["a.txt", "c.txt"]
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        open_files(tmp_path / "*.txt", validation_files=str(tmp_path / "*"))


def test_a_glob_may_be_a_text_to_evaluate_on(tmp_path):
    write(tmp_path, b=b"second", a=b"first", empty=b"")
    options = {"split": "validation", "field": "text", "directory": None}
    documents, about = open_text(str(tmp_path / "*.txt"), **options)
    assert names(documents) == ["a.txt", "b.txt"] and about.endswith("*.txt: 2 files (11 B)")
    with pytest.raises(ConfigError, match="--data: no file matches /nowhere"):
        open_text("/nowhere/*", **options)


def test_errors_name_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"--data\.files: no file matches .*none/\*\.txt"):
        open_files(tmp_path / "none" / "*.txt")
    write(tmp_path / "empty", a=b"", b=b"")
    with pytest.raises(ConfigError, match="all 2 files of .* are empty"):
        open_files(tmp_path / "empty" / "*.txt")
    write(tmp_path / "one", a=b"e")
    with pytest.raises(ConfigError, match="Give --data.validation-files"):
        open_files(tmp_path / "one" / "a.txt")
    with pytest.raises(ConfigError, match=r"--data\.validation-files: no file matches"):
        open_files(tmp_path / "one" / "*.txt", validation_files=str(tmp_path / "x*"))


def test_unreadable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    write(tmp_path, a=b"a")
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.txt"):
        open_files(tmp_path / "*.txt")
    documents = TextFiles([str(tmp_path / "deleted.txt")])
    with pytest.raises(ConfigError, match=r"cannot read .*deleted\.txt: No such file"):
        documents[0]


def test_names_that_are_not_utf_8_are_names(tmp_path):
    for number in range(40):
        path = os.fsencode(tmp_path) + b"/caf\xe9%d.txt" % number
        with open(path, "wb") as file:
            file.write(b"text %d" % number)
    corpus = open_files(tmp_path, validation_percent=20)
    assert len(corpus.train) + len(corpus.validation) == 40 == len(corpus.take_marks())
    assert corpus.take_marks() == open_files(tmp_path, validation_percent=20).take_marks()
