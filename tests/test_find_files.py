"""What a path, a folder or a glob means; links; files that are no text; what is held out."""

import bz2
import glob
import gzip
import json
import lzma
import os
import time
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from moejax.commands.command_line import parse_config
from moejax.config import Config, ConfigError, DataConfig, from_dict, to_dict
from moejax.data.expand_glob import expand, split_glob
from moejax.data.find_files import find_files
from moejax.data.fingerprint import GROUPS, explain_change
from moejax.data.sources import open_documents, open_text


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text)


def open_files(files, **settings):
    return open_documents(DataConfig(source="files", files=files, **settings))


def names(documents):
    return [os.path.basename(path) for path in documents.paths]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Some folders, also hidden ones and one with brackets; the current folder is above them."""
    for path in ("a.txt", "b/c.txt", "b/c.py", "b/.hidden.txt", ".git/d.txt", "b/e/f/g.txt"):
        write((tmp_path / path).parent)
        (tmp_path / path).write_text(path)
    write(tmp_path / "set[1]", a=b"bracket")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PATTERNS = (
    "*", "*.txt", "**", "**/*", "**/*.txt", "**/*.py", "b/**/*.txt", "./b/*", "b//*.txt", "*/*.txt",
    "b/**", "**/**/*.txt", "b/e/**/g.txt", "?/c.*", "[ab]/*", "b/[!x]*.txt", "b/.*", ".git/*",
    "b/../*.txt", "nothing/*", "a.txt", "nothing", "**/e/*/*.txt", "set[[]1]/*", "b/c.txt/*",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_glob_is_what_it_is_to_python(tree, pattern, absolute):
    pattern = str(tree / pattern) if absolute else pattern
    want = {os.path.normpath(p) for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)}
    got = {os.path.normpath(p) for p in expand(*split_glob(pattern)) if os.path.isfile(p)}
    assert got == want


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("b", ["b/c.py", "b/c.txt", "b/e/f/g.txt"]),
        ("b/", ["b/c.py", "b/c.txt", "b/e/f/g.txt"]),
        (".", ["a.txt", "b/c.py", "b/c.txt", "b/e/f/g.txt", "set[1]/a.txt"]),
        ("a.txt", ["a.txt"]),
        (("a.txt", "b/c.txt"), ["a.txt", "b/c.txt"]),
        (("*.txt", "b/**/*.txt", "a.txt"), ["a.txt", "b/c.txt", "b/e/f/g.txt"]),
        (("b", "./b", "b/e"), ["b/c.py", "b/c.txt", "b/e/f/g.txt"]),
        ("set[1]/a.txt", ["set[1]/a.txt"]),
        ("set[1]/*.txt", ["set[1]/a.txt"]),
        ("set[1]", ["set[1]/a.txt"]),
    ],
)
def test_files_folders_globs_and_several_of_them(tree, given, found):
    assert [os.path.normpath(file.path) for file in find_files("--x", given).files] == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nothing", r"no file matches nothing in .*Quote the glob"),
        (("a.txt", "nothing"), r"no file matches nothing"),
        ("set[2]/a.txt", r"no file matches set\[2\]/a.txt .*write \[\[\] for a bracket"),
        ("[b]", r"matches 1 folder and no file: write \[b\]/\*\*/\*"),
        ("empty", "there is no file in the folder empty"),
        ("~nobody-here/*.txt", r"there is no user nobody-here .*write \./~nobody-here"),
        ("pipe", "pipe is a pipe or a device"),
        ("/dev/zero", "/dev/zero is a pipe or a device"),
    ],
)
def test_nothing_found_says_why(tree, given, words):
    (tree / "empty").mkdir()
    os.mkfifo(tree / "pipe")
    with pytest.raises(ConfigError, match=f"--x.*{words}"):
        find_files("--x", given)


def test_a_tilde_is_the_home_directory(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree / "b"))
    assert names(open_text("~", split="", field="", directory=None)[0]) == [
        "c.py", "c.txt", "g.txt",
    ]  # fmt: skip
    assert names(open_files("~/c.txt", validation_files="~/e").train) == ["c.txt"]


def test_a_file_is_one_file_by_whatever_link(tree):
    """Links to files, to a folder, to the folder above; hard links; and in bounded time."""
    (tree / "b" / "link.txt").symlink_to("c.txt")
    os.link(tree / "b" / "c.txt", tree / "b" / "a_hard_link.txt")
    for name in ("up", "again", "to_all"):
        (tree / "b" / name).symlink_to(tree)
    (tree / "b" / "e" / "f" / "self").symlink_to(tree / "b" / "e")
    began = time.monotonic()
    found = find_files("--x", "b/**/*.txt").files
    assert {os.path.realpath(file.path) for file in found} == {
        str(tree / path) for path in ("b/a_hard_link.txt", "a.txt", "set[1]/a.txt", "b/e/f/g.txt")
    }
    assert len(found) == 4
    assert time.monotonic() - began < 5
    corpus = open_files("**/*.txt", validation_files="b/link.txt")
    assert names(corpus.validation) == ["link.txt"]
    assert sorted(map(os.path.realpath, corpus.train.paths)) == sorted(
        str(tree / path) for path in ("a.txt", "b/e/f/g.txt", "set[1]/a.txt")
    )


def test_no_file_is_on_both_sides(tmp_path):
    write(tmp_path / "real", **{f"f{i:03}": b"text %d" % i for i in range(100)})
    for i in range(100):
        (tmp_path / "real" / f"z{i:03}.txt").symlink_to(f"f{i:03}.txt")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    corpus = open_files(str(tmp_path / "real"), validation_percent=20)
    train, held_out = ({os.path.realpath(p) for p in side.paths} for side in (
        corpus.train, corpus.validation,
    ))  # fmt: skip
    assert len(train) + len(held_out) == 100 == len(corpus.train) + len(corpus.validation)
    assert not train & held_out


def zipped(text: bytes) -> bytes:
    with zipfile.ZipFile(made := BytesIO(), "w") as archive:
        archive.writestr("a.txt", text)
    return made.getvalue()


TEXT = "Call me Ishmael.\n" * 100
OTHERS = {
    "gzip": (gzip.compress(TEXT.encode()), "compressed by gzip: give it to --data.train"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x40\x01", "compressed by zstd: give it to --data.train"),
    "bzip2": (bz2.compress(TEXT.encode()), "compressed by bzip2: give it to --data.train"),
    "xz": (lzma.compress(TEXT.encode()), "compressed by xz: give it to --data.train"),
    "zip": (zipped(TEXT.encode()), "zip archive"),
    "utf_16": (TEXT.encode("utf-16"), "UTF-16: convert it .iconv"),
    "utf_16_be": (b"\xfe\xff" + TEXT.encode("utf-16-be"), "UTF-16: convert it .iconv"),
    "utf_32": (TEXT.encode("utf-32"), "UTF-32: convert it .iconv"),
    "utf_16_without_mark": (TEXT.encode("utf-16-le"), "NUL bytes"),
    "binary": (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03", "NUL bytes"),
    "late_nul": (b"a" * 8000 + b"\x00" + b"b" * 8000, "NUL bytes"),
    "pdf": (b"%PDF-1.7\n1 0 obj", "PDF: take the text out"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_text_is_refused_by_name(tmp_path, kind):
    """Where it is meant by name or by a glob; in a folder it is left out, and that is said."""
    data, words = OTHERS[kind]
    write(tmp_path, text=TEXT.encode(), other=b"Another text.\n" * 100)
    (tmp_path / "x.dat").write_bytes(data)
    for pattern in ("x.dat", "*"):
        for open_it in (
            open_files,
            lambda what: open_text(what, split="", field="", directory=None),
        ):
            with pytest.raises(ConfigError, match=rf"--data.*x\.dat (is|has) .*{words}"):
                open_it(str(tmp_path / pattern))
    corpus = open_files(str(tmp_path), validation_files=str(tmp_path / "other.txt"))
    assert names(corpus.train) == ["text.txt"]
    assert corpus.description.endswith("; 1 other file left out as no text, x.dat")
    (tmp_path / "alone").mkdir()
    (tmp_path / "x.dat").rename(tmp_path / "alone" / "x.dat")
    with pytest.raises(ConfigError, match=rf"x\.dat .*{words}"):
        open_files(str(tmp_path / "alone"))


@pytest.mark.parametrize(
    ("data", "document"),
    [
        (b"plain", b"plain"),
        ("\ufeffmarked".encode(), b"marked"),
        ("\ufeff\ufefftwice".encode(), "\ufefftwice".encode()),
        (b"caf\xe9 in Latin-1", b"caf\xe9 in Latin-1"),
        (b"BZh is a word", b"BZh is a word"),
        (b"\r\n\x0c\x1b[0m", b"\r\n\x0c\x1b[0m"),
    ],
)
def test_texts_are_taken_as_they_are_but_for_the_mark(tmp_path, data, document):
    write(tmp_path, a=data, b=b"b")
    corpus = open_files(str(tmp_path / "a.txt"), validation_files=str(tmp_path / "b.txt"))
    assert corpus.train[0] == document


LINES = "".join(f"line {i}\n" for i in range(1000))
PARAGRAPHS = "".join(f"paragraph {i}\nhas two lines\n\n" for i in range(1000))


@pytest.mark.parametrize(
    ("text", "percent", "border"),
    [
        (LINES, 5, "\n"),
        (LINES, 50, "\n"),
        (PARAGRAPHS, 5, "\n\n"),
        (PARAGRAPHS.replace("\n", "\r\n"), 5, "\r\n\r\n"),
        ("one\n\n" + LINES, 5, "\n"),
        ("é" * 10_000, 5, "é"),
        ("字" * 10_001, 1, "字"),
        ("\n".join("word " * 50 for _ in range(50_000)), 5, "\n"),
        ("enwik8", 5, "k"),
        ("ab", 99, "a"),
    ],
)
def test_of_one_file_the_last_part_is_held_out(tmp_path, text, percent, border):
    write(tmp_path, only=(data := text.encode()))
    corpus = open_files(str(tmp_path / "only.txt"), validation_percent=percent)
    train, held_out = corpus.train[0].decode(), corpus.validation[0].decode()
    assert train + held_out == data.decode() and train and held_out
    assert train.endswith(border) or text == "enwik8"
    if len(text) > 100:
        assert 0.5 < len(held_out) / len(text) * 100 / percent < 2
    assert corpus.description.endswith(f"held out: its last {percent} %")
    assert "1 document (" in corpus.description


def test_of_few_files_the_last_part_of_each_is_held_out(tmp_path):
    """Where the hash of their names leaves one side empty."""
    write(tmp_path, a=LINES.encode(), b=PARAGRAPHS.encode(), c=b"x")
    corpus = open_files(str(tmp_path), validation_percent=1)
    assert names(corpus.train) == ["a.txt", "b.txt", "c.txt"]
    assert names(corpus.validation) == ["a.txt", "b.txt"]
    assert corpus.train[0] + corpus.validation[0] == LINES.encode()
    assert corpus.description.endswith("held out: of each file the last 1 %")


@pytest.mark.parametrize(
    ("flags", "files"),
    [
        (["a.txt"], "a.txt"),
        (["a.txt", "b.txt"], ("a.txt", "b.txt")),
        (["books/**/*.txt"], "books/**/*.txt"),
        (["None"], None),
    ],
)
def test_flags_and_config_json_take_one_or_several(tmp_path, flags, files):
    (tmp_path / "mine.py").write_text(
        "from moejax.config import Config\n\n\ndef get_config():\n    return Config()\n"
    )
    words = ["--config", str(tmp_path / "mine.py"), "--run.steps", "3"]
    words += ["--data.source", "files"] if files else []
    words += ["--data.files", *flags]
    config, _ = parse_config(words, "python train.py")
    assert config.data.files == files and config.run.steps == 3
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", ""), ("files", ()), ("files", ("a.txt", "")), ("files", ("a.txt", 3)),
        ("files", 3), ("validation_files", " "), ("directory", ""), ("tokenizer", ""),
    ],
)  # fmt: skip
def test_a_path_that_is_none_is_refused_by_name(field, value):
    flag = f"--data.{field}".replace("_", "-")
    with pytest.raises(ConfigError, match=f"{flag} must be"):
        DataConfig(**{field: value})


def mark(path, **settings):
    return open_files(str(path), **settings).take_marks()


def replace_a_byte(folder: Path) -> None:
    data = bytearray((folder / "f007.txt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "f007.txt").write_bytes(data)


CHANGES = {
    "a byte": (replace_a_byte, "changed: f007.txt"),
    "longer": (lambda f: write(f, f007=b"text 7" + b"!"), "changed: f007.txt"),
    "renamed": (lambda f: (f / "f007.txt").rename(f / "g.txt"), "gone: f007.txt; new: g.txt"),
    "gone": (lambda f: (f / "f007.txt").unlink(), "gone: f007.txt"),
    "new": (lambda f: write(f, g=b"g"), "new: g.txt"),
    "swapped": (
        lambda f: write(f, f007=(f / "f008.txt").read_bytes(), f008=(f / "f007.txt").read_bytes()),
        "changed: f007.txt, f008.txt",
    ),
    "nothing": (lambda f: (f / "f007.txt").touch(), None),
    "moved": (lambda f: f.rename(f.with_name("moved")), None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_text_is_told_by_name(tmp_path, change):
    folder = tmp_path / "here"
    write(folder, **{f"f{i:03}": b"text %d" % i for i in range(100)})
    old = [list(one) for one in mark(folder, validation_percent=20)]  # as JSON has it
    act, words = CHANGES[change]
    act(folder)
    folder = folder if folder.exists() else tmp_path / "moved"
    assert explain_change(old, mark(folder, validation_percent=20)) == words


def test_of_many_files_a_group_is_named(tmp_path):
    write(tmp_path, **{f"f{i:03}": b"text %d" % i for i in range(900)})
    old = mark(tmp_path)
    assert len(old) == GROUPS
    replace_a_byte(tmp_path)
    assert explain_change(old, mark(tmp_path)) == "changed: something from f007.txt to f009.txt"


@pytest.mark.parametrize("size", [1, 100_000, 2_000_000])
def test_of_a_large_text_blocks_are_read(tmp_path, size, monkeypatch):
    """Its ends always, and blocks of what lies between: each byte changed there is seen."""
    from moejax.data import fingerprint

    monkeypatch.setattr(fingerprint, "READ_WHOLE", 0)
    monkeypatch.setattr(fingerprint, "READ_OF_MORE", size // 4)
    data = bytearray(np.random.default_rng(0).integers(32, 127, size, np.uint8).tobytes())
    (tmp_path / "a.txt").write_bytes(data)
    blocks = list(fingerprint.read_blocks(str(tmp_path / "a.txt"), size, 0.25))
    assert blocks[0] == data[: len(blocks[0])] and blocks[-1] == data[-len(blocks[-1]) :]
    assert sum(map(len, blocks)) <= max(size / 4 + 3 * 2**15, 2**20)
    (tmp_path / "b.txt").write_bytes(b"b")
    settings = {"validation_files": str(tmp_path / "b.txt")}
    old = mark(tmp_path / "a.txt", **settings)
    for place in {0, size - 1}:
        data[place] ^= 1
        (tmp_path / "a.txt").write_bytes(data)
        assert explain_change(old, mark(tmp_path / "a.txt", **settings)) == "changed: a.txt"
        data[place] ^= 1
